"""Macadam: the paved road from raw data to AI in production that can be proved.

The public names are loaded when they are first used, so that `import macadam` stays cheap.
"""

import importlib

__version__ = "0.1.0"

_PUBLIC = {
    "Platform": "macadam.app.platform",
    "Ref": "macadam.values",
    "Settings": "macadam.settings",
}

__all__ = ["Platform", "Ref", "Settings", "__version__"]


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'macadam' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)

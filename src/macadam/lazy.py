"""Loads a heavy third-party package when it is first used, not when the module that needs it is imported.

Starting the CLI or a gateway must not pay for pyarrow or scikit-learn. Only third-party packages are
named here; Macadam's own modules import each other plainly, at the top.
"""

import importlib
from types import ModuleType


class LazyModule(ModuleType):
    """Stands in for a module until an attribute of it is asked for."""

    def __getattr__(self, name: str) -> object:
        # Only reached for names not yet copied: the import system's own lock makes this safe across threads.
        module = importlib.import_module(self.__name__)
        value = getattr(module, name)
        self.__dict__[name] = value
        return value


def lazy(name: str) -> LazyModule:
    """Returns a stand-in for the module `name`; it is imported when an attribute is first read.

    Raises ModuleNotFoundError at that first read if the package is not installed.
    """
    return LazyModule(name)

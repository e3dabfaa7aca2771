"""Where `--plot FILE.svg` goes: asked before minutes of work are spent on what could not be kept, written once."""

import argparse
import os
from pathlib import Path

from macadam.errors import InvalidInput


def wanted(options: argparse.Namespace) -> Path | None:
    """The file of --plot, None if it was not given. Raises InvalidInput where nothing can be written."""
    if not hasattr(options, "plot"):
        return None
    path = Path(options.plot)
    if path.is_dir():
        raise InvalidInput(f"{path} is a directory.", next_step="Name a file, such as plot.svg.")
    if not path.parent.is_dir():
        raise InvalidInput(
            f"There is no directory {path.parent} for {path.name}.", next_step="Make it, or name another place."
        )
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InvalidInput(f"{path} cannot be written.", next_step="Name another place.")
    return path


def save(path: Path, drawn: str) -> None:
    """Raises InvalidInput."""
    try:
        path.write_text(drawn, encoding="utf-8")
    except OSError as error:
        raise InvalidInput(f"{path} cannot be written: {error.strerror}.", next_step="Name another place.") from error

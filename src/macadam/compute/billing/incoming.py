"""The files of a delivery on their way in: found, refused where they lie wrong, and brought to a folder of our own.

What is hashed is what is read, and later kept, even if somebody goes on writing.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from macadam.compute.billing import reading
from macadam.errors import InvalidInput, SourceInvalid, TooLarge
from macadam.lazy import lazy

if TYPE_CHECKING:
    import psutil
else:
    psutil = lazy("psutil")

MAX_FILES = 1000
_BLOCK = 2**20


@contextmanager
def workplace(home: Path) -> Iterator[Path]:
    """A folder in the home for what is being read; gone afterwards, whatever happens. What a killed process left of one is
    removed by the next.
    """
    root = home / "tmp"
    root.mkdir(parents=True, exist_ok=True)
    for left in root.glob("bill-*-*"):
        owner = left.name.split("-")[1]
        if not (owner.isdecimal() and psutil.pid_exists(int(owner))):
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"bill-{os.getpid()}-", dir=root))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def files(path: str, home: Path) -> list[Path]:
    """The files of a delivery, in order. Raises SourceInvalid, InvalidInput, TooLarge."""
    place = Path(path).expanduser().resolve()
    require_outside(place, home)
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise SourceInvalid(
            f"There is no file or folder {place}.", next_step="Check the path on the control plane's machine."
        )
    found = sorted(p for p in place.iterdir() if p.is_file() and reading.is_bill(p))
    if not found:
        raise SourceInvalid(f"{place} has no bills.", next_step="Put .csv, .csv.gz or .parquet files there.")
    if len(found) > MAX_FILES:
        raise TooLarge(
            f"{place} has {len(found)} files, more than {MAX_FILES}.", next_step="Import one delivery at a time."
        )
    for one in found:
        require_outside(one.resolve(), home)
    return found


def require_outside(place: Path, home: Path) -> None:
    """Raises InvalidInput for the home's own files: an import must not be a way to read them."""
    if place.is_relative_to(home.resolve()):
        raise InvalidInput(f"{place} is in the platform's home.", next_step="Keep bills and price lists outside of it.")


def copy(path: Path, target: Path) -> str:
    """Brings one file to `target` and returns its digest. Raises TooLarge, SourceInvalid."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as source, target.open("wb") as written:
            while block := source.read(_BLOCK):
                if written.tell() > reading.MAX_BYTES:  # what unpacks to more is refused, so nothing of it is needed
                    raise TooLarge(f"{path} has more than {reading.MAX_BYTES} bytes.", next_step="Split it.")
                digest.update(block)
                written.write(block)
    except OSError as error:
        raise SourceInvalid(
            f"{path} cannot be read: {error.strerror}.", next_step="Check that it may be read."
        ) from error
    return "sha256:" + digest.hexdigest()

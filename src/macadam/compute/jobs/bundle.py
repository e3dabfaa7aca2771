"""A job's working files as one tar file: the same bytes for the same files, so that their digest names them."""

import io
import os
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from macadam.errors import InvalidInput, NotFound, TooLarge
from macadam.ports import Objects

MOST_BYTES = 256 << 20
MOST_FILES = 20_000
"""Code and small files. Data belongs in tables and objects, where it has digests of its own."""

_SKIPPED = {"__pycache__", "node_modules"}


def bring(objects: Objects, files: Mapping[str, str], source: str, *, home: Path, local: bool) -> str:
    """Stores the bundle and returns its digest, '' if there are no files. Raises InvalidInput, NotFound, TooLarge.

    source: a digest, of which the caller has to know that it is one of the project's own bundles; or a directory here. home: nothing
    of it is ever taken. local: whether jobs run here, as who the platform is: only then they may read directories here anyhow.
    """
    if files and source:
        raise InvalidInput("Both files and a source were given.", next_step="Give one of them.")
    if files:
        return objects.put(pack(_checked(files)))
    if source.startswith("sha256:"):
        if not objects.exists(source):
            raise no_bundle(source)
        return source
    if source and not local:
        raise InvalidInput(
            "Jobs run elsewhere, so no directory of the platform's machine is read for them.",
            next_step="Send the files: --files @DIR.",
        )
    return objects.put(pack(_below(Path(source), home.resolve()))) if source else ""


def no_bundle(digest: str) -> NotFound:
    """The same words for one that is not there and for another project's."""
    return NotFound(f"There is no bundle {digest}.", next_step="Submit with files or a directory first.")


def pack(files: Iterator[tuple[str, bytes, bool]]) -> bytes:
    """files: path, content and whether it is executable. Raises TooLarge."""
    buffer, count, size = io.BytesIO(), 0, 0
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data, executable in files:
            count, size = count + 1, size + len(data)
            if count > MOST_FILES or size > MOST_BYTES:
                raise TooLarge(
                    f"The working files are more than {MOST_FILES} or {MOST_BYTES} bytes.",
                    next_step="Leave data out: let the job fetch it.",
                )
            # Neither time nor owner: only names, contents and what may be run decide the digest.
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o755 if executable else 0o644
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def _checked(files: Mapping[str, str]) -> Iterator[tuple[str, bytes, bool]]:
    for name in sorted(files):
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts or name != path.as_posix():
            raise InvalidInput(f"{name!r} is no path below the job's directory.", next_step="Write it as src/train.py.")
        yield name, files[name].encode(), files[name].startswith("#!")


def _below(directory: Path, home: Path) -> Iterator[tuple[str, bytes, bool]]:
    """Hidden files, caches, virtual environments and the home are left out; links are not followed."""
    if not directory.is_absolute() or not directory.is_dir():
        raise InvalidInput(
            f"The source {str(directory)!r} is no absolute path of a directory here.",
            next_step="Give the directory in full, or send the files.",
        )
    directory = directory.resolve()
    if directory.is_relative_to(home):
        raise InvalidInput("The source is in the platform's own home.", next_step="Name a directory outside of it.")
    left = MOST_BYTES
    for where, folders, names in os.walk(directory):
        root = Path(where)
        folders[:] = sorted(f for f in folders if not _is_skipped(root / f, home))
        for name in sorted(names):
            path = root / name
            if not name.startswith(".") and path.is_file() and not path.is_symlink():
                with path.open("rb") as file:
                    data = file.read(left + 1)  # one byte too many is enough for `pack` to refuse
                left = max(0, left - len(data))
                yield path.relative_to(directory).as_posix(), data, bool(path.stat().st_mode & 0o100)


def _is_skipped(folder: Path, home: Path) -> bool:
    return folder.name.startswith(".") or folder.name in _SKIPPED or (folder / "pyvenv.cfg").exists() or folder == home

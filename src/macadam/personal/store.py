"""Where a project's ciphertext lies, file or object, and how it is found, moved and deleted.

A file beside each segment that is not sealed, an object under the name `personal/PROJECT/SEGMENT` for each that is. Both
may be there for a moment; whoever looks for all of it looks at both.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from macadam.errors import NotFound
from macadam.operations import Granted
from macadam.personal import sidecar
from macadam.personal.sidecar import Bodies, Frame, Sealed
from macadam.personal.vault import Vault
from macadam.ports import Ports

READ = "personal:read"
"""The permission that reading values takes."""
SUFFIX = ".personal"
UNSEALED = (".open", ".closed")


def name_of(project: str, segment: str) -> str:
    """The object of a sealed segment's ciphertext."""
    return f"personal/{project}/{segment}"


def take_over(ports: Ports, project: str) -> None:
    """Makes objects of the files whose segments are sealed. Can be killed anywhere and called again.

    Raises Unavailable, StorageFull.
    """
    left = [path for path in _files(ports, project) if not any(path.with_suffix(s).exists() for s in UNSEALED)]
    if not left:
        return
    keys = Vault(ports.settings.home, ports.secrets, project)
    try:
        with keys.files():
            for path in left:
                if path.exists():  # another process may have been quicker
                    _take_over(ports, keys, path)
    finally:
        keys.close()


def _take_over(ports: Ports, keys: Vault, path: Path) -> None:
    frames = [frame for frame in sidecar.read(path) if frame.body]
    # The places first: an erasure that begins after a kill here finds them all.
    keys.keep_places(path.stem, sorted({frame.subject for frame in frames}))
    if frames:
        ports.objects.set_name(name_of(keys.project, path.stem), sidecar.build(frames))
    path.unlink()


def find(granted: Granted, ports: Ports, project: str, segment: str, prediction: str) -> Sealed | None:
    """One prediction's ciphertext; None if it is erased. segment: '' while it is not sealed. Raises IntegrityError."""
    granted.require(f"project:{project}", READ)
    body = _in_files(ports, project, segment, prediction)
    if body is None and segment:
        body = _in_object(ports, project, segment, prediction)
        if body is None:  # it may have been a file at the first look and an object at the second
            body = _in_files(ports, project, segment, prediction)
    return sidecar.opened(body) if body else None


def _in_files(ports: Ports, project: str, segment: str, prediction: str) -> bytes | None:
    wanted = bytes.fromhex(prediction.replace("-", ""))
    for path in _files(ports, project):
        if segment in ("", path.stem):
            for frame in _frames(path):
                if frame.prediction == wanted:
                    return frame.body
    return None


def _in_object(ports: Ports, project: str, segment: str, prediction: str) -> bytes | None:
    try:
        found = Bodies(ports.objects.get_name(name_of(project, segment))).find(prediction)
    except NotFound:
        return None
    return found.body if found else None


def predictions(ports: Ports, keys: Vault, subjects: frozenset[bytes]) -> dict[bytes, int]:
    """How many predictions of each of these people have ciphertext, erased in a file or not. Within `keys.files`."""
    found: dict[bytes, set[bytes]] = defaultdict(set)
    for frame in _everywhere(ports, keys, subjects):
        if frame.subject in subjects:
            found[frame.subject].add(frame.prediction)
    return {subject: len(found[subject]) for subject in subjects}


def _everywhere(ports: Ports, keys: Vault, subjects: frozenset[bytes]) -> Iterator[Frame]:
    for path in _files(ports, keys.project):
        yield from _frames(path)
    for segment in keys.places(subjects):
        yield from _stored(ports, keys.project, segment)


def delete(ports: Ports, keys: Vault, subjects: frozenset[bytes]) -> None:
    """Deletes the ciphertext of these people from every file and object. Within `keys.files`."""
    for path in _files(ports, keys.project):
        sidecar.overwrite(path, subjects)
    for segment in keys.places(subjects):
        name = name_of(keys.project, segment)
        frames = list(_stored(ports, keys.project, segment))
        kept = [frame for frame in frames if frame.subject not in subjects]
        if len(kept) < len(frames):
            # Also with nothing kept: what is under a name is durable, a removal alone is not. After a power cut the name
            # may be there again, and then holds nothing.
            ports.objects.set_name(name, sidecar.build(kept))
        if not kept:
            ports.objects.remove_name(name)
    keys.forget_places(subjects)


def _stored(ports: Ports, project: str, segment: str) -> Iterator[Frame]:
    try:
        data = ports.objects.get_name(name_of(project, segment))
    except NotFound:
        return
    yield from Bodies(data)


def _files(ports: Ports, project: str) -> list[Path]:
    return sorted((ports.settings.home / "journal" / project).glob(f"*{SUFFIX}"))


def _frames(path: Path) -> Iterator[Frame]:
    try:
        yield from sidecar.read(path)
    except FileNotFoundError:  # it became an object meanwhile
        return

"""Checks a model in a folder, or a single file, against its signature: nothing changed, added, missing or renamed.

Works offline and on any model that was signed in the OpenSSF model-signing format with a key, whoever made it.
Unlike the public tool it does not pass over what the signer left out: a file that nobody signed is refused unless the
caller allows it.
"""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import msgspec

from macadam.errors import IntegrityError, InvalidInput
from macadam.models import signing
from macadam.models.signing import Manifest

_CHUNK = 1 << 20


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """What was found. files: in the order of their names; not_covered: there, left out by the signer, and allowed."""

    model: str
    key: str
    files: tuple[str, ...]
    not_covered: tuple[str, ...]


def verify(model: Path, signature: Path, key: str, *, allow_ignored: bool = False) -> Verified:
    """key: PEM. Raises IntegrityError with the name of the file that is not as signed, InvalidInput."""
    try:
        bundle = signature.read_bytes()
    except OSError as error:
        raise InvalidInput(
            f"{signature} cannot be read: {error.strerror}.", next_step="Give the signature's file."
        ) from error
    manifest = signing.manifest_of(signing.open_bundle(bundle, (key,)))
    there = dict(_files(model, manifest, signature))
    left_out = sorted(name for name in there.keys() - manifest.files.keys() if _is_ignored(name, manifest))
    for name in sorted(there.keys() | manifest.files.keys()):
        _require_same(name, there.get(name), manifest, left_out)
    if left_out and not allow_ignored:
        raise _unfit(
            left_out[0],
            "is there, but the signer left it out, so nobody vouches for it",
            next_step="Remove it, or accept what was left out with --allow-ignored.",
        )
    return Verified(
        model=manifest.model,
        key=signing.key_id(key),
        files=tuple(sorted(manifest.files)),
        not_covered=tuple(left_out),
    )


def _require_same(name: str, path: Path | None, manifest: Manifest, left_out: list[str]) -> None:
    signed = manifest.files.get(name)
    if signed is None:
        if name not in left_out:
            raise _unfit(name, "is not among the signed files")
    elif path is None:
        raise _unfit(name, "is signed and not there")
    elif _digest(path, signed.algorithm) != signed.digest:
        raise _unfit(name, "is not as it was signed")


def _digest(path: Path, algorithm: str) -> str:
    state = signing.HASHES[algorithm]()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            state.update(chunk)
    return state.hexdigest()


def _is_ignored(name: str, manifest: Manifest) -> bool:
    path = PurePosixPath(name)
    return any(path.is_relative_to(PurePosixPath(ignored)) for ignored in manifest.serialization.ignore_paths)


def _files(model: Path, manifest: Manifest, signature: Path) -> Iterator[tuple[str, Path]]:
    """Every file by its name in the model, but for the signature itself."""
    if not model.exists():
        raise InvalidInput(f"There is no model at {model}.", next_step="Give the folder, or the file, that was signed.")
    if model.is_file():
        yield ".", model
        return
    own = signature.resolve()
    for folder, folders, names in os.walk(model, onerror=_refuse_unread):
        here = Path(folder)
        for name in (*folders, *names):
            path = here / name
            relative = path.relative_to(model).as_posix()
            if path.is_symlink():
                _require_inside(path, relative, model, manifest)
            if name in folders:
                continue
            if not path.is_file():
                raise _unfit(relative, "is neither a file nor a folder")
            if path.resolve() != own or relative in manifest.files:
                yield relative, path


def _refuse_unread(error: OSError) -> None:
    """What cannot be listed here may be listed by whoever loads the model."""
    raise InvalidInput(f"{error.filename} cannot be read: {error.strerror}.", next_step="Make it readable.") from error


def _require_inside(path: Path, relative: str, model: Path, manifest: Manifest) -> None:
    """A link is followed only if the signer did so too, to a file of the model."""
    if not manifest.serialization.allow_symlinks:
        raise _unfit(relative, "is a symbolic link, which the signature does not allow")
    if path.is_dir() or not path.resolve().is_relative_to(model.resolve()):
        raise _unfit(relative, "is a symbolic link to a folder or out of the model")


def _unfit(
    name: str, what: str, *, next_step: str = "Do not use the model; get it again from its signer."
) -> IntegrityError:
    return IntegrityError(f"{name} {what}.", next_step=next_step, details={"file": name})

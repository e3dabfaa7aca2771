"""Secrets encrypted at rest, once a passphrase or a KMS is set: AES-256-GCM over the files of `LocalSecrets`.

One data key for the home, wrapped by the `Kms` port, lies in the file `.sealed` beside the secrets; each secret is bound to
its name, so that two cannot be swapped. Where nothing is set the secrets are plain files. A home that is turned from one to
the other is readable at each step: `.sealed` says first that it is being done, and last that it is done; from then on a
plain file is no secret of this home.
"""

import base64
import logging
import os
import threading
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import msgspec

from macadam.adapters.local_secrets import LocalSecrets
from macadam.errors import IntegrityError, SettingInvalid
from macadam.lazy import lazy
from macadam.ports import Kms, load
from macadam.settings import Keys
from macadam.values import uuid7

if TYPE_CHECKING:
    from cryptography import exceptions
    from cryptography.hazmat.primitives.ciphers import aead
else:
    exceptions = lazy("cryptography.exceptions")
    aead = lazy("cryptography.hazmat.primitives.ciphers.aead")

MAGIC = b"macadam-sealed/1\n"
_MARK = ".sealed"
_CONTEXTS = {"sealed": "macadam home keys", "sealing": "macadam home keys, some still plain"}
"""What the data key is bound to: whoever changes the state that `.sealed` says makes it a key that does not open."""
_NONCE = 12  # bytes, random: 2**32 secrets under one key before two are likely to share one (NIST SP 800-38D, 8.3)

_log = logging.getLogger(__name__)
_unwrapped: dict[tuple[str, str, bytes], bytes] = {}
"""Data keys by how they are wrapped, for which state, and the digest of what unwraps them: a passphrase is stretched once in
a process, however many stores it opens, and one who does not have it is not helped by others who do.
"""
_unwrapping = threading.Lock()


class Mark(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file `.sealed`. by: which Kms. key: the data key, wrapped, in base64. state: sealing while plain files may be
    left.
    """

    by: str
    key: str
    state: Literal["sealing", "sealed"]


class SealedSecrets:
    """directory: must exist. Raises SettingInvalid where the settings and what is there do not go together."""

    def __init__(self, directory: Path, keys: Keys) -> None:
        self._directory = directory
        self._plain = LocalSecrets(directory)
        self._keys = keys
        self._warned = False
        self._opener = b""

    def get(self, name: str) -> bytes:
        mark = self._mark()
        value = self._plain.get(name)
        if mark is None:
            return value
        if value.startswith(MAGIC):
            return self._open(name, value, self._data_key(mark))
        if mark.state == "sealing":
            self._data_key(mark)  # so that whoever puts a plain file in a sealed home cannot say that it is sealing
            return value
        raise IntegrityError(
            f"The secret {name!r} is not encrypted, and all secrets of this home are.",
            next_step="Somebody has put it there: restore the home's keys from a backup.",
        )

    def put(self, name: str, value: bytes) -> None:
        mark = self._mark()
        self._plain.put(name, value if mark is None else _seal(name, value, self._data_key(mark)))

    def remove(self, name: str) -> None:
        self._plain.remove(name)

    def names(self, prefix: str = "") -> list[str]:
        return self._plain.names(prefix)

    def encryption(self) -> str:
        mark = self._mark()
        return "none" if mark is None else mark.state

    def encrypt(self) -> int:
        """1. what is being done, and the wrapped key, durably; 2. each secret replaced by itself, encrypted; 3. drafts
        that a kill has left, which are plain; 4. that it is done. A kill between any two is gone on from.
        """
        mark = self._mark() or self._begin("sealing")  # 1
        key = self._data_key(mark)
        done = 0
        for name in self._plain.names():  # 2
            value = self._plain.get(name)
            if not value.startswith(MAGIC):
                self._plain.replace(name, _seal(name, value, key))
                done += 1
        for draft in self._directory.glob(".*.draft"):  # 3
            draft.unlink(missing_ok=True)
        if mark.state != "sealed":  # 4
            self._write(self._wrapped(key, "sealed"), os.replace)
        return done

    # --- the mark

    def _mark(self) -> Mark | None:
        """None: the home's secrets are plain files. A fresh home becomes an encrypted one if the settings say how."""
        try:
            mark = msgspec.json.decode((self._directory / _MARK).read_bytes(), type=Mark)
        except FileNotFoundError:
            if not self._keys.wanted:
                return None
            if self._plain.names():
                self._warn()
                return None
            return self._begin("sealed")
        except msgspec.DecodeError as error:
            raise IntegrityError(
                f"{self._directory / _MARK} is damaged: {error}.", next_step="Restore the home's keys from a backup."
            ) from error
        return mark

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            _log.warning("the home's keys are plain files, although a passphrase or KMS is set: macadam keys encrypt")

    def _begin(self, state: Literal["sealing", "sealed"]) -> Mark:
        mark = self._wrapped(os.urandom(32), state)
        try:
            self._write(mark, os.link)
        except FileExistsError:  # another process began it: its key is the home's
            return msgspec.json.decode((self._directory / _MARK).read_bytes(), type=Mark)
        return mark

    def _wrapped(self, key: bytes, state: Literal["sealing", "sealed"]) -> Mark:
        by, kms = self._kms()
        mark = Mark(by=by, key=base64.b64encode(kms.wrap(key, _CONTEXTS[state])).decode(), state=state)
        with _unwrapping:
            _unwrapped[mark.key, state, self._opens()] = key
        return mark

    def _write(self, mark: Mark, place: Callable[[Path, Path], None]) -> None:
        draft = self._directory / f".{uuid7()}.draft"
        try:
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(msgspec.json.encode(mark))
                file.flush()
                os.fsync(file.fileno())
            place(draft, self._directory / _MARK)
        finally:
            draft.unlink(missing_ok=True)
        self._plain.settle()

    # --- the key

    def _data_key(self, mark: Mark) -> bytes:
        with _unwrapping:
            known = (mark.key, mark.state, self._opens())
            if known not in _unwrapped:
                by, kms = self._kms()
                if by != mark.by:
                    raise SettingInvalid(
                        f"This home's keys are encrypted by {mark.by}, and the settings say {by}.",
                        next_step="Set what it was encrypted with: see `macadam keys --help`.",
                    )
                _unwrapped[known] = kms.unwrap(base64.b64decode(mark.key), _CONTEXTS[mark.state])
            return _unwrapped[known]

    def _opens(self) -> bytes:
        if not self._opener and self._keys.wanted:
            said = self._keys.kms or self._keys.secret()
            self._opener = sha256(f"{bool(self._keys.kms)} {said}".encode()).digest()
        return self._opener

    def _kms(self) -> tuple[str, Kms]:
        if not self._keys.wanted:
            raise SettingInvalid(
                "This home's keys are encrypted, or are to be, and nothing says how.",
                next_step="Set MACADAM_KEY_PASSPHRASE_FILE (or MACADAM_KEY_PASSPHRASE, or MACADAM_KEY_KMS).",
            )
        if self._keys.kms:
            by, _, key = self._keys.kms.partition(":")
            return by, cast("Kms", load(f"{by}_kms")(key))
        return "passphrase", cast("Kms", load("passphrase_kms")(self._keys.secret()))

    def _open(self, name: str, sealed: bytes, key: bytes) -> bytes:
        body = sealed[len(MAGIC) :]
        try:
            return aead.AESGCM(key).decrypt(body[:_NONCE], body[_NONCE:], _bound_to(name))
        except (exceptions.InvalidTag, ValueError) as error:
            raise IntegrityError(
                f"The secret {name!r} was changed, or is another's.",
                next_step="Restore the home's keys from a backup.",
            ) from error


def _seal(name: str, value: bytes, key: bytes) -> bytes:
    nonce = os.urandom(_NONCE)
    return MAGIC + nonce + aead.AESGCM(key).encrypt(nonce, value, _bound_to(name))


def _bound_to(name: str) -> bytes:
    return MAGIC + name.encode()

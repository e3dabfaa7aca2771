"""Encrypts one person's values, commits to what was encrypted, and names people without their names.

Pure but for randomness. A record that is hashed and proved holds only what `commitment` and `Subject.id` give; where keys
are kept is for `vault`, where ciphertext lies for `sidecar`.
"""

import hashlib
import hmac
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from macadam.errors import IntegrityError, InvalidInput
from macadam.lazy import lazy

if TYPE_CHECKING:
    from cryptography import exceptions
    from cryptography.hazmat.primitives.ciphers import aead
else:
    exceptions = lazy("cryptography.exceptions")
    aead = lazy("cryptography.hazmat.primitives.ciphers.aead")

KEY_BYTES = 32
"""AES-256."""
SUBJECT_BYTES = 16
_NONCE = 12
"""Bytes: 96 random bits. Under one key 2^32 values are safe (NIST SP 800-38D, 8.3); a key is one person's."""
_BLOCK = 32
"""Plaintext is padded with spaces to a multiple of this many bytes, so that a length says little. JSON ignores them."""
_COMMIT = b"macadam-personal/1\0commit\0"
_KEY_ID = b"macadam-personal/1\0key id"
_TAG = b"macadam-personal/1\0subject\0"
MOST_TEXT = 500
"""Characters of a subject's id."""


class Field(msgspec.Struct, frozen=True, array_like=True):
    """One encrypted value. path: where it stood in the record, such as `inputs.email`; sealed: nonce and ciphertext."""

    path: str
    sealed: bytes


class SubjectKey:
    """One person's key, ready for use. subject: the random name under which records know the person, 16 bytes.

    key_id: a commitment to the key itself. AES-GCM alone binds nobody to one key: two keys can be found under which one
    ciphertext reads differently (Grubbs et al., CRYPTO 2017), so commitments include it.
    """

    __slots__ = ("_aead", "key_id", "subject", "text")

    def __init__(self, subject: bytes, key: bytes) -> None:
        self.subject = subject
        self.text = subject.hex()
        self.key_id = hmac.digest(key, _KEY_ID, "sha256")
        self._aead = aead.AESGCM(key)

    def seal(self, project: str, prediction: str, values: Sequence[tuple[str, bytes]]) -> list[Field]:
        """Encrypts (path, JSON) pairs of one prediction, each by itself, bound to its place."""
        nonces = os.urandom(_NONCE * len(values))
        found = []
        for number, (path, value) in enumerate(values):
            nonce = nonces[_NONCE * number : _NONCE * (number + 1)]
            padded = value.ljust(-(-len(value) // _BLOCK) * _BLOCK)
            found.append(Field(path, nonce + self._aead.encrypt(nonce, padded, _place(project, prediction, path))))
        return found

    def open(self, project: str, prediction: str, field: Field) -> bytes:
        """The JSON of one value. Raises IntegrityError if the ciphertext is another's, or was changed."""
        nonce, rest = field.sealed[:_NONCE], field.sealed[_NONCE:]
        try:
            return self._aead.decrypt(nonce, rest, _place(project, prediction, field.path)).rstrip(b" ")
        except (exceptions.InvalidTag, ValueError) as error:
            raise IntegrityError(
                f"The ciphertext of {field.path} of prediction {prediction} was changed, or is another's.",
                next_step="Restore it from a backup; do not use what was made from it.",
            ) from error

    def commitments(self, fields: Sequence[Field]) -> dict[str, str]:
        """What the record says instead of the values: by path."""
        return {field.path: commitment(self.key_id, field.sealed) for field in fields}


def commitment(key_id: bytes, sealed: bytes) -> str:
    """`sha256:…` over the key's id and the ciphertext: it fits one plaintext only, and tells nothing without the key."""
    return "sha256:" + hashlib.sha256(_COMMIT + key_id + sealed).hexdigest()


def tag(tag_key: bytes, subject_id: str) -> bytes:
    """32 bytes that find a person's key, HMAC-SHA256 (RFC 2104) under the project's key: nobody without it can guess."""
    return hmac.digest(tag_key, _TAG + subject_id.encode(), "sha256")


def wrap(kek: bytes, project: str, tag_of: bytes, subject: bytes, key: bytes) -> bytes:
    """The data key, encrypted with the project's key and bound to project, tag and subject."""
    nonce = os.urandom(_NONCE)
    return nonce + aead.AESGCM(kek).encrypt(nonce, key, _binding(project, tag_of, subject))


def unwrap(kek: bytes, project: str, tag_of: bytes, subject: bytes, wrapped: bytes) -> bytes:
    """Reads `wrap`. Raises IntegrityError."""
    try:
        return aead.AESGCM(kek).decrypt(wrapped[:_NONCE], wrapped[_NONCE:], _binding(project, tag_of, subject))
    except (exceptions.InvalidTag, ValueError) as error:
        raise IntegrityError(
            f"A subject's key in project {project!r} was changed, or wrapped by another key.",
            next_step="Restore the folder subjects and the keys from one backup.",
        ) from error


def subject_text(value: object, name: str) -> str:
    """A subject's id as text: text as it is, whole numbers in digits. Raises InvalidInput. name: of the input.

    What was got is not said: it is personal.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not 0 < len(value) <= MOST_TEXT:
        raise InvalidInput(
            f"The input {name!r} names the person that this is about; it is text of 1 to {MOST_TEXT} characters or a"
            " whole number, and is not null.",
            next_step=f"Send {name!r} with each request of this endpoint.",
            details={"input": name},
        )
    return value


def _place(project: str, prediction: str, path: str) -> bytes:
    return f"{project}\0{prediction}\0{path}".encode()


def _binding(project: str, tag_of: bytes, subject: bytes) -> bytes:
    return project.encode() + b"\0" + tag_of + subject

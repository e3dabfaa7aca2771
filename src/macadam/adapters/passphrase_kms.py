"""Wraps a home's data key under a passphrase: scrypt (RFC 7914) stretches it, AES-256-GCM wraps."""

import base64
import hashlib
import os
from typing import TYPE_CHECKING, Annotated

import msgspec

from macadam.errors import IntegrityError, SettingInvalid
from macadam.lazy import lazy

if TYPE_CHECKING:
    from cryptography import exceptions
    from cryptography.hazmat.primitives.ciphers import aead
else:
    exceptions = lazy("cryptography.exceptions")
    aead = lazy("cryptography.hazmat.primitives.ciphers.aead")

SHORTEST = 12
"""Characters of a new passphrase: scrypt makes a guess dear, not a short passphrase long."""
COST, BLOCK, PARALLEL = 2**15, 8, 3
"""OWASP's Password Storage Cheat Sheet, the choice with 32 MB: a gateway's whole budget is 150 MB."""
_MOST_MEMORY = 256 * 1024 * 1024


class Wrapped(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is stored. salt, nonce, data: base64. n, r, p: scrypt's cost; bounded, so that a changed file cannot take all
    memory.
    """

    n: Annotated[int, msgspec.Meta(ge=2**14, le=2**17)]
    r: Annotated[int, msgspec.Meta(ge=8, le=8)]
    p: Annotated[int, msgspec.Meta(ge=1, le=8)]
    salt: str
    nonce: str
    data: str


class PassphraseKms:
    def __init__(self, passphrase: str) -> None:
        self._passphrase = passphrase

    def wrap(self, key: bytes, context: str) -> bytes:
        """Raises SettingInvalid for a passphrase that is too short."""
        if len(self._passphrase) < SHORTEST:
            raise SettingInvalid(
                f"The passphrase has {len(self._passphrase)} characters, at least {SHORTEST} are needed.",
                next_step="Take several random words.",
            )
        salt, nonce = os.urandom(16), os.urandom(12)
        data = aead.AESGCM(self._stretched(salt, COST, PARALLEL)).encrypt(nonce, key, context.encode())
        encoded = [base64.b64encode(part).decode() for part in (salt, nonce, data)]
        return msgspec.json.encode(
            Wrapped(n=COST, r=BLOCK, p=PARALLEL, salt=encoded[0], nonce=encoded[1], data=encoded[2])
        )

    def unwrap(self, wrapped: bytes, context: str) -> bytes:
        """Raises SettingInvalid for another passphrase, IntegrityError for bytes that were never wrapped."""
        try:
            stored = msgspec.json.decode(wrapped, type=Wrapped)
            salt, nonce, data = (
                base64.b64decode(part, validate=True) for part in (stored.salt, stored.nonce, stored.data)
            )
        except ValueError as error:
            raise IntegrityError(
                f"The wrapped key is damaged: {error}.", next_step="Restore the home's keys from a backup."
            ) from error
        try:
            return aead.AESGCM(self._stretched(salt, stored.n, stored.p)).decrypt(nonce, data, context.encode())
        except exceptions.InvalidTag as error:
            raise SettingInvalid(
                "The passphrase is not the one that this home's keys were encrypted with, or `.sealed` was changed.",
                next_step="Correct MACADAM_KEY_PASSPHRASE_FILE or MACADAM_KEY_PASSPHRASE, or restore the home's keys.",
            ) from error

    def _stretched(self, salt: bytes, n: int, p: int) -> bytes:
        return hashlib.scrypt(self._passphrase.encode(), salt=salt, n=n, r=BLOCK, p=p, maxmem=_MOST_MEMORY, dklen=32)

"""What a prediction leaves behind: one record, as the JSON bytes that are journaled, hashed and proved.

The bytes are made once, in the gateway, and never made again: a proof is over them as they are, so they need no
canonical form. How records reach the disk is for `segment` and `writer`.
"""

from typing import Any

import msgspec

from macadam.errors import IntegrityError, InvalidInput

VERSION = 1
"""Version of the record's fields. Readers refuse a higher one."""

_AT_LENGTH = len("2026-11-21T07:00:00.000000Z")

Feature = bool | int | float | str | None


class Personal(msgspec.Struct, frozen=True):
    """What a record says of personal values, which lie encrypted beside it. subject: the random name of the person;
    fields: by path (`inputs.email`, `features.x`, `output`), the commitment to the ciphertext (`sha256:…`).
    """

    subject: str
    fields: dict[str, str]


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """One answered request: what was asked, what was answered, and which model under which decision did it.

    Raises InvalidInput at birth if `at` is not in the one spelling, or `outcome` is none of the three kinds.
    """

    id: str
    """UUIDv7."""
    at: str
    """When the request arrived: RFC 3339, UTC, microseconds, Z (`values.instant`), so that text sorts as time."""
    project: str
    endpoint: str
    variant: str
    version: str
    """`model:NAME@N`."""
    model_digest: str
    """`sha256:…` of the artifact that was loaded."""
    deployment: str
    """Id of the ledger leaf that deployed this version."""
    actor: str
    inputs: dict[str, Any]
    """The request's own fields."""
    features: dict[str, Feature]
    """What the model was given, by name."""
    output: dict[str, Any]
    outcome: str
    """`ok`, `degraded:<step>` or `error:<code>`."""
    stages_us: dict[str, int]
    """Time spent in each stage, µs."""
    trace: str = ""
    """W3C trace id, or empty."""
    clock: str = ""
    """Of a replay: the instant whose features it asked for, as `at`. Empty: that of the request itself."""
    personal: Personal | msgspec.UnsetType = msgspec.UNSET
    """Fields that are not among inputs, features and output, as they are a person's."""
    v: int = VERSION

    def __post_init__(self) -> None:
        if len(self.at) != _AT_LENGTH or self.at[-1] != "Z":
            raise InvalidInput(
                f"{self.at!r} is not a record's time, expected the form 2026-11-21T07:00:00.000000Z.",
                next_step="Pass values.instant(...).",
            )
        if self.outcome != "ok" and not self.outcome.startswith(("degraded:", "error:")):
            raise InvalidInput(
                f"{self.outcome!r} is not an outcome.", next_step="Give ok, degraded:<step> or error:<code>."
            )


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Prediction).decode


def encode(prediction: Prediction) -> bytes:
    """The record as JSON (UTF-8), fields in the order of the struct. NaN and infinities become null."""
    return _encode(prediction)


def decode(payload: bytes) -> Prediction:
    """Reads `encode`. Raises IntegrityError if the bytes are no record, or one of a later version."""
    try:
        prediction = _decode(payload)
    except (msgspec.MsgspecError, InvalidInput, UnicodeDecodeError, RecursionError) as error:
        raise IntegrityError(
            f"A journal payload of {len(payload)} bytes is not a prediction record: {error}",
            next_step="Compare the segment with its ledger leaf: macadam ledger verify.",
        ) from error
    if prediction.v > VERSION:
        raise IntegrityError(
            f"The prediction record {prediction.id} has version {prediction.v}, this program reads up to {VERSION}.",
            next_step="Upgrade macadam-platform.",
        )
    return prediction

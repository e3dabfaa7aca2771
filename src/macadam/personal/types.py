"""What a deployment says about personal fields, and the requests and answers of erasing a person."""

from datetime import datetime
from typing import Annotated

import msgspec

from macadam.operations import Request
from macadam.values import Name

ErasureId = Annotated[
    str,
    msgspec.Meta(pattern=r"^(erasure:)?[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z", description="an erasure's id"),
]
OneLine = Annotated[str, msgspec.Meta(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*\Z", description="one line of text")]


class PersonalFields(msgspec.Struct, frozen=True, kw_only=True):
    """Which fields of an endpoint are personal. subject: the input that names the person; output: the answer is too."""

    subject: str
    inputs: tuple[str, ...]
    features: tuple[str, ...] = ()
    output: bool = False


class Erasure(msgspec.Struct, frozen=True, kw_only=True):
    """What an erasure did. id: '' if nothing was left to erase. request: under which it was asked for.

    subjects: the random names under which records knew the person. predictions: whose ciphertext was deleted;
    online_rows: deleted from the online store. keys_rewrapped: of other people, under the new project key.
    certificate: a signed note, verified without Macadam.
    """

    id: str
    project: str
    at: datetime
    by: str
    request: str
    subjects: tuple[str, ...]
    predictions: int
    online_rows: int
    keys_rewrapped: int
    leaf: str
    certificate: str
    said: str


class EraseSubject(Request[Erasure], frozen=True, kw_only=True):
    """Erase a person: destroy the key of their values, delete the ciphertext, certify it.

    subject: the person's id, as requests to the endpoints name it. request: what it is done under, such as a case
    number; it stands in the certificate and holds no personal data.
    """

    project: Name
    subject: Annotated[str, msgspec.Meta(min_length=1, max_length=500)]
    request: OneLine = ""


class ListErasures(Request[tuple[Erasure, ...]], frozen=True, kw_only=True):
    """List the erasures of a project, newest first."""

    project: Name
    limit: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 100


class ShowErasure(Request[Erasure], frozen=True, kw_only=True):
    """Show one erasure with its certificate."""

    project: Name
    erasure: ErasureId

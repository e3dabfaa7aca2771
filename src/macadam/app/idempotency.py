"""Remembers the answer to each keyed call, in the call's own transaction, so that a retry gets the same answer."""

from datetime import datetime

import msgspec
import sqlalchemy as sa

from macadam.errors import Conflict, InvalidInput
from macadam.operations import Call
from macadam.schema import Instant, metadata

LONGEST_KEY = 200

answers = sa.Table(
    "idempotency_answers",
    metadata,
    sa.Column("actor", sa.String(100), primary_key=True),
    sa.Column("key", sa.String(LONGEST_KEY), primary_key=True),
    sa.Column("operation", sa.String(100), nullable=False),
    sa.Column("request_digest", sa.String(80), nullable=False),
    sa.Column("response", sa.LargeBinary, nullable=False),
    sa.Column("at", Instant, nullable=False),
)


def find(sql: sa.Connection, key: str, call: Call) -> bytes | None:
    """The first answer to this key as JSON, if there was one.

    Raises InvalidInput if the key is too long, Conflict if the key was used for another operation or request, or if the answer held a credential.
    """
    if len(key) > LONGEST_KEY:
        raise InvalidInput(
            f"The idempotency key has {len(key)} characters, at most {LONGEST_KEY} fit.",
            next_step="Use a UUID for each request.",
        )
    row = sql.execute(sa.select(answers).where(answers.c.actor == call.actor.id, answers.c.key == key)).first()
    if row is None:
        return None
    if (row.operation, row.request_digest) != (call.operation.name, call.request_digest):
        raise Conflict(
            f"The idempotency key {key!r} was used for another request ({row.operation}).",
            next_step="Use a new key for a new request.",
        )
    if not row.response:
        raise Conflict(
            f"The call with the idempotency key {key!r} was carried out; its answer holds a credential and is not kept.",
            next_step="If the answer was lost, revoke the credential (`macadam tokens list`) and ask for another.",
        )
    return bytes(row.response)


def keep(sql: sa.Connection, key: str, call: Call, response: object) -> None:
    """Stores the answer; it commits with the call's state.

    Of a secret answer only the fact that it was given is kept: credentials are stored nowhere.
    """
    at: datetime = call.now
    sql.execute(
        sa.insert(answers).values(
            actor=call.actor.id,
            key=key,
            operation=call.operation.name,
            request_digest=call.request_digest,
            response=b"" if call.operation.secret_answer else msgspec.json.encode(response),
            at=at,
        )
    )

"""The published copy of the newest checkpoint, with what witnesses have put below it.

Stored checkpoints never change; the copy is one of them and the cosignatures that are known for it. It is written after
the transaction that adds the checkpoint, so a kill between the two leaves it one behind: `catch_up` puts that right.
"""

import sqlalchemy as sa

from macadam.errors import NotFound
from macadam.ledger.schema import checkpoints, cosignatures
from macadam.ports import Ports

CHECKPOINT_NAME = "ledger/checkpoint"


def publish(ports: Ports) -> None:
    """Publishes the newest checkpoint. Of two processes the slower one does not put an older one back."""
    wanted, written = _newest(ports), ""
    while wanted and wanted != written:
        ports.objects.set_name(CHECKPOINT_NAME, wanted.encode())
        wanted, written = _newest(ports), wanted


def catch_up(ports: Ports) -> None:
    """Publishes what a killed process has committed and not published. A copy that is older still was put back by
    somebody: it stays, for `ledger verify` to find.
    """
    with ports.sql.read() as sql:
        query = sa.select(checkpoints.c.note).order_by(checkpoints.c.size.desc()).limit(2)
        last, *before = [*sql.execute(query).scalars()] or [""]
    if not last:
        return
    try:
        copy = ports.objects.get_name(CHECKPOINT_NAME)
    except NotFound:
        copy = b""
    if copy.startswith(before[0].encode()) if before else not copy:
        publish(ports)


def cosigned(sql: sa.Connection, size: int, note: str) -> str:
    """A stored note with the cosignatures that are known for it, in the order of their keys."""
    query = sa.select(cosignatures.c.line).where(cosignatures.c.size == size).order_by(cosignatures.c.key)
    return note + "".join(f"{line}\n" for line in sql.execute(query).scalars())


def _newest(ports: Ports) -> str:
    with ports.sql.read() as sql:
        row = sql.execute(sa.select(checkpoints).order_by(checkpoints.c.size.desc()).limit(1)).first()
        return cosigned(sql, row.size, row.note) if row else ""

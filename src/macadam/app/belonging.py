"""Keeps a home and its database together: neither is used with another one, and none is made anew beside the other.

Keys, objects and table files lie in the home, and what they prove lies in the database. The home's file `database` says which
kind it is and carries an id; the database has the same id in a row. A home opened without its MACADAM_DATABASE, or a database
opened from another home, would otherwise look like an empty platform, and every proof in it like a forgery.
"""

import os
from pathlib import Path
from typing import Literal

import msgspec
import sqlalchemy as sa

from macadam.access.schema import state
from macadam.errors import IntegrityError, NotFound, SettingInvalid
from macadam.ledger import service as ledger
from macadam.ports import Ports
from macadam.schema import Instant, metadata
from macadam.settings import Settings
from macadam.values import utc_now, uuid7

_FILE = "database"
SQLITE_FILE = "macadam.sqlite"

homes = sa.Table(
    "platform_home",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("at", Instant, nullable=False),
)


class Belonging(msgspec.Struct, frozen=True, kw_only=True):
    """What a home knows of its database. id: the same as in the database's row."""

    kind: Literal["sqlite", "postgres"]
    id: str


def check(settings: Settings) -> None:
    """Before anything is opened or made. Raises SettingInvalid if the home's state is in the other kind of database."""
    home = settings.home
    wanted = _kind(settings)
    known = _read(home)
    if known is not None:
        kind: str = known.kind
    else:  # a home from before this file, or a fresh one
        kind = "sqlite" if (home / SQLITE_FILE).exists() else wanted
    if kind == wanted:
        return
    if wanted == "postgres":
        raise SettingInvalid(
            f"MACADAM_DATABASE names a Postgres database, but the state of the home {home} is in SQLite.",
            next_step="Unset MACADAM_DATABASE, or choose another home for it: MACADAM_HOME (--home).",
        )
    raise SettingInvalid(
        f"The state of the home {home} is in Postgres, and MACADAM_DATABASE is not set.",
        next_step="Set MACADAM_DATABASE to the database that the home was made with, or choose another home.",
    )


def claim(ports: Ports) -> None:
    """After migrating, before anything is made in it. A fresh home and a fresh database become each other's.

    Raises SettingInvalid if one of them is another's, or IntegrityError if one has evidence and the other is empty.
    """
    home = ports.settings.home
    known = _read(home)
    if known is not None:
        with ports.sql.read() as sql:
            if _owner(sql) == known.id:
                return
    has_keys = _has_keys(ports)
    ports.sql.write(lambda sql: _join(sql, home, _kind(ports.settings), has_keys=has_keys))


def _join(sql: sa.Connection, home: Path, kind: Literal["sqlite", "postgres"], *, has_keys: bool) -> None:
    owner = _owner(sql)
    has_state = sql.execute(sa.select(state.c.id)).first() is not None
    if has_keys and not has_state:
        raise IntegrityError(
            f"The database is empty, but the home {home} has keys and evidence: it is not this home's database.",
            next_step="Restore the database, or point MACADAM_DATABASE at the right one; for a new platform take a new home.",
        )
    if has_state and not has_keys:
        raise IntegrityError(
            f"The database holds a platform's state, but the home {home} lacks its keys: it is not this database's home.",
            next_step="Restore the home (its folders keys and objects), or name the right one with MACADAM_HOME.",
        )
    # The file first: a kill before the commit leaves a file without a row, which the next start completes.
    known = _keep(home, Belonging(kind=kind, id=owner or uuid7()))
    if not owner:
        sql.execute(sa.insert(homes).values(id=known.id, at=utc_now()))
    elif owner != known.id:
        raise SettingInvalid(
            f"The database belongs to another home than {home}.",
            next_step="Give each home a database of its own, and name this one's with MACADAM_DATABASE.",
        )


def _owner(sql: sa.Connection) -> str:
    return sql.execute(sa.select(homes.c.id)).scalar_one_or_none() or ""


def _has_keys(ports: Ports) -> bool:
    try:
        ledger.verifier_keys(ports)
    except NotFound:
        return False
    return True


def _kind(settings: Settings) -> Literal["sqlite", "postgres"]:
    return "postgres" if settings.storage.database else "sqlite"


def _read(home: Path) -> Belonging | None:
    try:
        return msgspec.json.decode((home / _FILE).read_bytes(), type=Belonging)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise IntegrityError(
            f"The file {home / _FILE} is damaged: {error}.", next_step="Restore it from a backup of the home."
        ) from error


def _keep(home: Path, made: Belonging) -> Belonging:
    """Writes the home's file if there is none, whole or not at all; returns what it says."""
    known = _read(home)
    if known is not None:
        return known
    new = home / f"{_FILE}.{uuid7()}"
    with new.open("xb") as file:
        file.write(msgspec.json.encode(made))
        file.flush()
        os.fsync(file.fileno())
    new.replace(home / _FILE)  # writers are one at a time, so nobody else's is replaced
    return made

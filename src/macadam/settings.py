"""Every setting: its unit, default and the reason for the default, as a frozen dataclass per section.

A value comes from the environment (`MACADAM_…`) or the default; command-line flags override fields with
`dataclasses.replace`. The reference page of settings is generated from this file.
"""

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from macadam.errors import SettingInvalid


def setting(default: object, *, env: str, unit: str, why: str) -> Any:
    """Declares one setting; `unit` and `why` go to the reference page."""
    return dataclasses.field(default=default, metadata={"env": env, "unit": unit, "why": why})


@dataclass(frozen=True, kw_only=True)
class Section:
    """One group of settings, read from the environment field by field."""

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Self:
        """Raises SettingInvalid if a variable's text does not fit its field's type."""
        values = {}
        for field in dataclasses.fields(cls):
            text = environment.get(field.metadata["env"])
            if text is not None:
                values[field.name] = _parse(field.metadata["env"], text, type(field.default))
        return cls(**values)


def _parse(variable: str, text: str, kind: type) -> object:
    try:
        if kind is bool:
            return {"1": True, "true": True, "0": False, "false": False}[text.lower()]
        return kind(text)
    except (KeyError, ValueError) as error:
        raise SettingInvalid(
            f"{variable} is {text!r}, expected {kind.__name__}.",
            next_step=f"Unset {variable} for the default or give a value of that type.",
        ) from error


@dataclass(frozen=True, kw_only=True)
class Storage(Section):
    """Where state lives. Empty means: under the home."""

    database: str = setting("", env="MACADAM_DATABASE", unit="URL", why="SQLite under the home needs no server")
    objects: str = setting("", env="MACADAM_OBJECTS", unit="URL", why="a local directory needs no server")
    online: str = setting("", env="MACADAM_ONLINE", unit="URL", why="LMDB reads in microseconds and needs no server")
    runner: str = setting("subprocess", env="MACADAM_RUNNER", unit="adapter", why="one machine is enough to start with")


@dataclass(frozen=True, kw_only=True)
class Server(Section):
    """Where the control plane and the gateway listen, and what they refuse."""

    host: str = setting("127.0.0.1", env="MACADAM_HOST", unit="address", why="nothing is exposed unless asked for")
    port: int = setting(8480, env="MACADAM_PORT", unit="TCP port", why="not taken by common tools")
    gateway_port: int = setting(8481, env="MACADAM_GATEWAY_PORT", unit="TCP port", why="next to the control plane")
    max_body: int = setting(
        32 * 1024 * 1024, env="MACADAM_MAX_BODY", unit="bytes", why="a request is held in memory, a dataset is not"
    )
    open_tiles: bool = setting(
        True, env="MACADAM_OPEN_TILES", unit="0 or 1", why="a ledger's checkpoints and hashes are there to be compared"
    )
    health_timeout: float = setting(
        15.0, env="MACADAM_HEALTH_TIMEOUT", unit="s", why="a cold disk may take several seconds to import"
    )


@dataclass(frozen=True, kw_only=True)
class Sql(Section):
    """The embedded database."""

    busy_timeout: float = setting(
        20.0, env="MACADAM_SQL_BUSY", unit="s", why="a CLI call may wait for a server's group commit, not for long"
    )
    group_limit: int = setting(
        256, env="MACADAM_SQL_GROUP", unit="transactions", why="bounds the wait of the first caller of a group"
    )


@dataclass(frozen=True, kw_only=True)
class Journal(Section):
    """How prediction records reach the disk."""

    fsync_every: float = setting(
        0.020, env="MACADAM_JOURNAL_FSYNC", unit="s", why="a power cut loses at most this much; 0: before each answer"
    )
    segment_bytes: int = setting(
        64 * 1024 * 1024, env="MACADAM_JOURNAL_SEGMENT_BYTES", unit="bytes", why="a Parquet file of useful size"
    )
    segment_age: float = setting(
        30.0, env="MACADAM_JOURNAL_SEGMENT_AGE", unit="s", why="receipts are final within this time"
    )


@dataclass(frozen=True, kw_only=True)
class Prices(Section):
    """What compute costs when no bill says better."""

    cpu_hour_micros: int = setting(
        48_000, env="MACADAM_PRICE_CPU_HOUR", unit="µ$ per core-hour", why="typical on-demand price of a vCPU, 2026"
    )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All sections and the home directory that embedded state lives under."""

    home: Path
    storage: Storage = dataclasses.field(default_factory=Storage)
    server: Server = dataclasses.field(default_factory=Server)
    sql: Sql = dataclasses.field(default_factory=Sql)
    journal: Journal = dataclasses.field(default_factory=Journal)
    prices: Prices = dataclasses.field(default_factory=Prices)

    @classmethod
    def load(cls, environment: Mapping[str, str] | None = None, *, home: Path | None = None) -> "Settings":
        """Reads the environment. home: overrides MACADAM_HOME, whose default is `.macadam` here.

        Raises SettingInvalid.
        """
        env = os.environ if environment is None else environment
        place = home or Path(env.get("MACADAM_HOME", ".macadam"))
        return cls(
            home=place.absolute(),
            storage=Storage.read(env),
            server=Server.read(env),
            sql=Sql.read(env),
            journal=Journal.read(env),
            prices=Prices.read(env),
        )

"""What all SQL tables share: one MetaData, and column types that keep instants aware and JSON readable.

Each room declares its own tables on `metadata` in its `schema.py`; migrations create them.
"""

from datetime import datetime

import msgspec
import sqlalchemy as sa
from sqlalchemy.types import TypeDecorator

from macadam.values import instant, parse_instant

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


WHOLE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
"""A whole number of 64 bits on every database: SQLite's INTEGER is one, and only that counts up by itself."""


class Instant(TypeDecorator[datetime]):
    """An aware UTC datetime, stored as RFC 3339 text with microseconds: sorts by time on every database."""

    impl = sa.String(27)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> str | None:
        return None if value is None else instant(value)

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> datetime | None:
        return None if value is None else parse_instant(value)


class Json(TypeDecorator[object]):
    """Any JSON-able value, stored as text."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: object, dialect: sa.Dialect) -> str | None:
        return None if value is None else msgspec.json.encode(value).decode()

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> object:
        return None if value is None else msgspec.json.decode(value)

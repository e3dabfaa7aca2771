"""Migrations make exactly the tables that the rooms declare."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

import macadam.app.platform  # noqa: F401 - declares the tables of the kernel
from macadam import operations
from macadam.adapters.sqlite import Sqlite
from macadam.schema import metadata
from macadam.settings import Settings

operations.load()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sa.Inspector]:
    home = tmp_path_factory.mktemp("home")
    sql = Sqlite(Path(home) / "macadam.sqlite", Settings.load({}, home=home).sql)
    sql.migrate()
    with sql.read() as connection:
        yield sa.inspect(connection)
    sql.close()


def test_no_table_is_missing_or_left_over(made: sa.Inspector) -> None:
    assert set(made.get_table_names()) == {*metadata.tables, "alembic_version"}


@pytest.mark.parametrize("name", sorted(metadata.tables))
def test_a_table_is_what_its_room_declares(made: sa.Inspector, name: str) -> None:
    table = metadata.tables[name]
    dialect = made.bind.dialect

    def kind(column: sa.Column[object]) -> str:
        declared = column.type.impl if isinstance(column.type, sa.TypeDecorator) else column.type
        return str(declared.compile(dialect))

    assert {c["name"]: (str(c["type"]), c["nullable"]) for c in made.get_columns(name)} == {
        c.name: (kind(c), c.nullable) for c in table.columns
    }
    assert made.get_pk_constraint(name)["constrained_columns"] == [c.name for c in table.primary_key.columns]
    assert {tuple(i["column_names"]) for i in made.get_indexes(name)} == {
        tuple(c.name for c in index.columns) for index in table.indexes
    }
    assert {tuple(u["column_names"]) for u in made.get_unique_constraints(name)} == {
        tuple(c.name for c in u.columns) for u in table.constraints if isinstance(u, sa.UniqueConstraint)
    }

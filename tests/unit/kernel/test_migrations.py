"""Migrations make exactly the tables that the rooms declare."""

from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from databases import KINDS, server

import macadam.app.platform  # noqa: F401 - declares the tables of the kernel
from macadam import operations
from macadam.adapters.postgres import Postgres
from macadam.adapters.sqlite import Sqlite
from macadam.ports import Sql
from macadam.schema import metadata
from macadam.settings import Settings

operations.load()


@pytest.fixture(scope="module", params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[sa.Inspector]:
    home = tmp_path_factory.mktemp("home")
    settings = Settings.load({}, home=home).sql
    on_postgres = request.param == "postgres"
    sql: Sql = Postgres(server().database(), settings) if on_postgres else Sqlite(home / "macadam.sqlite", settings)
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
        if dialect.name == "postgresql" and isinstance(declared, sa.String):
            return 'TEXT COLLATE "C"'  # whatever length is declared, as in SQLite
        return _one_spelling(str(declared.compile(dialect)))

    assert {c["name"]: (_one_spelling(str(c["type"])), c["nullable"]) for c in made.get_columns(name)} == {
        c.name: (kind(c), c.nullable) for c in table.columns
    }
    assert made.get_pk_constraint(name)["constrained_columns"] == [c.name for c in table.primary_key.columns]
    assert {tuple(i["column_names"]) for i in made.get_indexes(name) if "duplicates_constraint" not in i} == {
        tuple(c.name for c in index.columns) for index in table.indexes
    }
    assert {tuple(u["column_names"]) for u in made.get_unique_constraints(name)} == {
        tuple(c.name for c in u.columns) for u in table.constraints if isinstance(u, sa.UniqueConstraint)
    }


def _one_spelling(kind: str) -> str:
    return {"DOUBLE PRECISION": "FLOAT"}.get(kind, kind)

"""Brings a database to this release's schema, one numbered step at a time (Alembic).

Alembic is imported only when there is a step to take: a start on a current database costs one query.
"""

from pathlib import Path

import sqlalchemy as sa

# The last step of the chain in `versions/`; a test holds it equal to Alembic's own head.
HEAD = "0027_restored_bills"


def upgrade(connection: sa.Connection) -> None:
    """Runs the missing steps inside the caller's transaction."""
    if not is_current(connection):
        _run(connection)


def is_current(connection: sa.Connection) -> bool:
    """Whether there is nothing to do: what a start usually finds."""
    return _current(connection) == HEAD


def _current(connection: sa.Connection) -> str:
    if not sa.inspect(connection).has_table("alembic_version"):
        return ""
    return str(connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar())


def _run(connection: sa.Connection) -> None:
    from alembic.migration import MigrationContext  # noqa: PLC0415 - 0.3 s, needed once per release
    from alembic.operations import Operations  # noqa: PLC0415
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    scripts = ScriptDirectory(str(Path(__file__).parent))

    def steps(revision: object, _context: MigrationContext) -> list[object]:
        return list(scripts._upgrade_revs("head", revision))  # type: ignore[arg-type]  # noqa: SLF001 - as alembic.command does

    # The caller's transaction is the only one: transactional_ddl off keeps Alembic from opening its own.
    context = MigrationContext.configure(connection, opts={"fn": steps, "transactional_ddl": False})
    with Operations.context(context):
        context.run_migrations()

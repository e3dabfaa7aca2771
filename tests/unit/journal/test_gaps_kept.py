"""Answers without a record, as sealing keeps them: none is lost where a gateway was killed while it told them."""

import uuid
from pathlib import Path

import sqlalchemy as sa

from macadam.access.types import CreateProject
from macadam.journal.gaps import FORM, GAP, MAGIC, GapCounter
from macadam.journal.schema import gaps
from macadam.journal.types import SealClosed
from macadam.journal.writer import JournalWriter
from macadam.testing import open_platform
from macadam.values import utc_now


def test_a_gap_that_grew_between_its_header_and_a_kill_is_kept_with_the_larger_number(tmp_path: Path) -> None:
    folder = tmp_path / "home" / "journal" / "shop"
    with open_platform(tmp_path / "home") as platform:
        platform.call(CreateProject(project="shop"))
        counter = GapCounter(folder)
        counter.add("disk-full", 4, utc_now())
        told = counter.pending()
        assert told is not None
        with JournalWriter(folder, gateway="g", worker=0, project="shop", gap=counter):
            pass
        # What a kill leaves that comes after the header was durable, and before the counter knows it.
        left = FORM.pack(MAGIC, uuid.UUID(told.id).bytes, 1, 2, 7, 0, 0)
        (folder / f"{told.id}{GAP}").write_bytes(left)
        with JournalWriter(folder, gateway="g", worker=0, project="shop"):
            pass
        assert list(folder.glob(f"*{GAP}")) == []
        platform.call(SealClosed(project="shop"))
        with platform.ports.sql.read() as sql:
            kept = [tuple(row) for row in sql.execute(sa.select(gaps.c.id, gaps.c.answers))]
    assert kept == [(told.id, 7)]

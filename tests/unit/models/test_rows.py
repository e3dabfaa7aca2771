import errno
import os

import pyarrow as pa
import pytest
from unit.models import worlds

from macadam.errors import InvalidInput, StorageFull
from macadam.models import launch, rows
from macadam.models.rows import About, Feature, Rows

ABOUT = About(features=(Feature(name="x", kind="number"),))


def given(keys, *, name="_key"):
    return Rows(table=pa.table({"x": [1.0] * len(keys), "label": [0] * len(keys), name: keys}), about=ABOUT)


def test_a_training_set_reads_back_with_its_description(tmp_path):
    path = tmp_path / "rows.parquet"
    path.write_bytes(worlds.parquet(worlds.rows(20, seed=0)))
    found = rows.read(path)
    assert found.about == worlds.ABOUT
    assert found.identity == ["_at", "_flight"]


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({}, "does not say which columns are features"),
        ({b"macadam": b"{"}, "description is damaged"),
        ({b"macadam": b'{"features":[{"name":"y","kind":"number"}]}'}, "lacks the columns y"),
    ],
)
def test_a_file_that_is_no_training_set_is_refused(tmp_path, metadata, said):
    path = tmp_path / "rows.parquet"
    path.write_bytes(worlds.parquet(pa.table({"x": [1.0], "label": [0]}).replace_schema_metadata(metadata)))
    with pytest.raises(InvalidInput, match=said):
        rows.read(path)


def test_shared_rows_are_counted_by_time_and_keys_and_null_equals_null():
    assert rows.overlap(given(["a", "b", None]), given(["b", None, "c", "c"])) == 2
    assert rows.overlap(given(["a"]), given(["b"])) == 0


def test_rows_that_cannot_be_compared_are_refused_not_taken_for_disjoint():
    with pytest.raises(InvalidInput, match="by different columns"):
        rows.overlap(given(["a"]), given(["a"], name="_other"))
    nameless = Rows(table=pa.table({"x": [1.0], "label": [0]}), about=ABOUT)
    with pytest.raises(InvalidInput, match="by different columns"):
        rows.overlap(nameless, nameless)


def test_labels_must_all_be_there_and_binary_where_that_is_asked():
    missing = Rows(table=pa.table({"label": [0, None]}), about=ABOUT)
    with pytest.raises(InvalidInput, match="1 of 2 rows have no label"):
        missing.labels()
    with pytest.raises(InvalidInput, match="not all 0 or 1"):
        Rows(table=pa.table({"label": [0, 3]}), about=ABOUT).binary_labels()
    assert Rows(table=pa.table({"label": [0.0, 1.0]}), about=ABOUT).binary_labels().tolist() == [0, 1]


def test_what_a_killed_platform_left_in_its_workplace_is_removed_and_the_livings_is_not(tmp_path):
    dead, living = tmp_path / "run-4194305-x", tmp_path / f"run-{os.getpid()}-x"
    dead.mkdir()
    living.mkdir()
    with launch._workplace(tmp_path) as place:
        assert (place / "out").is_dir()
        assert not dead.exists()
        assert living.exists()
    assert not place.exists()


def test_a_full_disk_is_said_to_be_one(tmp_path):
    with pytest.raises(StorageFull, match="disk is full"), launch._workplace(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())

"""File sources: order, offsets, and the refusal of what is half there."""

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from macadam.data import files
from macadam.errors import SourceInvalid, TooLarge
from macadam.values import digest_of

COLUMNS = ("id", "name")


def put(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    return tmp_path


def parquet(rows):
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink)
    return sink.getvalue().to_pybytes()


def test_files_come_in_the_order_of_their_names_and_only_those_of_the_template(tmp_path):
    for name in ("2013-02.csv", "2013-01.csv", "2013-10.csv", "2013-03.part"):
        put(tmp_path, name, b"id,name\n")
    assert files.list_files(tmp_path, "{month}.csv") == ("2013-01.csv", "2013-02.csv", "2013-10.csv")


@pytest.mark.parametrize("template", ["../x.csv", "/etc/*.csv", "none-*.csv"])
def test_a_template_that_leads_out_or_matches_nothing_is_refused(tmp_path, template):
    with pytest.raises(SourceInvalid) as caught:
        files.list_files(tmp_path, template)
    assert caught.value.next_step


def test_a_link_out_of_the_folder_and_a_missing_folder_are_refused(tmp_path):
    (tmp_path / "in").mkdir()
    put(tmp_path, "outside.csv", b"id,name\n")
    (tmp_path / "in" / "a.csv").symlink_to(tmp_path / "outside.csv")
    with pytest.raises(SourceInvalid, match="links out"):
        files.list_files(tmp_path / "in", "*.csv")
    with pytest.raises(SourceInvalid, match="does not exist"):
        files.list_files(tmp_path / "gone", "*.csv")


def test_csv_stays_text_in_the_contracts_order_with_its_offset(tmp_path):
    data = b'name,id\n"a, b\nc",007\nNA,\n'
    batch = files.read(put(tmp_path, "a.csv", data), "a.csv", COLUMNS)
    assert batch.rows.to_pydict() == {"id": ["007", ""], "name": ["a, b\nc", "NA"]}
    assert batch.offset == files.FileOffset(path="a.csv", size=len(data), sha256=digest_of(data))
    assert batch.text


def test_parquet_keeps_its_types(tmp_path):
    data = parquet(pa.table({"id": [1, 2], "name": ["a", None]}))
    batch = files.read(put(tmp_path, "a.parquet", data), "a.parquet", COLUMNS)
    assert batch.rows.schema.types == [pa.int64(), pa.string()]
    assert not batch.text


def test_json_lines_keep_each_value_as_it_was_written(tmp_path):
    data = b'{"id": 1.50, "name": "a\\"b"}\n\n{"name": null, "id": {"x": [1]}}\n'
    batch = files.read(put(tmp_path, "a.jsonl", data), "a.jsonl", COLUMNS)
    assert batch.rows.to_pydict() == {"id": ["1.50", '{"x": [1]}'], "name": ['a"b', None]}


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.csv", b"id,name\n1,a\n2", "half-written: it ends in the middle of a line"),
        ("a.csv", b"id,name\n1,a\n2\n", "row 3 has 1 fields, expected 2"),
        ("a.csv", b"id,name\n1,a,b\n", "row 2 has 3 fields, expected 2"),
        ("a.csv", b"id,nam\n1,a\n", "lacks 'name'; has surplus 'nam'"),
        ("a.csv", b"id,name,id\n1,a,2\n", "repeats 'id'"),
        ("a.csv", b"id,name\n1,\xff\n", "is not CSV in UTF-8"),
        ("a.csv", b"", "is empty"),
        ("a.parquet", b"PAR1 and then nothing more", "half-written: its footer is missing"),
        ("a.parquet", b"PAR1\x00\x01\x02\x03\xff\xff\x00\x00PAR1", "is damaged"),
        ("a.parquet", b"id,name\n", "is not Parquet"),
        ("a.parquet", parquet(pa.table({"id": [1]})), "lacks 'name'"),
        ("a.jsonl", b'{"id": 1, "name": "a"}\n{"id": 2, "na', "half-written"),
        ("a.jsonl", b'{"id": 1}\n', "line 1, does not have the contract's columns: it lacks 'name'"),
        ("a.jsonl", b"[1]\n", "line 1, is not a JSON object"),
        ("a.txt", b"x\n", "is of no known format"),
    ],
)
def test_a_file_that_is_half_there_or_of_the_wrong_shape_is_refused_in_words(tmp_path, name, data, words):
    with pytest.raises(SourceInvalid) as caught:
        files.read(put(tmp_path, name, data), name, COLUMNS)
    assert words in str(caught.value)
    assert name in str(caught.value)
    assert caught.value.next_step


def test_every_cut_of_a_parquet_file_is_refused(tmp_path):
    whole = parquet(pa.table({"id": list(range(50)), "name": ["a"] * 50}))
    for length in range(1, len(whole), 41):
        with pytest.raises(SourceInvalid):
            files.read(put(tmp_path, "a.parquet", whole[:length]), "a.parquet", COLUMNS)


def test_a_missing_file_and_one_over_the_limit_are_refused(tmp_path):
    with pytest.raises(SourceInvalid, match="cannot be read"):
        files.read(tmp_path, "gone.csv", COLUMNS)
    with pytest.raises(TooLarge):
        files.read(put(tmp_path, "a.csv", b"id,name\n1,a\n"), "a.csv", COLUMNS, max_bytes=5)


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path, monkeypatch):
    put(tmp_path, "a.csv", b"id,name\n1,a\n")
    fstat, calls = os.fstat, []

    def growing(descriptor):
        if calls:
            with (tmp_path / "a.csv").open("ab") as file:
                file.write(b"2,b\n")
        calls.append(descriptor)
        return fstat(descriptor)

    monkeypatch.setattr(files.os, "fstat", growing)
    with pytest.raises(SourceInvalid, match="changed while it was read"):
        files.read(tmp_path, "a.csv", COLUMNS)

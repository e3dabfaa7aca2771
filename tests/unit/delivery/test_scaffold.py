"""A new project: written whole, the same each time, and right by its own rules."""

from pathlib import Path

import pytest

from macadam.data import contracts
from macadam.delivery import project, scaffold
from macadam.errors import Conflict, InvalidInput
from macadam.models import gates


def test_a_new_project_reads_as_one_and_its_parts_parse(tmp_path: Path) -> None:
    place = scaffold.init(tmp_path, "my-parcels")
    found = project.read(place)
    assert found.name == "my-parcels"
    assert [Path(name).name for name in found.files["parcels"]] == [f"parcels-2025-0{m}.csv" for m in range(1, 6)]
    assert contracts.parse(found.contracts["parcels"]).id == "parcels"
    assert gates.parse(found.gates["late-parcel"]).approvals == 0
    assert "{{" not in "".join(p.read_text() for p in place.rglob("*") if p.is_file())
    assert (place / ".gitignore").read_text().startswith(".macadam/")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["my-parcels"]


def test_its_data_is_the_same_each_time() -> None:
    assert list(scaffold.parcels()) == list(scaffold.parcels())


def test_an_empty_directory_is_taken_and_a_used_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    scaffold.init(tmp_path, "one")
    with pytest.raises(Conflict, match="there already"):
        scaffold.init(tmp_path, "one")
    (tmp_path / "two").write_text("a file")
    with pytest.raises(Conflict, match="there already"):
        scaffold.init(tmp_path, "two")


@pytest.mark.parametrize("name", ["", "Upper", "../up", "with space", "1st"])
def test_what_is_no_name_is_refused_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInput, match="no name for a project"):
        scaffold.init(tmp_path, name)
    assert list(tmp_path.iterdir()) == []

import subprocess
import sys
from pathlib import Path

import pytest
from unit.features import flights

from macadam.errors import NotFound, UserCodeFailed
from macadam.features import define, load


def write(folder: Path, text: str) -> Path:
    file = folder / "features.py"
    file.write_text(text, encoding="utf-8")
    return file


def test_the_flights_features_are_loaded_in_a_process_of_their_own():
    definitions = define.decode(load.definitions_of(flights.FILE))
    assert definitions.service("delay_features") == flights.service()


def test_what_the_file_prints_does_not_mix_with_its_definitions(tmp_path):
    assert load.definitions_of(write(tmp_path, "print('hello')")) == {"services": []}


def test_a_file_that_raises_gives_its_own_traceback(tmp_path):
    with pytest.raises(UserCodeFailed, match="ZeroDivisionError") as error:
        load.definitions_of(write(tmp_path, "one = 1\none / 0\n"))
    assert 'features.py", line 2' in str(error.value.details["traceback"])


def test_a_wrong_definition_gives_its_sentence(tmp_path):
    text = "from macadam.features.define import Entity\nEntity(name='carrier', keys=())\n"
    with pytest.raises(UserCodeFailed, match="Entity 'carrier' has no keys"):
        load.definitions_of(write(tmp_path, text))


def test_a_file_that_does_not_parse_or_ends_the_process_is_refused(tmp_path):
    with pytest.raises(UserCodeFailed, match="SyntaxError"):
        load.definitions_of(write(tmp_path, "def\n"))
    with pytest.raises(UserCodeFailed, match="SystemExit"):
        load.definitions_of(write(tmp_path, "raise SystemExit(0)\n"))


def test_a_file_that_does_not_end_is_stopped(tmp_path):
    with pytest.raises(UserCodeFailed, match="did not finish"):
        load.definitions_of(write(tmp_path, "while True: pass\n"), timeout=1)


def test_credentials_are_not_given_to_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("MACADAM_TOKEN", "secret")
    text = "import os\nif 'MACADAM_TOKEN' in os.environ: raise ValueError('seen')\n"
    assert load.definitions_of(write(tmp_path, text)) == {"services": []}


def test_its_neighbours_can_be_imported_and_hide_nothing(tmp_path):
    (tmp_path / "msgspec.py").write_text("raise ValueError('hidden')", encoding="utf-8")
    (tmp_path / "airports.py").write_text("ZONES = 3", encoding="utf-8")
    assert load.definitions_of(write(tmp_path, "import airports, msgspec\n")) == {"services": []}


def test_a_missing_file_is_not_found(tmp_path):
    with pytest.raises(NotFound, match="no file"):
        load.definitions_of(tmp_path / "features.py")


def test_defining_features_loads_nothing_heavy():
    heavy = "{'duckdb', 'pyarrow', 'numpy', 'pandas'}"
    code = f"import sys, macadam.features.define, macadam.features.service; print({heavy} & set(sys.modules) or '')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.strip() == ""

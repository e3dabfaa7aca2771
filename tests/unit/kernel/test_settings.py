import dataclasses
from pathlib import Path

import pytest

from macadam.errors import SettingInvalid
from macadam.settings import Section, Settings


def sections() -> list[Section]:
    loaded = Settings.load({})
    found = [getattr(loaded, field.name) for field in dataclasses.fields(Settings)]
    return [section for section in found if isinstance(section, Section)]


def test_without_an_environment_everything_has_its_default() -> None:
    loaded = Settings.load({})
    assert (loaded.server.port, loaded.server.gateway_port, loaded.server.host) == (8480, 8481, "127.0.0.1")
    assert loaded.home == Path.cwd() / ".macadam"


def test_the_environment_sets_values_of_their_type() -> None:
    loaded = Settings.load({"MACADAM_PORT": "9000", "MACADAM_JOURNAL_FSYNC": "0", "MACADAM_HOME": "/x"})
    assert (loaded.server.port, loaded.journal.fsync_every, loaded.home) == (9000, 0.0, Path("/x"))


def test_an_explicit_home_wins(tmp_path: Path) -> None:
    assert Settings.load({"MACADAM_HOME": "/x"}, home=tmp_path).home == tmp_path


def test_a_value_of_the_wrong_type_names_its_variable() -> None:
    with pytest.raises(SettingInvalid, match="MACADAM_PORT is 'many', expected int"):
        Settings.load({"MACADAM_PORT": "many"})


def test_every_setting_says_its_variable_unit_and_reason_once() -> None:
    fields = [field for section in sections() for field in dataclasses.fields(section)]
    variables = [field.metadata["env"] for field in fields]
    assert len(variables) == len(set(variables))
    assert all(name.startswith("MACADAM_") for name in variables)
    assert all(field.metadata["unit"] and field.metadata["why"] for field in fields)

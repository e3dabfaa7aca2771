"""One furnished home for all tests of the room, copied for each: training takes seconds."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from unit.serving import homes

from macadam.app.platform import LOCAL_TOKEN, Platform
from macadam.serving.types import Deploy


@pytest.fixture(scope="session")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("furnished") / "home"
    homes.furnish(home)
    return home


@pytest.fixture
def home(furnished: Path, tmp_path: Path) -> Path:
    place = tmp_path / "home"
    shutil.copytree(furnished, place)
    return place


@pytest.fixture
def platform(home: Path) -> Iterator[Platform]:
    with homes.open_home(home) as opened:
        yield opened


@pytest.fixture
def token(platform: Platform) -> str:
    return platform.ports.secrets.get(LOCAL_TOKEN).decode()


@pytest.fixture
def deployed(platform: Platform) -> Platform:
    platform.call(Deploy(project=homes.PROJECT, endpoint=homes.ENDPOINT, model=homes.MODEL, version="1"))
    return platform

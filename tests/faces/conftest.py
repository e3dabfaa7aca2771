"""One platform for a module's tests, its HTTP face, and callers with and without rights."""

from collections.abc import Iterator

import pytest

from macadam.access.types import CreateProject
from macadam.app.platform import Platform
from macadam.testing import Http, local_token, open_platform, token_of


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with open_platform(tmp_path_factory.mktemp("faces") / "home") as opened:
        opened.call(CreateProject(project="flights", owner="principal:local"))
        yield opened


@pytest.fixture(scope="module")
def http(platform: Platform) -> Iterator[Http]:
    with Http(platform) as face:
        yield face


@pytest.fixture(scope="module")
def admin(platform: Platform) -> str:
    return local_token(platform)


@pytest.fixture(scope="module")
def nobody(platform: Platform) -> str:
    """A token of a known person without any role."""
    return token_of(platform, "principal:nobody")


@pytest.fixture(scope="module")
def scoped(platform: Platform) -> str:
    """A token of an administrator on which a single permission is written, that no operation asks for."""
    return token_of(platform, "principal:scoped", {"*": "admin"}, scopes=("nothing:asked",))

"""One project that has gone the road, for all tests that begin where it ends: they work on copies."""

import pytest
from acceptance.roads import Way, travel


@pytest.fixture(scope="session")
def way(tmp_path_factory: pytest.TempPathFactory) -> Way:
    return travel(tmp_path_factory.mktemp("way"))

"""A platform six hours after the readings that the tests of the series deliver begin."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from unit.compute.telemetry.fleets import START

from macadam.app.platform import Platform
from macadam.testing import Clock, open_platform


@pytest.fixture
def clock() -> Clock:
    return Clock(START + timedelta(hours=6))


@pytest.fixture
def platform(tmp_path: Path, clock: Clock) -> Iterator[Platform]:
    with open_platform(tmp_path / "home", clock=clock) as opened:
        yield opened

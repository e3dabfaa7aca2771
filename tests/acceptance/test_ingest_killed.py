"""An ingesting process is killed (SIGKILL) at chosen and at random moments, and two ingest at once.

MACADAM_SOAK=1 kills many more times.
"""

import os
import random
import time

import pytest
from acceptance.ingest_state import require_whole, start, write_files
from acceptance.ingest_worker import POINTS
from unit.data import orders

from macadam.testing import open_platform

SOAK = os.environ.get("MACADAM_SOAK") == "1"
pytestmark = pytest.mark.slow
KILLED = -9


@pytest.fixture
def home(tmp_path):
    with open_platform(tmp_path / "home") as platform:
        orders.register(platform, tmp_path / "drop")
    return tmp_path / "home"


@pytest.mark.parametrize("point", POINTS)
def test_a_process_killed_there_leaves_each_file_taken_whole_or_not_at_all(home, tmp_path, point):
    write_files(tmp_path / "drop", 3)
    worker = start(home, point)
    assert worker.wait(60) == KILLED
    with open_platform(home) as platform:
        taken = require_whole(platform)
        assert taken == ({"000.csv", "001.csv"} if point == "committed" else {"000.csv"})
        orders.ingest(platform)
        assert len(require_whole(platform)) == 3


def test_killed_at_random_moments_no_row_is_lost_or_doubled(home, tmp_path):
    rounds, files = (100, 400) if SOAK else (6, 40)
    seed = int(os.environ.get("MACADAM_SEED", "7"))
    moments = random.Random(seed)  # noqa: S311 - repeatable, not secret
    write_files(tmp_path / "drop", files)
    killed = 0
    for _ in range(rounds):
        worker = start(home)
        time.sleep(moments.uniform(0, 0.5))
        worker.kill()
        killed += worker.wait(60) == KILLED
        with open_platform(home) as platform:
            require_whole(platform)
    assert killed, "every worker was done before its kill: write more files"
    with open_platform(home) as platform:
        orders.ingest(platform)
        assert len(require_whole(platform)) == files, f"seed {seed}"


def test_two_processes_that_ingest_one_source_at_once_take_each_file_once(home, tmp_path):
    files = 100 if SOAK else 12
    write_files(tmp_path / "drop", files)
    workers = [start(home) for _ in range(2)]
    assert [worker.wait(240) for worker in workers] == [0, 0]
    with open_platform(home) as platform:
        assert len(require_whole(platform)) == files

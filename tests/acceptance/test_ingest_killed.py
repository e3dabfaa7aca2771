"""An ingesting process is killed (SIGKILL) at chosen and at random moments, and two ingest at once.

MACADAM_SOAK=1 kills many more times.
"""

import os
import random
import time

import pytest
from acceptance.ingest_state import require_whole, start, take_all, write_files
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
    with start(home, point) as worker:
        assert worker.wait(60) == KILLED
    with open_platform(home) as platform:
        taken = require_whole(platform)
        assert taken == ({"000.csv", "001.csv"} if point == "committed" else {"000.csv"})
        orders.ingest(platform)
        assert len(require_whole(platform)) == 3


def test_killed_at_random_moments_no_row_is_lost_or_doubled(home, tmp_path):
    rounds, files = (50, 300) if SOAK else (6, 60)
    seed = int(os.environ.get("MACADAM_SEED", "7"))
    moments = random.Random(seed)
    write_files(tmp_path / "drop", files)
    interrupted = 0
    for _ in range(rounds):
        with start(home) as worker:
            for _ in range(moments.randint(1, 6)):  # the first call, which loads much, and later ones
                worker.stdout.readline()
            time.sleep(moments.uniform(0, 0.15))
            worker.kill()
            interrupted += worker.wait(60) == KILLED
        with open_platform(home) as platform:
            require_whole(platform)
    assert interrupted, "every worker was done before its kill: write more files"
    with open_platform(home) as platform:
        take_all(platform)
        assert len(require_whole(platform)) == files, f"seed {seed}"


def test_two_processes_that_ingest_one_source_at_once_take_each_file_once(home, tmp_path):
    files = 100 if SOAK else 12
    write_files(tmp_path / "drop", files)
    with start(home) as one, start(home) as other:
        assert (one.wait(240), other.wait(240)) == (0, 0)
    with open_platform(home) as platform:
        assert len(require_whole(platform)) == files

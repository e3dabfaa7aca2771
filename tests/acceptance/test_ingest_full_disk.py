"""Ingesting into a home whose disk is full: a clear error, the state as before, and it goes on once there is space.

Needs a small file system of its own, so root; skipped otherwise.
"""

import os
import subprocess

import pytest
from acceptance.ingest_state import require_whole, write_files
from unit.data import orders

from macadam.errors import StorageFull
from macadam.testing import open_platform

SIZE = 24 * 1024 * 1024
SOAK = os.environ.get("MACADAM_SOAK") == "1"
pytestmark = pytest.mark.slow
BLOCK = 4096


@pytest.fixture
def disk(tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"a small file system cannot be mounted: {made.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def fill(disk, *, leaving):
    """Takes all space but `leaving` bytes; returns the file that holds it."""
    filler = disk / "filler"
    found = os.statvfs(disk)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, found.f_bavail * found.f_frsize - leaving)
    return filler


def refusal(platform, name):
    """The error that ingesting a file ends in, if there is no space for it."""
    try:
        orders.ingest(platform, name)
    except StorageFull as error:
        return error
    return None


def test_on_a_full_disk_nothing_is_taken_and_it_works_once_there_is_space(disk, tmp_path):
    steps = range(0, 60, 3 if SOAK else 6)
    write_files(tmp_path / "drop", 2 + len(steps))
    with open_platform(disk / "home") as platform:
        orders.register(platform, tmp_path / "drop")
        orders.ingest(platform, "000.csv")
        failed = 0
        for number, blocks in enumerate(steps, start=1):
            name, before = f"{number:03}.csv", require_whole(platform)
            filler = fill(disk, leaving=blocks * BLOCK)
            told = refusal(platform, name)
            filler.unlink()
            if told:
                failed += 1
                assert told.next_step
                assert require_whole(platform) == before
                orders.ingest(platform, name)
            assert require_whole(platform) == before | {name}
        assert failed >= 2
    with open_platform(disk / "home") as platform:
        assert orders.ingest(platform).rows == (2 + len(steps)) * 40
        require_whole(platform)

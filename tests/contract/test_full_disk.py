"""A disk that is really full: a small tmpfs. Every adapter says so and keeps what it had.

Needs the right to mount; elsewhere the adapters' own suites stand in with injected errors.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from macadam.adapters.iceberg import IcebergTables
from macadam.adapters.lmdb import LmdbStore
from macadam.adapters.local_objects import LocalObjects
from macadam.adapters.local_secrets import LocalSecrets
from macadam.adapters.sqlite import Sqlite
from macadam.adapters.subprocess_runner import SubprocessRunner
from macadam.errors import StorageFull
from macadam.ports import Job
from macadam.settings import Sql as SqlSettings


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(place)]
    if (
        sys.platform != "linux"
        or os.geteuid() != 0
        or subprocess.run(command, capture_output=True, check=False).returncode
    ):
        pytest.skip("mounting a tmpfs is not allowed here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path) -> Path:
    file = place / "fill"
    with file.open("wb", buffering=0) as out:
        try:
            while True:
                out.write(b"x" * 4096)
        except OSError:
            return file


def refused(act: Callable[[], object]) -> None:
    with pytest.raises(StorageFull, match="full"):
        act()


def test_every_adapter_says_that_the_disk_is_full_keeps_its_state_and_goes_on_when_there_is_space(small: Path) -> None:
    for folder in ("objects", "keys"):
        (small / folder).mkdir()
    tables, objects, secrets = IcebergTables(small / "w"), LocalObjects(small / "objects"), LocalSecrets(small / "keys")
    online, sql = LmdbStore(small / "online"), Sqlite(small / "m.sqlite", SqlSettings())
    first = tables.stage("p.t", pa.table({"a": range(1000)}), current="")
    online.put([(b"a", b"1")])
    sql.write(lambda c: c.exec_driver_sql("CREATE TABLE x(a)"))
    digest = objects.put(b"kept")
    objects.set_name("name", b"old")

    full = fill(small)
    before = {path for path in small.rglob("*") if path.is_file()}
    more = pa.table({"a": range(200_000)})
    refused(lambda: tables.stage("p.t", more, current=first.metadata_location))
    refused(lambda: online.put([(b"k%d" % i, b"y" * 1000) for i in range(2000)]))
    refused(
        lambda: sql.write(lambda c: [c.exec_driver_sql("INSERT INTO x VALUES (?)", ("z" * 4000,)) for _ in range(500)])
    )
    refused(lambda: objects.put(os.urandom(100_000)))
    refused(lambda: objects.set_name("name", b"n" * 100_000))
    refused(lambda: secrets.put("secret", b"s" * 100_000))
    job = Job(command=("python", "-c", "1"), directory=small, requirements="--no-index\nnope\n")
    refused(lambda: SubprocessRunner(small / "work").run(job))

    assert {path for path in small.rglob("*") if path.is_file() and "work" not in path.parts} == before
    assert tables.scan(first.metadata_location).num_rows == 1000
    assert online.get([b"a", b"k1"]) == [b"1", None]
    assert (objects.get(digest), objects.get_name("name")) == (b"kept", b"old")
    with sql.read() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM x").scalar() == 0

    full.unlink()
    assert tables.stage("p.t", pa.table({"a": range(10)}), current=first.metadata_location).rows_total == 1010
    online.put([(b"b", b"2")])
    assert sql.write(lambda c: c.exec_driver_sql("INSERT INTO x VALUES (1)").rowcount) == 1
    online.close()
    sql.close()

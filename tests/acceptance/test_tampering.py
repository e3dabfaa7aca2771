"""Whatever is changed, deleted or put in another order behind Macadam's back is found, and the finding names the thing."""

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from unit.data import orders
from unit.models import worlds

from macadam.access.types import CreatePrincipal
from macadam.app.platform import Platform
from macadam.errors import IntegrityError
from macadam.journal import layout
from macadam.journal.record import Prediction, encode
from macadam.journal.service import seal_segments
from macadam.journal.types import SealClosed
from macadam.journal.writer import JournalWriter
from macadam.ledger.types import ShowCheckpoint, ShowLog, VerifyLedger
from macadam.models import service as models
from macadam.models.types import RegisterVersion, Train
from macadam.settings import Settings
from macadam.values import instant, utc_now, uuid7

assert models.version
assert seal_segments

FEWEST_LEAVES = 257  # a full tile, its parent, and partial ones


def opened(home: Path) -> Platform:
    return Platform(Settings.load({}, home=home))


class World:
    """A home with each kind of evidence in it, a copy of it to put back, and an older copy."""

    def __init__(self, place: Path) -> None:
        self.home, self.copy, self.older = place / "home", place / "copy", place / "older"
        with opened(self.home) as platform:
            self._fill(platform, place)
        shutil.copytree(self.home, self.copy)
        self.since = self.checkpoint()

    def _fill(self, platform: Platform, place: Path) -> None:
        orders.register(platform, place / "files")
        for number in range(2):
            orders.write(place / "files", f"{number}.csv", range(number * 10, number * 10 + 10))
            orders.ingest(platform)
        for name in ("early", "late"):
            self._model(platform, place, name)
            self._segment(platform)
        while len(platform.call(ShowLog(limit=1000)).entries) < FEWEST_LEAVES:
            platform.call(CreatePrincipal(principal=f"principal:p{uuid7()}"))

    def _model(self, platform: Platform, place: Path, name: str) -> None:
        (place / name).mkdir()
        (place / name / "train.py").write_text(worlds.TRAIN)
        sets = {
            split: worlds.plant(platform, f"{name}_{split}", worlds.rows(200, seed=start, start=start), project="shop")
            for split, start in (("train", 0), ("tune", 5000))
        }
        run = platform.call(
            Train(project="shop", model=name, source=str(place / name), training_sets=sets, params={"trees": len(name)})
        )
        platform.call(RegisterVersion(project="shop", model=name, run=run.ref))

    def _segment(self, platform: Platform) -> None:
        self.journal(3)
        platform.call(SealClosed(project="shop"))

    def journal(self, records: int) -> Path:
        """Writes a closed segment and returns its path."""
        folder = self.home / "journal" / "shop"
        with JournalWriter(folder, gateway="gw", worker=0, project="shop") as writer:
            for _ in range(records):
                writer.append(encode(prediction())).answered()
            return writer.path.with_suffix(layout.CLOSED)

    def restore(self, copy: Path | None = None) -> None:
        shutil.rmtree(self.home)
        shutil.copytree(copy or self.copy, self.home)

    def checkpoint(self) -> str:
        with opened(self.home) as platform:
            return platform.call(ShowCheckpoint()).note

    def problems(self, since: str = "") -> tuple[str, ...]:
        with opened(self.home) as platform:
            return platform.call(VerifyLedger(since=since, deep=True)).problems

    def sql(self, *statements: str) -> None:
        with sqlite3.connect(self.home / "macadam.sqlite", isolation_level=None) as connection:
            for statement in statements:
                assert connection.execute(statement).rowcount, f"{statement} changed nothing"
        connection.close()

    def facts(self, kind: str, field: str) -> list[str]:
        """A fact of the body of each leaf of one kind, oldest first."""
        with sqlite3.connect(self.home / "macadam.sqlite") as connection:
            rows = connection.execute("SELECT leaf FROM ledger_leaves WHERE kind = ? ORDER BY idx", (kind,)).fetchall()
        connection.close()
        return [body[field] for (leaf,) in rows if field in (body := msgspec.json.decode(leaf)["body"])]


def prediction() -> Prediction:
    return Prediction(
        id=uuid7(),
        at=instant(utc_now()),
        project="shop",
        endpoint="late",
        variant="live",
        version="model:late@1",
        model_digest=worlds.DIGEST,
        deployment=uuid7(),
        actor="service:replay",
        inputs={},
        features={},
        output={"score": 0.5},
        outcome="ok",
        stages_us={},
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("tampering"))


@pytest.fixture
def world(built: World) -> Iterator[World]:
    built.restore()
    yield built
    built.restore()


Files = Callable[[World], list[Path]]


def objects(kind: str, field: str) -> Files:
    def found(world: World) -> list[Path]:
        digests = dict.fromkeys(world.facts(kind, field))
        return [world.home / "objects" / "sha256" / digest[7:9] / digest[9:] for digest in digests]

    return found


def data_files(world: World) -> list[Path]:
    return sorted((world.home / "warehouse" / "shop" / "orders").rglob("*.parquet"))


def tiles(world: World) -> list[Path]:
    folder = world.home / "objects" / "names" / "ledger" / "tile" / "0"
    widest = max((folder / "001.p").iterdir(), key=lambda path: int(path.name))
    return [folder / "000", widest]


def higher_tiles(world: World) -> list[Path]:
    folder = world.home / "objects" / "names" / "ledger" / "tile"
    return [folder / "1" / "000.p" / "1", folder / "0" / "000"]


def flip(paths: list[Path]) -> None:
    data = bytearray(paths[0].read_bytes())
    data[len(data) // 2] ^= 1
    paths[0].write_bytes(data)


def delete(paths: list[Path]) -> None:
    paths[0].unlink()


def swap(paths: list[Path]) -> None:
    first, second = paths[0].read_bytes(), paths[1].read_bytes()
    assert first != second
    paths[0].write_bytes(second)
    paths[1].write_bytes(first)


FILES: dict[str, tuple[Files, str]] = {
    "tile": (tiles, "tile tile/0/000"),
    "tile of a higher level": (higher_tiles, "tile tile/1/000.p/1"),
    "model": (objects("models.register_version", "artifact"), "model:early@1: artifact"),
    "signature of a model": (objects("models.register_version", "signature"), "model:early@1: signature"),
    "training set": (objects("features.build_training_set", "digest"), "training_set:early_train@"),
    "environment's lock": (objects("models.train", "digest"), "environment:"),
    "contract": (objects("data.register_contract", "text_object"), "contract:orders@1.0.0: text_object"),
    "sealed segment": (objects("journal.seal_segments", "archive"), "segment:"),
    "table file": (data_files, ".parquet"),
}
ALONE = {"environment's lock", "contract", "signature of a model"}
"""Of which there is one: nothing to swap it with."""


def test_a_home_that_nobody_touched_is_as_recorded(world: World) -> None:
    with opened(world.home) as platform:
        found = platform.call(VerifyLedger(deep=True, since=world.since))
    assert found.problems == ()
    assert found.size >= FEWEST_LEAVES
    assert found.objects >= 10


@pytest.mark.parametrize("harm", [flip, delete, swap])
@pytest.mark.parametrize("what", FILES)
def test_a_file_that_was_changed_deleted_or_swapped_is_named(
    world: World, what: str, harm: Callable[[list[Path]], None]
) -> None:
    if harm is swap and what in ALONE:
        pytest.skip(f"there is one {what}")
    find, named = FILES[what]
    harm(find(world))
    problems = world.problems()
    assert any(named in problem for problem in problems), problems


LEAF = "UPDATE ledger_leaves SET {} WHERE idx = 7"
SWAP_LEAVES = [
    "UPDATE ledger_leaves SET idx = -1 WHERE idx = 7",
    "UPDATE ledger_leaves SET idx = 7 WHERE idx = 8",
    "UPDATE ledger_leaves SET idx = 8 WHERE idx = -1",
]
USED = "(SELECT id FROM ledger_leaves WHERE kind = 'data.ingest' LIMIT 1)"
INGEST = "the index of what it uses differs"
ROWS: dict[str, tuple[list[str], str]] = {
    "a byte of a leaf": (
        [LEAF.format("leaf = CAST(replace(CAST(leaf AS TEXT), 'principal:', 'principbl:') AS BLOB)")],
        "leaf 7 does not have the bytes of its hash",
    ),
    "a leaf and its hash column": (
        ["UPDATE ledger_leaves SET (leaf, hash) = (SELECT leaf, hash FROM ledger_leaves WHERE idx = 8) WHERE idx = 7"],
        "leaf 7: the index says",
    ),
    "the hash column": ([LEAF.format("hash = zeroblob(32)")], "leaf 7 does not have the bytes of its hash"),
    "the number": ([LEAF.format("idx = 100000")], "leaf 7 is missing or its number was changed"),
    "the order of commit": (
        ["UPDATE ledger_leaves SET seq = 100000 WHERE idx = 7"],
        "leaf 8 was committed before the leaf in front of it",
    ),
    "a deleted leaf": (["DELETE FROM ledger_leaves WHERE idx = 7"], "leaf 7 is missing"),
    "two swapped leaves": (SWAP_LEAVES, "no longer have the root"),
    **{
        f"the column {column}": ([LEAF.format(f"{column} = {column} || 'x'")], f"leaf 7: the index says {column}")
        for column in ("at", "kind", "outcome", "actor", "project", "subject")
    },
    "a leaf's id": ([LEAF.format("id = 'x'")], "leaf 7: the index says id"),
    "a reference": ([f"UPDATE ledger_uses SET ref = ref || 'x' WHERE leaf_id = {USED}"], INGEST),
    "a deleted reference": ([f"DELETE FROM ledger_uses WHERE leaf_id = {USED}"], INGEST),
    "an added reference": ([f"INSERT INTO ledger_uses VALUES ({USED}, 'model:late@1')"], INGEST),
    "a reference of a leaf that is not there": (["INSERT INTO ledger_uses VALUES ('x', 'y:z')"], "no such leaf"),
    "a byte of a checkpoint": (
        ["UPDATE ledger_checkpoints SET note = replace(note, 'previous 1', 'previous 2') WHERE size = 3"],
        "checkpoint 3",
    ),
    "a frontier": (
        ["UPDATE ledger_checkpoints SET frontier = zeroblob(72) WHERE size = 3"],
        "checkpoint 3: the stored",
    ),
    "a checkpoint's size": (["UPDATE ledger_checkpoints SET size = 100000 WHERE size = 3"], "checkpoint 100000"),
}


@pytest.fixture(scope="module")
def third(built: World) -> tuple[int, int]:
    """The sizes of two checkpoints in the middle: bursts share one, so that they are not the same each time."""
    built.restore()
    with sqlite3.connect(built.home / "macadam.sqlite") as connection:
        sizes = [row[0] for row in connection.execute("SELECT size FROM ledger_checkpoints ORDER BY size")]
    connection.close()
    return sizes[len(sizes) // 2], sizes[len(sizes) // 2 + 1]


@pytest.mark.parametrize("what", ROWS)
def test_a_row_that_was_changed_deleted_or_swapped_is_named(world: World, third: tuple[int, int], what: str) -> None:
    statements, named = ROWS[what]
    world.sql(*(statement.replace("size = 3", f"size = {third[0]}") for statement in statements))
    problems = world.problems()
    assert any(named.replace("checkpoint 3", f"checkpoint {third[0]}") in p for p in problems), problems


def test_a_deleted_checkpoint_is_missed(world: World, third: tuple[int, int]) -> None:
    world.sql(f"DELETE FROM ledger_checkpoints WHERE size = {third[0]}")
    assert any(f"checkpoint {third[1]} does not follow" in problem for problem in world.problems())


def test_two_swapped_checkpoints_are_named(world: World, third: tuple[int, int]) -> None:
    one, two = third
    notes = f"(SELECT note FROM ledger_checkpoints WHERE size = {one})"
    world.sql(
        f"UPDATE ledger_checkpoints SET at = {notes} WHERE size = {two}",
        f"UPDATE ledger_checkpoints SET note = (SELECT note FROM ledger_checkpoints WHERE size = {two}) WHERE size = {one}",
        f"UPDATE ledger_checkpoints SET note = at WHERE size = {two}",
        f"UPDATE ledger_checkpoints SET at = (SELECT at FROM ledger_checkpoints WHERE size = {one}) WHERE size = {two}",
    )
    problems = world.problems()
    for size, holds in ((one, two), (two, one)):
        assert any(f"checkpoint {size} holds the note of size {holds}" in problem for problem in problems), problems


def published(world: World) -> Path:
    return world.home / "objects" / "names" / "ledger" / "checkpoint"


@pytest.mark.parametrize("harm", [flip, delete])
def test_a_published_checkpoint_that_was_changed_or_deleted_is_named(
    world: World, harm: Callable[[list[Path]], None]
) -> None:
    harm([published(world)])
    assert any("published checkpoint" in problem for problem in world.problems())


def test_an_older_checkpoint_in_the_place_of_the_published_one_is_named(world: World, third: tuple[int, int]) -> None:
    with sqlite3.connect(world.home / "macadam.sqlite") as connection:
        row = connection.execute("SELECT note FROM ledger_checkpoints WHERE size = ?", third[:1]).fetchone()
    connection.close()
    published(world).write_text(row[0])
    assert any("an old one was put back" in problem for problem in world.problems())


def test_cutting_the_tail_off_is_found_by_what_was_published(world: World, third: tuple[int, int]) -> None:
    size = third[0]
    world.sql(
        f"DELETE FROM ledger_leaves WHERE idx >= {size} OR idx IS NULL",
        f"DELETE FROM ledger_checkpoints WHERE size > {size}",
    )
    assert any("checkpoints or leaves are gone" in problem for problem in world.problems())


def test_cutting_only_leaves_off_is_found_by_the_checkpoints(world: World) -> None:
    world.sql("DELETE FROM ledger_leaves WHERE idx = (SELECT max(idx) FROM ledger_leaves)")
    assert any("covers leaves that are gone" in problem for problem in world.problems())


def test_an_older_copy_of_the_whole_home_is_found_by_a_checkpoint_kept_elsewhere(world: World) -> None:
    with opened(world.home) as platform:
        platform.call(CreatePrincipal(principal="principal:evidence"))
    kept = world.checkpoint()
    assert world.problems(kept) == ()
    world.restore()
    assert any("it was truncated" in problem for problem in world.problems(kept))


def test_another_history_of_the_same_length_is_found_by_a_checkpoint_kept_elsewhere(world: World) -> None:
    with opened(world.home) as platform:
        platform.call(CreatePrincipal(principal="principal:one"))
    kept = world.checkpoint()
    world.restore()
    with opened(world.home) as platform:
        platform.call(CreatePrincipal(principal="principal:other"))
    assert world.problems() == ()
    assert any("history was rewritten" in problem for problem in world.problems(kept))


def _flip_record(data: bytes) -> bytes:
    at = data.index(b'"output"')
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def _frames(data: bytes) -> list[bytes]:
    """The magic, then each frame with its payload."""
    parts, at = [data[: len(layout.MAGIC)]], len(layout.MAGIC)
    while at < len(data):
        length = layout.FRAME.unpack_from(data, at)[0] & ~layout.FOOTER_FLAG
        parts.append(data[at : at + layout.FRAME.size + length])
        at += len(parts[-1])
    return parts


def _drop_record(data: bytes) -> bytes:
    parts = _frames(data)
    return b"".join(parts[:2] + parts[3:])


def _swap_records(data: bytes) -> bytes:
    parts = _frames(data)
    parts[2], parts[3] = parts[3], parts[2]
    return b"".join(parts)


@pytest.mark.parametrize("harm", [_flip_record, _drop_record, _swap_records])
def test_a_closed_segment_that_was_changed_is_not_sealed(world: World, harm: Callable[[bytes], bytes]) -> None:
    path = world.journal(4)
    path.write_bytes(harm(path.read_bytes()))
    with opened(world.home) as platform, pytest.raises(IntegrityError, match=path.stem):
        platform.call(SealClosed(project="shop"))
    assert path.exists()
    assert world.problems() == ()

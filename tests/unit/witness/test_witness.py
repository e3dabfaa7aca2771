"""The witness: what it cosigns, what it refuses with which status, and that it never forgets."""

import ast
import base64
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import macadam_witness
from macadam.ledger import note, tree
from macadam_witness import memory
from macadam_witness.memory import Memory, Unusable
from macadam_witness.notes import LogKey, Malformed, WitnessKey, is_consistent, read_log_keys, read_request
from macadam_witness.witness import Answer, Logs, Witness

ORIGIN = "ledger.example/flights"
LOG = note.SignerKey(ORIGIN, bytes(range(32)))
NEXT = note.SignerKey(ORIGIN, bytes(range(1, 33)))
LEAVES = [tree.leaf_hash(bytes([n])) for n in range(64)]
READ = tree.hashes_of(LEAVES)
NOW = 1_679_315_147


class World:
    def __init__(self, place: Path, name: str = "witness.example/1") -> None:
        self.place = place
        self.logs = place / "logs"
        self.logs.write_text(f"# the logs\n\n{LOG.verifier}\n")
        self.open(name)

    def open(self, name: str = "") -> None:
        self.memory = Memory(self.place / "witness", name)
        self.witness = Witness(self.memory, Logs(self.logs), lambda: NOW)
        self.key = note.VerifierKey.parse(self.witness.verifier)

    def reopen(self) -> None:
        self.memory.close()
        self.open()

    def add(self, old: int, size: int, **more: object) -> Answer:
        return self.witness.add_checkpoint(body(old, size, **more))  # type: ignore[arg-type]


def body(
    old: int,
    size: int,
    *,
    root: bytes = b"",
    proof: list[bytes] | None = None,
    signers: tuple[note.SignerKey, ...] = (LOG,),
    origin: str = ORIGIN,
) -> bytes:
    steps = proof if proof is not None else tree.consistency_proof(old, size, READ) if 0 < old < size else []
    checkpoint = note.Checkpoint(
        origin=origin, size=size, root=root or tree.root_at(size, READ), extensions=("previous 0",)
    )
    lines = [f"old {old}", *(base64.b64encode(step).decode() for step in steps)]
    return ("\n".join(lines) + "\n\n" + str(note.sign(str(checkpoint), *signers))).encode()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.memory.close()


def test_a_log_that_grows_is_cosigned_with_the_time(world: World) -> None:
    for old, size in ((0, 0), (0, 1), (1, 5), (5, 8), (8, 8), (8, 64)):
        answer = world.add(old, size)
        assert answer.status == 200
        whole = note.Note.parse(body(old, size).partition(b"\n\n")[2].decode() + answer.body)
        assert note.verify(whole, [LOG.verifier, world.key]) == [LOG.verifier, world.key]
        assert int.from_bytes(whole.signatures[1].value[:8], "big") == NOW


def test_what_was_seen_outlives_the_witness(world: World) -> None:
    assert world.add(0, 5).status == 200
    key = world.key
    world.reopen()
    assert world.key == key
    assert world.add(0, 8) == Answer(409, "5\n", "text/x.tlog.size")
    assert world.add(5, 8).status == 200


OTHER = [tree.leaf_hash(b"other%d" % n) for n in range(64)]
REFUSALS = {
    "a rollback": (body(8, 8)[:0] + body(3, 3), 409, "8\n"),
    "an old size that is not the one seen": (body(5, 10), 409, "8\n"),
    "two checkpoints of one size": (body(8, 8, root=tree.root_of(OTHER[:8])), 409, "8\n"),
    "another history": (body(8, 10, root=tree.root_of(OTHER[:10])), 422, "not shown that it begins"),
    "a proof that is too long": (
        body(8, 10, proof=[*tree.consistency_proof(8, 10, READ), LEAVES[0]]),
        422,
        "not shown",
    ),
    "a proof that is missing": (body(8, 10, proof=[]), 422, "not shown that it begins"),
    "a proof where none belongs": (body(8, 8, proof=[LEAVES[0]]), 422, "not shown that it begins"),
    "a log that nobody named": (body(0, 8, origin="other.example"), 404, "not witnessed"),
    "a key that nobody named": (body(8, 10, signers=(NEXT,)), 403, "no key known"),
    "no log's signature": (body(8, 10, signers=(note.SignerKey("x", bytes(32)),)), 403, "no key known"),
    "an old size beyond the checkpoint": (body(10, 9), 400, "greater"),
    "a changed text": (body(8, 10).replace(b"previous 0", b"previous 1"), 403, "no key known"),
    "no proof's form": (b"old x\n\n" + body(8, 10).partition(b"\n\n")[2], 400, "old SIZE"),
    "an old size in another spelling": (body(8, 10).replace(b"old 8", b"old 08"), 400, "old SIZE"),
    "too many proof lines": (body(8, 10, proof=[LEAVES[0]] * 64), 400, "at most 63"),
    "no text": (b"\xff", 400, "UTF-8"),
    "nothing": (b"", 400, "old SIZE"),
    "a proof line that is no hash": (body(8, 10, proof=[b"short"]), 400, "32 bytes"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_what_does_not_only_grow_is_refused_and_changes_nothing(world: World, what: str) -> None:
    sent, status, said = REFUSALS[what]
    assert world.add(0, 8).status == 200
    state = (world.place / "witness" / "state.json").read_bytes()
    answer = world.witness.add_checkpoint(sent)
    assert (answer.status, said in answer.body) == (status, True), answer
    assert (world.place / "witness" / "state.json").read_bytes() == state
    assert world.add(8, 10).status == 200, "the honest log goes on"


def test_a_contradiction_is_kept_as_evidence_with_the_logs_own_signature(world: World) -> None:
    world.add(0, 8)
    forked = body(8, 8, root=tree.root_of(OTHER[:8]))
    assert world.witness.add_checkpoint(forked).alarm == "two checkpoints of one size"
    (kept,) = (world.place / "witness" / "evidence.jsonl").read_text().splitlines()
    assert note.open_checkpoint(json.loads(kept)["note"], [LOG.verifier]).root == tree.root_of(OTHER[:8])


def evidence(world: World) -> list[dict[str, str]]:
    return [json.loads(line) for line in (world.place / "witness" / "evidence.jsonl").read_text().splitlines()]


def test_the_evidence_is_both_checkpoints_that_contradict_each_other_as_the_log_signed_them(world: World) -> None:
    world.add(0, 8)
    world.reopen()
    world.witness.add_checkpoint(body(8, 8, root=tree.root_of(OTHER[:8])))
    (kept,) = evidence(world)
    opened = [note.open_checkpoint(kept[which], [LOG.verifier]) for which in ("seen", "note")]
    assert [one.size for one in opened] == [8, 8]
    assert opened[0].root != opened[1].root


def test_false_proofs_of_a_good_log_leave_room_for_evidence(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_MOST_SUSPECT", 2000)
    monkeypatch.setattr(memory, "_MOST_EVIDENCE", 4000)
    world.add(0, 8)
    junk = note.SignerKey("junk.example", bytes(32))
    for size in (10, 10, 10, *range(11, 40)):
        world.add(8, size, proof=[], signers=(LOG, junk))
    kept = evidence(world)
    assert 1 < len(kept) < 10
    assert len({one["note"] for one in kept}) == len(kept), "each once"
    assert not any("junk" in one["note"] for one in kept), "nothing that others put below"
    world.witness.add_checkpoint(body(8, 8, root=tree.root_of(OTHER[:8])))
    assert evidence(world)[-1]["why"] == "two checkpoints of one size"


def test_a_contradiction_is_said_also_where_the_evidence_cannot_be_kept(world: World) -> None:
    world.add(0, 8)
    (world.place / "witness" / "evidence.jsonl").mkdir()
    answer = world.witness.add_checkpoint(body(8, 8, root=tree.root_of(OTHER[:8])))
    assert (answer.status, answer.body) == (409, "8\n")
    assert "could not be kept" in answer.alarm
    assert ORIGIN in answer.alarm


def test_a_log_that_changes_its_key_is_followed_once_its_file_says_so(world: World) -> None:
    world.add(0, 8)
    assert world.add(8, 10, signers=(NEXT,)).status == 403
    world.logs.write_text(f"{LOG.verifier} until 10\n{NEXT.verifier} since 9\n")
    assert world.add(8, 10, signers=(LOG, NEXT)).status == 200
    assert world.add(10, 12, signers=(LOG, NEXT)).status == 403, "the retired key signs no more"
    assert world.add(10, 12, signers=(NEXT,)).status == 200


def test_of_racing_submissions_none_takes_back_what_another_has_shown(world: World) -> None:
    world.add(0, 8)
    sizes = [9, 12, 10, 64, 30, 8] * 8
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda size: world.add(8, size), sizes))
    assert {answer.status for answer in answers} <= {200, 409}
    grown = {size for size, answer in zip(sizes, answers, strict=True) if answer.status == 200 and size > 8}
    assert len(grown) == 1, "from 8 it went on once"
    assert world.add(0, 64).body == f"{grown.pop()}\n"


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda home: (home / "state.json").unlink(), "forgets"),
        (lambda home: (home / "state.json").write_text("{"), "damaged"),
        (lambda home: (home / "state.json").write_text('{"a": {"size": -1, "root": ""}}'), "damaged"),
        (lambda home: (home / "key").unlink(), "is gone"),
        (lambda home: (home / "key").write_text("nonsense"), "no key of a witness"),
    ],
)
def test_a_witness_that_has_lost_something_does_not_start(world: World, harm: object, said: str) -> None:
    world.add(0, 8)
    harm(world.place / "witness")  # type: ignore[operator]
    world.memory.close()
    with pytest.raises(Unusable, match=said):
        Memory(world.place / "witness", "witness.example/1")
    (world.place / "spare").mkdir()
    world.memory = Memory(world.place / "spare", "spare")


def test_two_witnesses_do_not_share_a_memory_and_a_new_one_needs_a_name(world: World, tmp_path: Path) -> None:
    with pytest.raises(Unusable, match="another witness"):
        Memory(world.place / "witness", "")
    with pytest.raises(Unusable, match="needs a name"):
        Memory(tmp_path / "new", "")


def test_a_kill_before_the_state_is_replaced_leaves_the_old_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.add(0, 8)

    def killed(*_arguments: object) -> None:
        raise OSError("killed")

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(OSError, match="killed"):
        world.add(8, 10)
    monkeypatch.undo()
    world.reopen()
    assert world.add(0, 1).body == "8\n"


def test_the_private_key_does_not_show_and_only_its_owner_reads_it(world: World) -> None:
    secret = (world.place / "witness" / "key").read_text().strip()
    assert WitnessKey.read(secret).verifier == world.witness.verifier
    assert secret.rpartition("+")[2] not in repr(world.memory.key)
    assert (world.place / "witness" / "key").stat().st_mode & 0o777 == 0o600


def test_every_consistency_proof_holds_and_no_other_does() -> None:
    for new in range(65):
        for old in range(new + 1):
            roots = tree.root_at(old, READ), tree.root_at(new, READ)
            proof = tuple(tree.consistency_proof(old, new, READ)) if 0 < old < new else ()
            assert is_consistent(old, roots[0], new, roots[1], proof), (old, new)
            if old:
                assert not is_consistent(old, LEAVES[63], new, roots[1], proof)
            assert not is_consistent(old, roots[0], new, roots[1], (*proof, LEAVES[0]))
            if proof:
                assert not is_consistent(old, roots[0], new, roots[1], proof[:-1])


@given(st.binary(max_size=400) | st.text(max_size=400).map(str.encode))
def test_no_request_makes_reading_crash(data: bytes) -> None:
    try:
        read_request(data)
    except Malformed:
        return


@given(st.integers(0, len(body(8, 10)) - 1), st.integers(1, 255))
def test_a_changed_byte_is_never_cosigned(position: int, by: int) -> None:
    sent = bytearray(body(8, 10))
    sent[position] = (sent[position] + by) % 256
    try:
        read = read_request(bytes(sent))
    except Malformed:
        return
    key = LogKey(ORIGIN, LOG.verifier.id, LOG.verifier.public, 0, None)
    same = read_request(body(8, 10))
    signed = any(
        key.signed(read.checkpoint.text, s) for n, i, s in read.checkpoint.signatures if (n, i) == (ORIGIN, key.id)
    )
    consistent = is_consistent(8, tree.root_at(8, READ), read.checkpoint.size, read.checkpoint.root, read.proof)
    assert not (signed and consistent and read.old == 8) or read == same


@pytest.mark.parametrize(
    "text", ["x", str(WitnessKey("w", bytes(32)).verifier), f"{LOG.verifier}\n{LOG.verifier} since 3"]
)
def test_what_is_no_list_of_log_keys_is_refused(text: str) -> None:
    with pytest.raises(Malformed):
        read_log_keys(text)


def test_it_imports_only_the_standard_library_and_cryptography() -> None:
    imported = set()
    for path in Path(macadam_witness.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").partition(".")[0])
    assert imported - set(sys.stdlib_module_names) == {"cryptography", "macadam_witness"}

"""An adversary who holds the whole home, and even its signing keys, against readers who kept something of their own.

What changes bytes behind Macadam's back without the keys is in test_tampering. Here the log is made whole again after the
harm, tiles, checkpoints and all, by Macadam's own code: nothing inside the home contradicts it any more. What finds it is
what somebody else has: an old checkpoint, the key they were given, a witness. Each attack is on a copy of a home that passes.
"""

import base64
import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import sqlalchemy as sa
from unit.ledger.worlds import open_ports

from macadam.access.types import CreateProject
from macadam.app.platform import Platform
from macadam.errors import IntegrityError, InvalidInput, MacadamError
from macadam.ledger import key_service, keys, sequencer, witnesses
from macadam.ledger import leaf as leaves
from macadam.ledger import service as ledger
from macadam.ledger.keyring import KeyRing
from macadam.ledger.note import Checkpoint, Note, Signature, SignerKey, VerifierKey, sign
from macadam.ledger.schema import keys as key_table
from macadam.ledger.tree import leaf_hash
from macadam.ledger.types import RetireKey, RotateKey, ShowCheckpoint, VerifyLedger
from macadam.ports import Ports
from macadam.settings import Settings
from macadam.values import uuid7
from macadam_verify import __main__ as verifier
from macadam_verify import signed
from macadam_witness.notes import WitnessKey

WITNESS = WitnessKey("witness.example", bytes(range(32)))


class World:
    """A home whose key was changed once, and what somebody kept of it before, between and after."""

    def __init__(self, place: Path) -> None:
        self.home, self.copy = place / "home", place / "copy"
        with self.open() as platform:
            self.grow(platform, 4)
            self.first = self.newest(platform)
            self.pinned = str(ledger.verifier_keys(platform.ports))
            (self.stolen,) = keys.signers(platform.ports, [keys.KEY_SECRET])
            platform.call(RotateKey())
            self.grow(platform, 2)
            self.between = self.newest(platform)
            platform.call(RetireKey(key=self.stolen.verifier.id.hex()))
            self.grow(platform, 3)
            self.last = self.newest(platform)
            self.ring = ledger.verifier_keys(platform.ports)
            (self.second,) = keys.signers(platform.ports, [f"ledger-key.{self.ring.keys[1].verifier.id.hex()}"])
        shutil.copytree(self.home, self.copy)

    def open(self) -> Platform:
        return Platform(Settings.load({}, home=self.home))

    def grow(self, platform: Platform, by: int) -> None:
        for _ in range(by):
            platform.call(CreateProject(project=f"p{os.urandom(6).hex()}"))

    def newest(self, platform: Platform) -> str:
        platform.call(VerifyLedger())
        return platform.call(ShowCheckpoint()).note

    def restore(self) -> None:
        shutil.rmtree(self.home)
        shutil.copytree(self.copy, self.home)

    def problems(self, since: str = "", key: str = "") -> tuple[str, ...]:
        with self.open() as platform:
            return platform.call(VerifyLedger(since=since, key=key, deep=False)).problems

    def sql(self, *statements: str) -> None:
        with sqlite3.connect(self.home / "macadam.sqlite", isolation_level=None) as connection:
            for statement in statements:
                connection.execute(statement)
        connection.close()

    def made_whole(self) -> None:
        """Numbers the leaves anew and builds tiles and checkpoints over them, signed with all the keys that the home ever had:
        the newer one alone could not sign that it takes over.
        """
        self.sql("UPDATE ledger_leaves SET idx = NULL", "DELETE FROM ledger_checkpoints")
        names = self.home / "objects" / "names" / "ledger"
        shutil.rmtree(names / "tile")
        (names / "checkpoint").unlink()
        (names / "key").unlink()
        (self.home / "keys" / "ledger-key").write_text(self.stolen.secret)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sequencer, "BATCH", 1)
            with self.open() as platform:
                sequencer.integrate_all(platform.ports)
                self.grow(platform, 9)  # so that it is no shorter than what was seen


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("adversary"))


@pytest.fixture
def world(built: World) -> World:
    built.restore()
    return built


def test_a_home_that_nobody_attacked_passes_whatever_was_kept_of_it(world: World) -> None:
    for since in ("", world.first, world.between, world.last):
        assert world.problems(since) == ()
    assert world.problems(key=world.pinned) == ()
    assert world.problems(key=str(world.ring)) == ()


# --- the log made whole again, with its own key


def truncate(world: World) -> None:
    world.sql(
        "DELETE FROM ledger_leaves WHERE idx > (SELECT MAX(idx) - 1 FROM ledger_leaves)",
        "DELETE FROM ledger_uses WHERE leaf_id NOT IN (SELECT id FROM ledger_leaves)",
    )


def rewrite(world: World) -> None:
    with sqlite3.connect(world.home / "macadam.sqlite", isolation_level=None) as connection:
        (text,) = connection.execute("SELECT leaf FROM ledger_leaves WHERE idx = 4").fetchone()
        changed = msgspec.structs.replace(leaves.decode(text), actor="principal:somebody")
        data = leaves.encode(changed)
        row = (data, leaf_hash(data), changed.actor)
        connection.execute("UPDATE ledger_leaves SET leaf = ?, hash = ?, actor = ? WHERE idx = 4", row)
    connection.close()


def reorder(world: World) -> None:
    world.sql(
        "UPDATE ledger_leaves SET seq = -1 WHERE idx = 4",
        "UPDATE ledger_leaves SET seq = (SELECT seq FROM ledger_leaves WHERE idx = 5) + 100000 WHERE idx = 5",
        "UPDATE ledger_leaves SET seq = (SELECT seq FROM ledger_leaves WHERE idx = 5) - 100000 WHERE idx = 4",
        "UPDATE ledger_leaves SET seq = (SELECT seq FROM ledger_leaves WHERE idx = 3) + 1 WHERE idx = 5",
        "UPDATE ledger_leaves SET seq = (SELECT seq FROM ledger_leaves WHERE idx = 5) + 1 WHERE idx = 4",
    )


def omit(world: World) -> None:
    world.sql(
        "DELETE FROM ledger_uses WHERE leaf_id = (SELECT id FROM ledger_leaves WHERE idx = 4)",
        "DELETE FROM ledger_leaves WHERE idx = 4",
    )


ATTACKS: dict[str, Callable[[World], None]] = {
    "truncate": truncate,
    "rewrite": rewrite,
    "reorder": reorder,
    "omit": omit,
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_log_that_was_changed_and_signed_again_is_found_by_who_kept_a_checkpoint(world: World, attack: str) -> None:
    ATTACKS[attack](world)
    world.made_whole()
    assert world.problems() == (), "nothing inside the home says so: this is why others must keep something"
    found = world.problems(world.last)
    assert any("history was rewritten" in problem for problem in found), found


def test_who_has_only_the_newer_key_cannot_make_the_log_whole_from_its_beginning(world: World) -> None:
    world.sql("UPDATE ledger_leaves SET idx = NULL", "DELETE FROM ledger_checkpoints")
    shutil.rmtree(world.home / "objects" / "names" / "ledger")
    assert any("nothing vouches for those that did" in problem for problem in world.problems())


def test_a_log_that_was_cut_short_is_found_by_who_kept_a_checkpoint(world: World) -> None:
    size = Checkpoint.parse(Note.parse(world.between).text).size
    names = world.home / "objects" / "names" / "ledger"
    world.sql(f"DELETE FROM ledger_leaves WHERE idx >= {size}", f"DELETE FROM ledger_checkpoints WHERE size > {size}")
    (names / "checkpoint").write_text(world.between)
    assert any("it was truncated" in problem for problem in world.problems(world.last))


def test_a_fork_is_found_by_whoever_holds_its_other_branch(world: World) -> None:
    honest = Checkpoint.parse(Note.parse(world.last).text)
    forked = msgspec.structs.replace(honest, root=bytes(32))
    branch = str(sign(str(forked), world.second))
    assert world.ring.open(branch) == forked, "its signature is good: only the root tells"
    assert any("history was rewritten" in problem for problem in world.problems(branch))


def test_an_old_checkpoint_that_is_replayed_as_the_newest_is_named(world: World) -> None:
    (world.home / "objects" / "names" / "ledger" / "checkpoint").write_text(world.first)
    assert any("an old one was put back" in problem for problem in world.problems())


def test_another_ledger_in_the_place_of_this_one_is_found_by_who_kept_its_key(world: World) -> None:
    shutil.rmtree(world.home)
    with world.open() as platform:
        world.grow(platform, 20)
    assert world.problems() == ()
    assert any("another ledger" in problem for problem in world.problems(key=world.pinned))
    assert any("not signed by any of the keys" in problem for problem in world.problems(world.last))


def announce(world: World, victim: VerifierKey, own: SignerKey, *, first: VerifierKey) -> None:
    """Begins the ledger of `world` anew, in one checkpoint: with a first key, and the other of the two announced; then the
    victim's is retired. No checkpoint lies where the victim's would have to sign.
    """
    other = own.verifier if first == victim else victim
    said = [("ledger.bootstrap", first), ("ledger.rotate_key", other), ("ledger.retire_key", victim)]
    with world.open() as platform:
        idle = platform.ports
        with idle.sql.read() as sql:
            (model,) = ledger.find(sql, kind="ledger.bootstrap")
        queued = [
            msgspec.structs.replace(
                model.leaf, id=uuid7(), kind=kind, subject=f"ledger_key:{key.id.hex()}", body={"key": str(key)}
            )
            for kind, key in said
        ]
    names = world.home / "objects" / "names" / "ledger"
    shutil.rmtree(names / "tile")
    (names / "checkpoint").unlink()
    world.sql("DELETE FROM ledger_uses", "DELETE FROM ledger_leaves", "DELETE FROM ledger_checkpoints",
              "DELETE FROM ledger_keys")  # fmt: skip
    secrets = world.home / "keys"
    for path in secrets.glob("ledger-key*"):
        path.unlink()
    (secrets / "ledger-key").write_text(own.secret)

    def write(sql: sa.Connection) -> None:
        ledger.queue(sql, *queued)
        for leaf, (_, key) in zip(queued[:2], said, strict=False):
            row = {"id": key.id.hex(), "key": str(key), "announced": leaf.id, "retire_after": "", "retired": ""}
            row["retired"] = queued[2].id if key == victim else ""
            row["secret"] = "ledger-key" if key == own.verifier else "ledger-key.none"
            sql.execute(sa.insert(key_table).values(row))

    ports = open_ports(world.home)
    ports.sql.write(write)
    sequencer.integrate_all(ports)
    (names / "key").write_text(f"{keys.ring_of(held(ports))}\n")


def held(ports: Ports) -> list[keys.HeldKey]:
    with ports.sql.read() as sql:
        return keys.held(sql)


@pytest.mark.parametrize("place", ["first", "later"])
def test_another_ledger_that_announces_the_key_that_was_kept_is_found(world: World, place: str) -> None:
    victim = VerifierKey.parse(world.pinned)
    own = SignerKey(world.ring.origin, bytes(range(32)))
    announce(world, victim, own, first=victim if place == "first" else own.verifier)
    found = world.problems()
    if place == "first":
        assert any("nothing vouches for those that did" in problem for problem in found), found
    else:
        assert found == (), "the ledger is its maker's own, and whole"
    assert any("it is another ledger" in problem for problem in world.problems(key=world.pinned))


# --- keys


def signed_again(world: World, *signers: SignerKey) -> tuple[str, ...]:
    """The newest stored checkpoint with other signatures, here and in the published copy."""
    note = str(sign(Note.parse(world.last).text, *signers))
    with sqlite3.connect(world.home / "macadam.sqlite", isolation_level=None) as connection:
        newest = "size = (SELECT MAX(size) FROM ledger_checkpoints)"
        connection.execute(f"UPDATE ledger_checkpoints SET note = ? WHERE {newest}", (note,))
    connection.close()
    (world.home / "objects" / "names" / "ledger" / "checkpoint").write_text(note)
    return world.problems()


def test_a_checkpoint_that_is_signed_again_by_the_key_in_force_passes(world: World) -> None:
    assert signed_again(world, world.second) == ()


def test_a_retired_key_that_signs_on_is_named(world: World) -> None:
    assert any("was retired before" in problem for problem in signed_again(world, world.second, world.stolen))
    assert any("was retired before" in problem for problem in signed_again(world, world.stolen))


def test_a_key_that_was_never_announced_is_named(world: World) -> None:
    stranger = SignerKey(world.ring.origin, bytes(range(32)))
    found = signed_again(world, world.second, stranger)
    assert any(f"{stranger.verifier.id.hex()}, which the ledger never announced" in problem for problem in found), found


def test_a_published_key_that_is_not_announced_is_named(world: World) -> None:
    stranger = SignerKey(world.ring.origin, bytes(range(32)))
    (world.home / "objects" / "names" / "ledger" / "key").write_text(f"{world.ring}\n{stranger.verifier}\n")
    assert "the published keys are not those that the leaves announce" in world.problems()


def test_an_index_that_brings_a_retired_key_back_is_named(world: World) -> None:
    world.sql("UPDATE ledger_keys SET retired = '' WHERE retired <> ''")
    assert any("index of the ledger's keys differs" in problem for problem in world.problems())


# --- notes, as every reader reads them


def forgeries(world: World) -> dict[str, str]:
    note = Note.parse(world.last)
    (own,) = note.signatures
    wrong = SignerKey(own.name, bytes(range(32)))
    text = f"{note.text}\n"
    return {
        "a key of the same name": str(sign(note.text, wrong)),
        "a signature under the id of the key": text
        + f"{Signature(name=own.name, id=own.id, value=wrong.sign(note.text).value)}\n",
        "a false line beside the true one": text + f"{own}\n{Signature(name=own.name, id=own.id, value=bytes(64))}\n",
        "another text": world.last.replace("\nprevious ", "\nprevious 1"),
        "one more line of text": world.last.replace("\n\n", "\nx\n\n"),
        "an empty line in the text": world.last.replace("\nprevious", "\n\nprevious"),
        "an empty line before the signatures": world.last.replace("\n\n", "\n\n\n"),
        "an empty line after the signatures": world.last + "\n",
        "no last newline": world.last[:-1],
        "no signature": text,
        "a size with a zero in front": world.last.replace("\n", "\n0", 1),
        "a carriage return": world.last.replace("\n", "\r\n", 1),
        "another spelling of the signature": world.last[:-1] + "=\n",
        "another origin": world.last.replace(own.name, "other.example"),
        "a witness's signature by the same key": text
        + WitnessKey(own.name, wrong_seed(world)).cosign(note.text, 1_700_000_000),
    }


def wrong_seed(world: World) -> bytes:
    return base64.b64decode(world.second.secret.removeprefix("PRIVATE+KEY+").split("+", 2)[2])[1:]


UNKNOWN, UNFIT, NO_NOTE = "not signed by any of the keys", "does not belong to this note", "A signed note is a text"
NOT_SIGNED, DOES_NOT_FIT, NO_CHECKPOINT = "has not signed it", "does not fit the checkpoint", "is not a signed note"
FORGERIES = {  # what the platform says, and what the verifier does
    "a key of the same name": (UNKNOWN, NOT_SIGNED),
    "a signature under the id of the key": (UNFIT, DOES_NOT_FIT),
    "a false line beside the true one": (UNFIT, DOES_NOT_FIT),
    "another text": (UNFIT, DOES_NOT_FIT),
    "one more line of text": (UNFIT, DOES_NOT_FIT),
    "an empty line in the text": ("extension lines are not empty", DOES_NOT_FIT),
    "an empty line before the signatures": ("extension lines are not empty", DOES_NOT_FIT),
    "an empty line after the signatures": (NO_NOTE, NOT_SIGNED),
    "no last newline": (NO_NOTE, NO_CHECKPOINT),
    "no signature": (NO_NOTE, NOT_SIGNED),
    "a size with a zero in front": ("a line of origin, of size", NO_CHECKPOINT),
    "a carriage return": ("no other control characters", DOES_NOT_FIT),
    "another spelling of the signature": ("base64", "padding"),
    "another origin": (UNKNOWN, NOT_SIGNED),
    "a witness's signature by the same key": (UNKNOWN, NOT_SIGNED),
}


@pytest.mark.parametrize("what", FORGERIES)
def test_a_forged_note_is_refused_by_the_platform_and_by_the_verifier(world: World, what: str) -> None:
    forged = forgeries(world)
    assert set(forged) == set(FORGERIES)
    trust = signed.trusted(str(world.ring))
    assert world.ring.open(world.last)
    assert signed.checkpoint(world.last, trust, signed.Report())
    said_here, said_there = FORGERIES[what]
    with pytest.raises(MacadamError, match=said_here):
        world.ring.open(forged[what])
    with pytest.raises((signed.Broken, ValueError), match=said_there):
        signed.checkpoint(forged[what], trust, signed.Report())


def test_a_true_line_that_stands_twice_counts_once(world: World) -> None:
    (own,) = Note.parse(world.last).signatures
    twice = str(Note.parse(world.last).with_signatures(own))
    assert world.ring.open(twice) == world.ring.open(world.last)
    only_twice = KeyRing.of(world.stolen.verifier)
    with pytest.raises(IntegrityError):
        only_twice.open(twice)


def test_two_keys_that_cannot_be_told_apart_are_refused(monkeypatch: pytest.MonkeyPatch, world: World) -> None:
    monkeypatch.setattr(VerifierKey, "id", property(lambda _self: b"same"))
    with pytest.raises(InvalidInput, match="Two different keys"):
        world.ring.open(world.last)


# --- witnesses


def cosigned(world: World, *lines: str) -> str:
    return world.last + "".join(lines)


def keys_of(*found: WitnessKey) -> tuple[VerifierKey, ...]:
    return tuple(VerifierKey.parse(one.verifier) for one in found)


def test_a_witness_that_was_swapped_does_not_count(world: World) -> None:
    text = Note.parse(world.last).text
    true = cosigned(world, WITNESS.cosign(text, 1_700_000_000))
    assert witnesses.cosigners(true, keys_of(WITNESS), world.ring) == keys_of(WITNESS)
    other = WitnessKey(WITNESS.name, bytes(32))
    assert witnesses.cosigners(cosigned(world, other.cosign(text, 1)), keys_of(WITNESS), world.ring) == ()
    posing = other.cosign(text, 1).rpartition(" ")[2]
    under_its_id = base64.b64encode(WITNESS.id + base64.b64decode(posing)[4:]).decode()
    with pytest.raises(IntegrityError):
        witnesses.cosigners(cosigned(world, f"— {WITNESS.name} {under_its_id}\n"), keys_of(WITNESS), world.ring)
    old = Note.parse(world.first).text
    with pytest.raises(IntegrityError):
        witnesses.cosigners(cosigned(world, WITNESS.cosign(old, 1)), keys_of(WITNESS), world.ring)


def test_a_ledger_is_not_its_own_witness(world: World) -> None:
    posing = WitnessKey("witness.example", wrong_seed(world))
    note = cosigned(world, posing.cosign(Note.parse(world.last).text, 1_700_000_000))
    with pytest.raises(InvalidInput, match="its own witness"):
        witnesses.cosigners(note, keys_of(posing), world.ring)
    with pytest.raises(signed.Unreadable, match="key of the ledger itself"):
        signed.trusted(str(world.ring), posing.verifier)


def test_one_witness_under_two_names_is_one(world: World) -> None:
    text = Note.parse(world.last).text
    again = WitnessKey("second.example", bytes(range(32)))
    note = cosigned(world, WITNESS.cosign(text, 1), again.cosign(text, 1))
    assert len(witnesses.cosigners(note, keys_of(WITNESS, again), world.ring)) == 1
    with pytest.raises(signed.Unreadable, match="2 witnesses must"):
        signed.trusted(str(world.ring), f"{WITNESS.verifier}\n{again.verifier}\n", 2)


def test_the_verifier_demands_the_quorum_that_it_was_given(world: World) -> None:
    text, other = Note.parse(world.last).text, WitnessKey("other.example", bytes(32))
    both = f"{WITNESS.verifier}\n{other.verifier}\n"
    one = cosigned(world, WITNESS.cosign(text, 1_700_000_000))
    assert signed.checkpoint(one, signed.trusted(str(world.ring), both, 1), signed.Report())
    for quorum in (0, 2):  # 0: all
        with pytest.raises(signed.Broken, match="1 of 2 cosigned"):
            signed.checkpoint(one, signed.trusted(str(world.ring), both, quorum), signed.Report())
    with pytest.raises(signed.Broken, match="0 of 1 cosigned"):
        signed.checkpoint(world.last, signed.trusted(str(world.ring), WITNESS.verifier), signed.Report())
    changed = cosigned(world, WITNESS.cosign(Note.parse(world.first).text, 1_700_000_000))
    with pytest.raises(signed.Broken, match="does not fit"):
        signed.checkpoint(changed, signed.trusted(str(world.ring), WITNESS.verifier), signed.Report())
    with pytest.raises(signed.Unreadable):
        signed.trusted(str(world.ring), WITNESS.verifier, -1)


def test_an_announcement_that_an_adversary_made_leads_nowhere(world: World) -> None:
    with world.open() as platform:
        announced = announcements(platform.ports)
    trust = signed.trusted(world.pinned)
    verifier.follow(announced, trust)
    assert signed.checkpoint(world.last, trust, signed.Report())
    first = json.loads(announced.splitlines()[0])
    stranger = SignerKey(world.ring.origin, bytes(range(32)))
    text = Note.parse(first["checkpoint"]).text
    forged = json.dumps(first | {"checkpoint": str(sign(text, stranger))}) + "\n"
    with pytest.raises(signed.Broken):
        verifier.follow(forged, signed.trusted(world.pinned))


def announcements(ports: Ports) -> str:
    with ports.sql.read() as sql:
        return key_service.announcements(ports, sql)

"""Rotating the ledger's key: readers can follow, and a kill between any two steps leaves a ledger that goes on."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from unit.ledger.worlds import DIGEST, Fragile, Killed, open_ports, queue, verify, with_port

from macadam.access.types import CreateProject
from macadam.app.dispatcher import Dispatcher
from macadam.app.platform import Platform
from macadam.errors import Conflict, IntegrityError, InvalidInput, NotFound
from macadam.ledger import key_service, keys, sequencer
from macadam.ledger import service as ledger
from macadam.ledger.keyring import KeyRing
from macadam.ledger.leaf import decode
from macadam.ledger.note import Checkpoint, Note, SignerKey, open_checkpoint
from macadam.ledger.tree import leaf_hash, verify_inclusion
from macadam.ledger.types import RetireKey, RotateKey, ShowCheckpoint, ShowKeys, VerifyLedger
from macadam.operations import Request, of_request
from macadam.ports import Ports
from macadam.settings import Settings
from macadam.testing import local_token
from macadam.values import utc_now

assert key_service.announce_first


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    with Platform(Settings.load({}, home=tmp_path / "home")) as opened:
        yield opened


def checkpoint(platform: Platform) -> Note:
    platform.call(VerifyLedger())
    return Note.parse(platform.call(ShowCheckpoint()).note)


def signers(platform: Platform) -> list[str]:
    return [signature.id.hex() for signature in checkpoint(platform).signatures]


def problems(platform: Platform) -> tuple[str, ...]:
    return platform.call(VerifyLedger()).problems


def test_a_fresh_ledger_announces_its_first_key(platform: Platform) -> None:
    shown = platform.call(ShowKeys())
    (key,) = shown.keys
    assert (key.state, key.since, key.until) == ("in force", 0, -1)
    with platform.ports.sql.read() as sql:
        (entry,) = ledger.find(sql, subject=f"ledger_key:{key.id}")
    assert (entry.leaf.kind, entry.leaf.body) == ("ledger.bootstrap", {"key": key.key})
    assert str(ledger.verifier_keys(platform.ports)) == key.key
    assert shown.announcements == ""


def test_a_new_key_signs_beside_the_old_one_until_that_is_retired(platform: Platform) -> None:
    (old,) = signers(platform)
    before = checkpoint(platform)
    new = platform.call(RotateKey()).id
    assert signers(platform) == [old, new]
    retired = platform.call(RetireKey(key=old))
    assert retired.state == "retired"
    assert signers(platform) == [new]
    assert problems(platform) == ()
    platform.call(CreateProject(project="shop"))
    assert signers(platform) == [new]
    found = platform.call(VerifyLedger(since=str(before)))
    assert found.problems == ()


def test_a_retired_private_key_is_destroyed_and_the_list_says_what_it_signed(platform: Platform) -> None:
    (old,) = signers(platform)
    new = platform.call(RotateKey()).id
    platform.call(RetireKey(key=old))
    shown = platform.call(ShowKeys())
    assert platform.ports.secrets.names("ledger-key") == [f"ledger-key.{new}"]
    ring = ledger.verifier_keys(platform.ports)
    assert [key.verifier.id.hex() for key in ring.keys] == [old, new]
    assert [(key.since, key.until) for key in shown.keys] == [(0, ring.keys[0].until), (ring.keys[1].since, -1)]
    assert KeyRing.parse(str(ring)) == ring


def test_who_trusts_only_the_first_key_finds_the_next_under_what_that_signed(platform: Platform) -> None:
    first = ledger.verifier_keys(platform.ports).verifiers
    second = platform.call(RotateKey())
    announced = msgspec.json.decode(platform.call(ShowKeys()).announcements)
    signed = open_checkpoint(announced["checkpoint"], first)
    path = [bytes.fromhex(step) for step in announced["path"]]
    verify_inclusion(leaf_hash(announced["leaf"].encode()), announced["index"], signed.size, path, signed.root)
    assert decode(announced["leaf"].encode()).body["key"] == second.key


def test_a_pinned_key_of_another_ledger_is_said(platform: Platform, tmp_path: Path) -> None:
    own = str(ledger.verifier_keys(platform.ports))
    platform.call(RotateKey())
    assert platform.call(VerifyLedger(key=own)).problems == ()
    with Platform(Settings.load({}, home=tmp_path / "other")) as other:
        foreign = str(ledger.verifier_keys(other.ports))
    assert "another ledger" in platform.call(VerifyLedger(key=foreign)).problems[0]


def test_two_keys_at_most_are_in_force_and_one_always_is(platform: Platform) -> None:
    (old,) = signers(platform)
    with pytest.raises(Conflict, match="only one in force"):
        platform.call(RetireKey(key=old))
    new = platform.call(RotateKey()).id
    with pytest.raises(Conflict, match="2 keys in force"):
        platform.call(RotateKey())
    with pytest.raises(NotFound, match="no key 'x'"):
        platform.call(RetireKey(key="x"))
    platform.call(RetireKey(key=new))  # the new one, if it is the one that leaked
    with pytest.raises(Conflict, match="retired already"):
        platform.call(RetireKey(key=new))
    assert signers(platform) == [old]
    third = platform.call(RotateKey()).id
    assert signers(platform) == [old, third]
    assert problems(platform) == ()


def test_a_key_is_not_retired_before_it_has_signed_that_another_takes_over(platform: Platform) -> None:
    first = ledger.verifier_keys(platform.ports).verifiers
    (old,) = signers(platform)
    idle = Dispatcher(platform.ports, clock=utc_now, sequence=lambda: None)
    token = local_token(platform)
    new = msgspec.to_builtins(idle.run(of_request(RotateKey), {}, token=token))["id"]
    idle.run(of_request(RetireKey), {"key": old}, token=token)
    assert signers(platform) == [new]
    rotated, _ = platform.call(ShowKeys()).announcements.splitlines()
    assert open_checkpoint(msgspec.json.decode(rotated)["checkpoint"], first), "who holds the first key can follow"
    assert problems(platform) == ()


def test_a_key_whose_successor_has_no_checkpoint_yet_stays(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    (old,) = signers(platform)
    idle = Dispatcher(platform.ports, clock=utc_now, sequence=lambda: None)
    token = local_token(platform)
    with monkeypatch.context() as stuck:
        stuck.setattr(sequencer, "integrate_all", lambda _ports: None)
        idle.run(of_request(RotateKey), {}, token=token)
        with pytest.raises(Conflict, match="No checkpoint signed by the key"):
            idle.run(of_request(RetireKey), {"key": old}, token=token)
    assert len(signers(platform)) == 2
    assert problems(platform) == ()


def test_a_private_key_that_was_swapped_signs_nothing(platform: Platform) -> None:
    sequencer.integrate_all(platform.ports)
    ports = platform.ports
    (real,) = keys.signers(ports, [keys.KEY_SECRET])
    assert ledger.signer(ports).verifier == real.verifier
    ports.secrets.remove(keys.KEY_SECRET)
    ports.secrets.put(keys.KEY_SECRET, SignerKey(real.name, bytes(32)).secret.encode())
    queue(ports, 1)
    with pytest.raises(IntegrityError, match="holds another key than the one that the ledger has announced"):
        sequencer.integrate_all(ports)
    with pytest.raises(IntegrityError, match="holds another key"):
        ledger.signer(ports)
    ports.secrets.remove(keys.KEY_SECRET)
    ports.secrets.put(keys.KEY_SECRET, real.secret.encode())
    assert problems(platform) == ()


def test_a_key_rotates_again_and_again(platform: Platform) -> None:
    for _ in range(4):
        (old,) = signers(platform)
        platform.call(RotateKey(overlap_days=1))
        platform.call(CreateProject(project=f"p{old}"))
        platform.call(RetireKey(key=old))
    assert problems(platform) == ()
    assert len(platform.call(ShowKeys()).announcements.splitlines()) == 8


def test_a_ledger_from_before_keys_were_announced_announces_its_own_and_goes_on(tmp_path: Path) -> None:
    ports = open_ports(tmp_path / "home")
    queue(ports, 5)
    sequencer.integrate_all(ports)
    for _ in range(2):  # the second time there is nothing to do
        key_service.announce_first(ports, lambda: DIGEST)
        sequencer.integrate_all(ports)
    found = verify(ports)
    assert (found.problems, found.size) == ((), 6)
    assert ledger.verifier_keys(ports).keys[0].since == 0
    ports.sql.close()


STEPS = [
    ("secrets", "put", 1),
    ("sql", "write", 1),
    ("objects", "set_name", 1),
    ("objects", "set_name", 2),
    ("objects", "set_name", 3),
]


@pytest.mark.parametrize(("port", "method", "call"), STEPS)
@pytest.mark.parametrize("after", [False, True])
def test_a_kill_between_any_two_steps_of_a_rotation_can_be_repeated(
    tmp_path: Path, port: str, method: str, call: int, *, after: bool
) -> None:
    home = tmp_path / "home"
    with Platform(Settings.load({}, home=home)) as platform:
        (old,) = signers(platform)
        dying = with_port(platform.ports, port, Fragile(getattr(platform.ports, port), method, call, after=after))
        rotate(dying, platform)
        assert problems(platform) == ()
    with Platform(Settings.load({}, home=home)) as platform:
        assert problems(platform) == ()
        if len(signers(platform)) == 1:
            platform.call(RotateKey())
        old_one, new = signers(platform)
        assert old_one == old
        assert len(platform.ports.secrets.names("ledger-key.")) == 1, "a key that a kill has left is taken up"
        dying = with_port(platform.ports, port, Fragile(getattr(platform.ports, port), method, call, after=after))
        retire(dying, platform, old)
    with Platform(Settings.load({}, home=home)) as platform:
        assert problems(platform) == ()
        if len(signers(platform)) == 2:
            platform.call(RetireKey(key=old))
        assert signers(platform) == [new]
        assert problems(platform) == ()
        assert platform.ports.secrets.names("ledger-key") == [f"ledger-key.{new}"]


def rotate(ports: Ports, platform: Platform) -> None:
    _run(ports, platform, RotateKey())


def retire(ports: Ports, platform: Platform, key: str) -> None:
    _run(ports, platform, RetireKey(key=key))


def _run(ports: Ports, platform: Platform, request: Request[object]) -> None:
    """One call and its integration, on ports that may die."""
    try:
        Dispatcher(ports, clock=utc_now, sequence=lambda: None).run(
            of_request(type(request)), msgspec.to_builtins(request), token=local_token(platform)
        )
        sequencer.integrate_all(ports)
    except Killed:
        pass


def test_a_checkpoint_must_carry_exactly_the_keys_in_force(platform: Platform) -> None:
    (old,) = signers(platform)
    first = keys.signers(platform.ports, ["ledger-key"])[0]
    new = platform.call(RotateKey()).id
    both = checkpoint(platform)
    second = keys.signers(platform.ports, [f"ledger-key.{new}"])[0]
    platform.call(RetireKey(key=old))
    alone = checkpoint(platform)
    ring = ledger.verifier_keys(platform.ports)
    assert ring.open(str(both))
    assert ring.open(str(alone))
    for one in both.signatures:
        with pytest.raises(IntegrityError, match=r"not signed by the key .*, which was in force"):
            ring.open(str(Note(text=both.text, signatures=(one,))))
    with pytest.raises(IntegrityError, match="was retired before"):
        ring.open(str(alone.with_signatures(first.sign(alone.text))))
    earlier = str(Checkpoint(origin=ring.origin, size=1, root=bytes(32)))
    with pytest.raises(IntegrityError, match="was announced later"):
        ring.open(str(Note(text=earlier, signatures=(first.sign(earlier), second.sign(earlier)))))


@pytest.mark.parametrize("text", ["", "# only a remark\n", "nonsense", "a+00000000+AQ==", "x since y"])
def test_what_is_no_key_ring_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        KeyRing.parse(text)


def test_of_two_that_settle_at_once_the_slower_one_does_not_put_an_older_list_back(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    (old,) = signers(platform)
    before = keys.held
    stale: list[object] = []

    def slow(sql: object) -> object:
        """Looks before the key is retired, and goes on after that was published."""
        if stale:
            return before(sql)
        stale.append(before(sql))
        monkeypatch.setattr(keys, "held", before)
        platform.call(RetireKey(key=old))
        platform.call(ShowKeys())
        monkeypatch.setattr(keys, "held", slow)
        monkeypatch.setattr(keys, "_out_of_date", always)
        return stale[0]

    def always(ports: object, ring: object) -> bool:
        monkeypatch.setattr(keys, "_out_of_date", really)
        return True

    really = keys._out_of_date
    platform.call(RotateKey())
    platform.call(ShowKeys())
    monkeypatch.setattr(keys, "held", slow)
    keys.settle(platform.ports)
    assert keys.published(platform.ports).keys[0].until is not None

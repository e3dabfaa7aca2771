"""The revocation list: what it says, who is believed, and what ends although SQL was not there."""

import logging
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.access.homes import Door, ports_of

from macadam.access import revocation, revoking
from macadam.access.revocation import Entry, RevocationList, Watch, open_list
from macadam.access.types import IssueToken, RevokeToken, RotateToken, WhoAmI
from macadam.errors import IntegrityError, InvalidInput, NotAuthenticated
from macadam.ledger import note as notes
from macadam.values import uuid7

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
KEY = notes.SignerKey("macadam-revocations", bytes(32))
OTHER = notes.SignerKey("macadam-revocations", bytes(31) + b"\x01")


def signed(number: int = 1, *entries: Entry, key: notes.SignerKey = KEY, issued: datetime = NOON) -> bytes:
    made = RevocationList(number=number, issued=issued, expires=issued + timedelta(hours=1), entries=entries)
    return str(notes.sign(str(made), key)).encode()


def test_a_list_is_read_as_it_was_written() -> None:
    entries = (Entry(token=uuid7(), at=NOON), Entry(token=uuid7(), at=NOON, by="offline:root"))
    read = open_list(signed(7, *entries), KEY.verifier)
    assert (read.number, read.entries) == (7, entries)


@given(st.integers(min_value=0, max_value=600), st.integers(min_value=0, max_value=255))
def test_a_list_with_any_byte_changed_is_refused(position: int, byte: int) -> None:
    whole = bytearray(signed(7, Entry(token="0" * 8 + "-0000" * 3 + "-" + "0" * 12, at=NOON)))
    position %= len(whole)
    if whole[position] == byte:
        return
    whole[position] = byte
    with pytest.raises((InvalidInput, IntegrityError)):
        open_list(bytes(whole), KEY.verifier)


def test_a_list_by_another_key_is_refused_and_the_last_one_goes_on() -> None:
    watch = Watch()
    first = Entry(token=uuid7(), at=NOON)
    assert watch.offer(signed(5, first), str(KEY.verifier), 0)
    with pytest.raises(IntegrityError, match="not signed by any"):
        watch.offer(signed(6, key=OTHER), str(KEY.verifier), 0)
    assert watch.revoked == {first.token}
    assert watch.refused == 1


def test_an_older_list_is_refused_also_by_a_reader_that_has_just_begun() -> None:
    watch = Watch()
    watch.offer(signed(5, Entry(token=uuid7(), at=NOON)), str(KEY.verifier), 0)
    for number in (4, 1):
        with pytest.raises(IntegrityError, match="it is an old one"):
            watch.offer(signed(number), str(KEY.verifier), 0)
    assert len(watch.revoked) == 1
    with pytest.raises(IntegrityError, match="it is an old one"):
        Watch().offer(signed(4), str(KEY.verifier), 5)
    assert not Watch().offer(signed(5), str(KEY.verifier), 5)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "macadam revocations v2\n1\n2026-01-01T12:00:00.000000Z\n2026-01-01T13:00:00.000000Z\n",
        "macadam revocations v1\n0\n2026-01-01T12:00:00.000000Z\n2026-01-01T13:00:00.000000Z\n",
        "macadam revocations v1\n01\n2026-01-01T12:00:00.000000Z\n2026-01-01T13:00:00.000000Z\n",
        "macadam revocations v1\n1\n2026-01-01T12:00:00.000000Z\n",
        "macadam revocations v1\n1\nyesterday\n2026-01-01T13:00:00.000000Z\n",
        "macadam revocations v1\n1\n2026-01-01T12:00:00.000000Z\n2026-01-01T13:00:00.000000Z\nabc 2026 -\n",
        "macadam revocations v1\n1\n2026-01-01T14:00:00.000000+02:00\n2026-01-01T13:00:00.000000Z\n",
    ],
)
def test_what_is_no_list_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        RevocationList.parse(text)


def published(door: Door) -> RevocationList:
    revoking.publish(door.ports, door.now)
    return open_list(door.ports.objects.get_name(revocation.NAME), revoking.signer(door.ports.secrets).verifier)


def test_the_list_names_what_is_revoked_and_has_not_expired(door: Door) -> None:
    kept, gone = (door.call(IssueToken(principal="local", hours=2)) for _ in range(2))
    assert published(door).entries == ()
    door.call(RevokeToken(token_id=gone.id))
    listed = published(door)
    assert [e.token for e in listed.entries] == [gone.id]
    assert kept.id not in str(listed)
    assert not revoking.publish(door.ports, door.now)
    door.now += timedelta(hours=3)
    later = published(door)
    assert later.entries == ()
    assert later.number > listed.number


def test_the_list_names_what_was_rotated_without_a_grace(door: Door) -> None:
    leaked = door.call(IssueToken(principal="local", hours=2))
    door.call(RotateToken(token_id=leaked.id, grace=0))
    assert [e.token for e in published(door).entries] == [leaked.id]


def test_a_token_revoked_without_sql_ends_there_too_with_a_leaf(door: Door) -> None:
    issued = door.call(IssueToken(principal="local"))
    ports = door.ports
    for _ in range(2):  # twice is once
        revoking.revoke_offline(
            ports.objects, ports.secrets, ports.settings.home, issued.id, by="offline:ann", now=door.now
        )
    # A control plane that publishes before it has recorded the entry must not lose it.
    assert [e.by for e in published(door).entries] == ["offline:ann"]
    assert door.call(WhoAmI(), issued.token).token == issued.id
    assert revoking.reconcile(ports, door.now) == [issued.id]
    assert revoking.reconcile(ports, door.now) == []
    with pytest.raises(NotAuthenticated):
        door.call(WhoAmI(), issued.token)
    leaf = [leaf for leaf in door.leaves() if leaf.outcome == "done"][-1]
    assert (leaf.kind, leaf.subject, leaf.body["by"]) == ("access.revoke_offline", f"token:{issued.id}", "offline:ann")
    assert [e.by for e in published(door).entries] == ["-"]


def test_a_database_restored_from_before_a_revocation_does_not_let_the_token_live_again(
    door: Door, tmp_path: Path
) -> None:
    issued = door.call(IssueToken(principal="local"))
    home = door.ports.settings.home
    door.ports.sql.close()
    for file in home.glob("macadam.sqlite*"):
        shutil.copy(file, tmp_path / file.name)
    door = Door(ports_of(home))
    door.call(RevokeToken(token_id=issued.id))
    published(door)
    door.ports.sql.close()
    for file in home.glob("macadam.sqlite*"):
        file.unlink()
    for file in tmp_path.glob("macadam.sqlite*"):
        shutil.copy(file, home / file.name)
    door = Door(ports_of(home))
    try:
        assert door.call(WhoAmI(), issued.token).token == issued.id
        assert revoking.reconcile(door.ports, door.now) == [issued.id]
        with pytest.raises(NotAuthenticated):
            door.call(WhoAmI(), issued.token)
    finally:
        door.ports.sql.close()


def test_a_forged_list_revokes_nothing_in_sql_and_is_replaced(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    issued = door.call(IssueToken(principal="local"))
    forged = signed(2**62, Entry(token=issued.id, at=NOON, by="mallory"), key=OTHER)
    door.ports.objects.set_name(revocation.NAME, forged)
    with caplog.at_level(logging.ERROR):
        assert revoking.reconcile(door.ports, door.now) == []
        assert published(door).entries == ()
    assert "not ours" in caplog.text
    assert door.call(WhoAmI(), issued.token).token == issued.id


def test_an_id_that_no_token_has_is_dropped_from_the_list(door: Door) -> None:
    ports = door.ports
    revoking.revoke_offline(ports.objects, ports.secrets, ports.settings.home, uuid7(), by="offline:ann", now=door.now)
    assert published(door).entries == ()
    with pytest.raises(InvalidInput, match="not a token's id"):
        revoking.revoke_offline(ports.objects, ports.secrets, ports.settings.home, "x\ny", by="a", now=door.now)

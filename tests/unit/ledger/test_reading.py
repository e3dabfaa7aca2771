"""Looking leaves up and proving them: what each filter finds, how pages join up, and who sees whose leaves."""

import base64
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import databases
import msgspec
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from unit.ledger.worlds import leaf, open_ports

from macadam.access.types import CreatePrincipal, CreateProject, GrantRole
from macadam.app.platform import Platform
from macadam.errors import IntegrityError, InvalidInput, NotAuthorised, NotFound
from macadam.ledger import reading, tree
from macadam.ledger import service as ledger
from macadam.ledger.leaf import Leaf
from macadam.ledger.sequencer import integrate_all
from macadam.ledger.types import (
    LogEntry,
    ProveGrowth,
    ProveLeaf,
    ReadLeaves,
    ShowLeaf,
    ShowLog,
    VerifyLedger,
)
from macadam.operations import Request
from macadam.settings import Settings
from macadam.testing import open_platform, token_of
from macadam.values import parse_instant

START = parse_instant("2026-11-21T07:00:00.000000Z")


def made(number: int, **said: object) -> Leaf:
    at = (START + timedelta(minutes=number)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return msgspec.structs.replace(leaf(f"thing:t{number}"), at=at, **said)


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def home(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    place = tmp_path_factory.mktemp("reading") / "home"
    with Platform(Settings.load(databases.environment(request.param), home=place)) as opened:
        for project in ("flights", "parcels"):
            opened.call(CreateProject(project=project))
        leaves = [
            made(
                n,
                project=("flights", "parcels")[n % 2],
                actor=f"principal:p{n % 3}",
                kind=f"tests.kind{n % 5}",
                uses=[f"thing:t{n - 2}"] if n > 1 else [],
                body={"word": f"w{n % 7}"},
            )
            for n in range(60)
        ]
        opened.ports.sql.write(lambda sql: ledger.queue(sql, *leaves))
        integrate_all(opened.ports)
        yield opened


def found(home: Platform, **wanted: object) -> list[LogEntry]:
    """All pages."""
    entries: list[LogEntry] = []
    after = 0
    while True:
        page = home.call(ShowLog(after=after, **wanted))  # type: ignore[arg-type]
        entries += page.entries
        after = page.more
        if not after:
            return entries


def numbers(entries: list[LogEntry]) -> list[int]:
    return [int(entry.subject.removeprefix("thing:t")) for entry in entries if entry.subject.startswith("thing:")]


WANTED = st.fixed_dictionaries(
    {},
    optional={
        "project": st.sampled_from(["*", "flights", "parcels"]),
        "actor": st.sampled_from(["principal:p0", "principal:p1", "principal:nobody"]),
        "kind": st.sampled_from(["tests.kind1", "tests.kind4"]),
        "ref": st.integers(0, 61).map(lambda n: f"thing:t{n}"),
        "subject": st.integers(0, 61).map(lambda n: f"thing:t{n}"),
        "outcome": st.sampled_from(["", "done", "denied"]),
        "since": st.integers(-1, 61).map(lambda n: START + timedelta(minutes=n)),
        "until": st.integers(-1, 61).map(lambda n: START + timedelta(minutes=n)),
        "text": st.sampled_from(['"word":"w3"', "principal:p2", "nowhere"]),
        "limit": st.integers(1, 25),
    },
)


@hypothesis_settings(max_examples=40, deadline=None)
@given(WANTED)
def test_the_log_is_what_a_reader_of_all_leaves_would_pick_out(home: Platform, wanted: dict[str, object]) -> None:
    with home.ports.sql.read() as sql:
        everything = ledger.find(sql)

    def fits(each: Leaf, text: bytes) -> bool:
        at = parse_instant(each.at)
        since, until = wanted.get("since"), wanted.get("until")
        return (
            all(not wanted.get(f) or getattr(each, f) == wanted[f] for f in ("actor", "kind", "subject", "outcome"))
            and wanted.get("project", "*") in ("*", each.project)
            and (not wanted.get("ref") or wanted["ref"] in (each.subject, *each.uses))
            and (not isinstance(since, datetime) or at >= since)
            and (not isinstance(until, datetime) or at < until)
            and str(wanted.get("text", "")).encode() in text
        )

    expected = [entry.leaf.id for entry in everything if fits(entry.leaf, entry.text)]
    assert [entry.id for entry in found(home, **wanted)] == expected


def test_pages_stay_what_they_are_while_others_go_on_writing(home: Platform) -> None:
    first = home.call(ShowLog(kind="tests.kind2", limit=4))
    home.call(CreatePrincipal(principal="principal:meanwhile"))
    home.ports.sql.write(lambda sql: ledger.queue(sql, made(99, kind="tests.kind2")))
    second = home.call(ShowLog(kind="tests.kind2", limit=4, after=first.more))
    assert numbers([*first.entries, *second.entries]) == [57, 52, 47, 42, 37, 32, 27, 22]


def test_a_search_for_text_looks_through_so_many_leaves_at_once_and_says_where_to_go_on(
    home: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MOST_EXAMINED", 20)
    monkeypatch.setattr(reading, "_EXAMINED_AT_ONCE", 10)
    page = home.call(ShowLog(text='"word":"w0"', project="flights"))
    assert len(page.entries) < 5
    assert page.more
    assert numbers(found(home, text='"word":"w0"', project="flights")) == [56, 42, 28, 14, 0]


def test_every_lookup_uses_an_index(tmp_path: Path) -> None:
    ports = open_ports(tmp_path / "home")
    asked: list[str] = []
    with ports.sql.read() as sql:

        def note(_c: object, _cursor: object, statement: str, parameters: object, *_rest: object) -> None:
            if "FROM ledger_leaves" in statement and not statement.startswith("EXPLAIN"):
                asked.append(statement)
                plans.append([row[3] for row in sql.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)])

        plans: list[list[str]] = []
        sa.event.listen(sql, "before_cursor_execute", note)
        for wanted in (
            ShowLog(kind="a.b"),
            ShowLog(actor="principal:a"),
            ShowLog(project="flights"),
            ShowLog(subject="thing:a"),
            ShowLog(ref="thing:a"),
            ShowLog(since=START),
        ):
            plans.clear()
            sql.execute(reading._narrowed(sql, wanted).limit(5)).all()
            flat = [step for plan in plans for step in plan]
            assert not [step for step in flat if step.startswith("SCAN ledger_leaves")], (wanted, flat)
            if not wanted.ref:
                assert not [step for step in flat if "TEMP B-TREE" in step], (wanted, flat)
    assert asked
    ports.sql.close()


# --- proofs


def test_a_leaf_is_proved_by_its_id_and_by_its_index_against_any_signed_size(home: Platform) -> None:
    entry = home.call(ShowLog(kind="tests.kind3", limit=1)).entries[0]
    by_id = home.call(ProveLeaf(leaf=entry.id))
    assert home.call(ProveLeaf(leaf=str(entry.index), size=by_id.size)) == by_id
    path = [bytes.fromhex(h) for h in by_id.path]
    tree.verify_inclusion(bytes.fromhex(by_id.hash), by_id.index, by_id.size, path, bytes.fromhex(by_id.root))
    home.call(CreatePrincipal(principal="principal:later"))
    integrate_all(home.ports)
    again = home.call(ProveLeaf(leaf=entry.id, size=by_id.size))
    assert (again.size, again.root, again.path) == (by_id.size, by_id.root, by_id.path)
    assert home.call(ProveLeaf(leaf=entry.id)).size > by_id.size


def test_a_size_that_was_never_signed_is_refused_with_some_that_were(home: Platform) -> None:
    inside = found(home, subject="thing:t30")[0].index  # of leaves that were queued together
    with pytest.raises(NotFound, match=f"No checkpoint was signed at {inside} leaves") as refused:
        home.call(ProveLeaf(leaf="0", size=inside))
    assert str(inside + 30) in refused.value.next_step


def test_growth_is_proved_between_any_two_sizes(home: Platform) -> None:
    newest = home.call(ProveGrowth(old=0)).new
    for old, to in ((0, 0), (1, newest), (5, 17), (newest, newest), (32, 64)):
        proof = home.call(ProveGrowth(old=old, to=to))
        path = [bytes.fromhex(h) for h in proof.path]
        tree.verify_consistency(old, bytes.fromhex(proof.old_root), proof.new, bytes.fromhex(proof.new_root), path)
    assert base64.b64encode(bytes.fromhex(home.call(ProveGrowth(old=3)).new_root)).decode() in proof_note(home)
    for old, to in ((5, 3), (1, newest + 1)):
        with pytest.raises(InvalidInput, match="no growth"):
            home.call(ProveGrowth(old=old, to=to))


def proof_note(home: Platform) -> str:
    return home.call(ProveGrowth(old=3)).checkpoint


def test_a_damaged_tile_is_an_error_and_no_proof(tmp_path: Path) -> None:
    with open_platform(tmp_path / "home") as opened:
        integrate_all(opened.ports)
        name = next(iter(opened.ports.objects.names("ledger/tile/0/")))
        held = opened.ports.objects.get_name(name)
        opened.ports.objects.set_name(name, held[:-1] + bytes([held[-1] ^ 1]))
        for asked in (ProveLeaf(leaf="0"), ProveGrowth(old=1)):
            with pytest.raises(IntegrityError, match=r"not lead to the root|does not|not the beginning"):
                opened.call(asked)


# --- one by one


def test_a_leaf_is_shown_with_all_that_is_known_of_it(home: Platform) -> None:
    entry = next(e for e in found(home, ref="thing:t10") if e.subject == "thing:t10")
    shown = home.call(ShowLeaf(leaf=entry.id))
    assert shown.entry == entry
    assert tree.leaf_hash(shown.text.encode()).hex() == shown.hash
    assert shown.proof is not None
    assert shown.proof.hash == shown.hash
    assert shown.decision["policies"] == ["p"]
    assert [(named.ref, named.kind) for named in shown.uses] == [("thing:t8", "tests.kind3")]
    assert numbers(list(shown.used_by)) == [12]
    assert shown.more_users == 0


def test_a_leaf_that_waits_is_shown_without_a_proof(home: Platform) -> None:
    waiting = made(77)
    home.ports.sql.write(lambda sql: ledger.queue(sql, waiting))
    shown = home.call(ShowLeaf(leaf=waiting.id))
    assert (shown.proof, shown.entry.index) == (None, -1)
    with pytest.raises(NotFound, match="not covered"):
        home.call(ProveLeaf(leaf=waiting.id))
    integrate_all(home.ports)


@pytest.mark.parametrize(
    "name", ["", "-1", "9" * 30, "2147483648", "²", "nobody", "1.0", "00000000-0000-7000-8000-000000000000"]
)
def test_what_names_no_leaf_is_not_found(home: Platform, name: str) -> None:
    with pytest.raises(NotFound, match="no leaf"):
        home.call(ShowLeaf(leaf=name))


def test_numbers_that_no_column_holds_are_refused_before_the_database_sees_them(home: Platform) -> None:
    for asked in (
        ShowLog(after=2**31),
        ProveLeaf(leaf="0", size=2**63),
        ReadLeaves(first=2**31),
        ProveGrowth(old=2**70),
    ):
        with pytest.raises(InvalidInput, match="2147483647"):
            home.call(asked)


# --- who sees whose leaves


def test_a_reader_of_one_project_sees_its_leaves_and_no_others(home: Platform) -> None:
    token = token_of(home, "principal:reader", {"flights": "viewer"})
    integrate_all(home.ports)
    entries = home.call(ShowLog(project="flights", limit=1000), token=token).entries
    assert {entry.project for entry in entries} == {"flights"}
    assert len(entries) > 30
    own, other = (found(home, project=project)[0] for project in ("flights", "parcels"))
    assert home.call(ShowLeaf(project="flights", leaf=own.id), token=token).entry == own
    for place in (other.id, str(other.index)):
        for asked in (ShowLeaf(project="flights", leaf=place), ProveLeaf(project="flights", leaf=place)):
            with pytest.raises(NotFound, match="no leaf"):
                home.call(asked, token=token)
    everything: list[Request[object]] = [ShowLog(), ShowLeaf(leaf=own.id), ProveLeaf(leaf="0"), ReadLeaves()]  # type: ignore[list-item]
    for asked_of_all in (
        *everything,
        ShowLog(project="parcels"),
        ProveGrowth(project="parcels", old=1),
        VerifyLedger(),
    ):
        with pytest.raises(NotAuthorised):
            home.call(asked_of_all, token=token)
    assert home.call(ProveGrowth(project="flights", old=1), token=token).old == 1


def test_a_copy_for_one_project_holds_the_others_leaves_as_hashes(home: Platform) -> None:
    token = token_of(home, "principal:copyist", {"flights": "viewer"})
    integrate_all(home.ports)
    page = home.call(ReadLeaves(project="flights"), token=token)
    frontier = tree.Frontier()
    for each in page.leaves:
        assert bool(each.text) != bool(each.hash)
        assert not each.text or '"project":"flights"' in each.text
        frontier.append(tree.leaf_hash(each.text.encode()) if each.text else bytes.fromhex(each.hash))
    assert frontier.size == page.size
    assert base64.b64encode(frontier.root()).decode() in page.checkpoints[-1]


def test_pages_of_leaves_end_at_a_number_of_bytes(home: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_PAGE_BYTES", 3000)
    size = home.call(ReadLeaves(limit=1)).size
    at, notes = 0, 0
    while at < size:
        page = home.call(ReadLeaves(first=at, size=size))
        assert [each.index for each in page.leaves] == list(range(at, at + len(page.leaves)))
        assert len(page.leaves) < 10
        at += len(page.leaves)
        notes += len(page.checkpoints)
    with home.ports.sql.read() as sql:
        assert notes == sql.exec_driver_sql(f"SELECT count(*) FROM ledger_checkpoints WHERE size <= {size}").scalar()


def test_a_role_granted_everywhere_reads_everything(home: Platform) -> None:
    token = token_of(home, "principal:everywhere")
    with pytest.raises(NotAuthorised):
        home.call(ShowLog(), token=token)
    home.call(GrantRole(project="*", principal="principal:everywhere", role="auditor"))
    assert len(home.call(ShowLog(limit=1000), token=token).entries) > 60

"""Two principals race, in one process and in two, on both databases: what comes out is what one order would have given.

Each race is first run in each order, one call after the other; the outcome of a race is one of these: the answers, the
state, and the leaves of what was done, in the ledger's order. Names, ids and instants are left out of the comparison.
MACADAM_SOAK=1 races more often.
"""

import multiprocessing
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from acceptance.rival import Move, carry_out, serve
from databases import KINDS, environment
from unit.models import worlds
from unit.serving import people

from macadam.access.schema import grants, principals, tokens
from macadam.access.types import (
    CreatePrincipal,
    CreateProject,
    DisablePrincipal,
    GrantRole,
    IssueToken,
    RevokeRole,
    RevokeToken,
)
from macadam.app.platform import Platform
from macadam.ledger import service as ledger
from macadam.ledger.leaf import Leaf
from macadam.ledger.types import VerifyLedger
from macadam.models.schema import aliases, approvals, versions
from macadam.models.types import Approve, DeclareThresholds, Evaluate, RegisterVersion, SetAlias, Train
from macadam.personal.types import EraseSubject
from macadam.personal.vault import Vault
from macadam.serving import registry
from macadam.serving.types import Deploy, Rollback, ShowPrediction
from macadam.settings import Settings
from macadam.testing import local_token

ROUNDS = 40 if os.environ.get("MACADAM_SOAK") == "1" else 3
GATES = "metrics: {roc_auc: {at_least: 0.5}}\nholdout: june\n"
PROJECT, MODEL = "flights", "late"
_VARIES = re.compile(
    r"[0-9a-f]{8}-[0-9a-f-]{27}|\d{4}-\d\d-\d\dT[\d:.]+Z|mcd_[\w-]+|sha256:[0-9a-f]{64}|(?<='created_by': ')[^']+"
    # Of an erasure: a person's random name, the certificate's signature, and how many people are left.
    r"|\b[0-9a-f]{32}\b|(?<=macadam.local/)[0-9a-f]{8} [\w+/=]+|(?<=keys rewrapped: )\d+|(?<=keys_rewrapped': )\d+"
)

pytestmark = pytest.mark.slow
_spawn = multiprocessing.get_context("forkserver")
Outcome = tuple[Any, ...]


class World:
    """A platform with two registered versions and two runs that are not, and a rival process on the same home."""

    def __init__(self, place: Path, kind: str) -> None:
        self.environment = environment(kind)
        self.home = place / "home"
        self.platform = Platform(Settings.load(self.environment, home=self.home))
        self.admin = local_token(self.platform)
        self.platform._token = self.admin
        self.platform.call(CreateProject(project=PROJECT))
        people.prepare(self.platform)
        self.runs = self._train(place / "source")
        for run in self.runs[:2]:
            self.platform.call(RegisterVersion(project=PROJECT, model=MODEL, run=run))
        self._pass_the_gate()
        self.wire, other = _spawn.Pipe()
        self._rival = _spawn.Process(target=serve, args=(self.home, self.environment, other))
        self._rival.start()
        assert self.wire.recv() == "ready"
        self._named = 0

    def _train(self, source: Path) -> list[str]:
        source.mkdir()
        (source / "train.py").write_text(worlds.TRAIN)
        ref = worlds.plant(self.platform, "train", worlds.rows(400, seed=1))
        sets = {"train": ref}
        asked = [
            Train(project=PROJECT, model=MODEL, source=str(source), training_sets=sets, params={"trees": trees})
            for trees in (3, 4, 5, 6)
        ]
        return [self.platform.call(one).ref for one in asked]

    def _pass_the_gate(self) -> None:
        """Both versions may become champion."""
        june = worlds.plant(self.platform, "june", worlds.rows(600, seed=2, start=9000))
        self.platform.call(DeclareThresholds(project=PROJECT, model=MODEL, text=GATES))
        for number in ("1", "2"):
            self.platform.call(Evaluate(project=PROJECT, model=MODEL, version=number, training_set=june, resamples=100))

    def close(self) -> None:
        self.wire.send(None)
        self._rival.join(20)
        self.platform.close()

    def name(self) -> str:
        """A new one for each round."""
        self._named += 1
        return f"zz{self._named}zz"

    def person(self, name: str, role: str = "", project: str = PROJECT) -> str:
        """A token of somebody new."""
        self.platform.call(CreatePrincipal(principal=name))
        if role:
            self.platform.call(GrantRole(project=project, principal=name, role=role))
        return self.platform.call(IssueToken(principal=name)).token

    def one_by_one(self, moves: Sequence[Move]) -> list[Any]:
        return [carry_out(self.platform, move) for move in moves]

    def at_once_in_threads(self, moves: Sequence[Move]) -> list[Any]:
        gate = threading.Barrier(len(moves))

        def go(move: Move) -> Any:
            gate.wait()
            return carry_out(self.platform, move)

        with ThreadPoolExecutor(len(moves)) as pool:
            return list(pool.map(go, moves))

    def at_once_in_processes(self, moves: Sequence[Move]) -> list[Any]:
        mine, theirs = moves
        self.wire.send(theirs)
        assert self.wire.recv() == "ready"
        self.wire.send("go")
        return [carry_out(self.platform, mine), self.wire.recv()]

    def leaves(self, after: int) -> list[tuple[str, str, str]]:
        with self.platform.ports.sql.read() as sql:
            found = list(reversed(ledger.find(sql)))[after:]
        return [
            (one.leaf.kind, one.leaf.actor, one.leaf.subject)
            for one in found
            if one.leaf.outcome == "done" and has_begun(one.leaf)
        ]

    def remember(self, person: str) -> str:
        """A prediction about somebody. Returns its id."""
        with people.gateway(self.platform) as writing:
            return writing.predict([person])[0]

    def what_is_left_of(self, person: str) -> tuple[Any, ...]:
        """Whether the key is there, and how many erasures of anybody wait for their end."""
        keys = Vault(self.home, self.platform.ports.secrets, PROJECT)
        try:
            return len(keys._known([keys.tag(person)])), len(keys.under_way())
        finally:
            keys.close()

    def ends(self, after: int) -> list[tuple[str, str, str]]:
        """Leaves of erasures that certify something."""
        with self.platform.ports.sql.read() as sql:
            found = list(reversed(ledger.find(sql)))[after:]
        return [(one.leaf.kind, one.leaf.actor, one.leaf.subject) for one in found if one.leaf.body.get("subjects")]

    def count(self) -> int:
        with self.platform.ports.sql.read() as sql:
            return len(ledger.find(sql))

    def rows(self, query: sa.Select[Any]) -> list[tuple[Any, ...]]:
        with self.platform.ports.sql.read() as sql:
            return [tuple(row) for row in sql.execute(query)]


@pytest.fixture(scope="module", params=KINDS)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        forkserver.ensure_running()
    made = World(tmp_path_factory.mktemp("races"), request.param)
    yield made
    made.close()


Made = tuple[list[Move], Callable[[], Any]]
Race = Callable[[World, str], Made]
"""Makes what two race for, under this name: their moves, and what the state says of it afterwards."""


def approve_once_each(world: World, name: str) -> tuple[list[Move], Callable[[], Any]]:
    """One approver with two windows open, on one version."""
    token = world.person(name, "approver")
    move = Move(Approve(project=PROJECT, model=MODEL, version="1"), token)
    query = sa.select(approvals.c.number).where(approvals.c.approver == f"principal:{name}")
    return [move, move], lambda: world.rows(query)


def two_approve(world: World, name: str) -> tuple[list[Move], Callable[[], Any]]:
    people = [f"{name}a", f"{name}b"]
    moves = [Move(Approve(project=PROJECT, model=MODEL, version="2"), world.person(p, "approver")) for p in people]
    query = sa.select(approvals.c.approver).where(approvals.c.approver.in_([f"principal:{p}" for p in people]))
    return moves, lambda: sorted(world.rows(query))


def grant_and_revoke(world: World, name: str) -> tuple[list[Move], Callable[[], Any]]:
    world.person(name)
    moves = [
        Move(GrantRole(project=PROJECT, principal=name, role="developer"), world.admin),
        Move(RevokeRole(project=PROJECT, principal=name, role="developer"), world.admin),
    ]
    query = sa.select(grants.c.role).where(grants.c.principal == f"principal:{name}")
    return moves, lambda: world.rows(query)


def revoke_and_use(world: World, name: str) -> tuple[list[Move], Callable[[], Any]]:
    world.person(name, "admin", "*")
    issued = world.platform.call(IssueToken(principal=name))
    moves = [
        Move(RevokeToken(token_id=issued.id), world.admin),
        Move(CreateProject(project=name), issued.token),
    ]
    query = sa.select(tokens.c.revoked.is_not(None)).where(tokens.c.id == issued.id)
    return moves, lambda: world.rows(query)


def move_one_alias(world: World, name: str) -> tuple[list[Move], Callable[[], Any]]:
    moves = [
        Move(SetAlias(project=PROJECT, model=MODEL, alias=name, version=number), world.admin) for number in ("1", "2")
    ]
    query = sa.select(aliases.c.number).where(aliases.c.alias == name)
    return moves, lambda: world.rows(query)


def move_the_champion(world: World, _name: str) -> tuple[list[Move], Callable[[], Any]]:
    """Through the gate, which asks for the evidence again in the transaction that moves it."""
    world.platform.call(SetAlias(project=PROJECT, model=MODEL, alias="champion", version="1"))
    moves = [
        Move(SetAlias(project=PROJECT, model=MODEL, alias="champion", version=number), world.admin)
        for number in ("2", "1")
    ]
    query = sa.select(aliases.c.number).where(aliases.c.alias == "champion")
    return moves, lambda: world.rows(query)


def deploy_and_roll_back(world: World, name: str) -> tuple[list[Move], Callable[[], Any]]:
    for number in ("1", "2"):
        world.platform.call(Deploy(project=PROJECT, endpoint=name, model=MODEL, version=number))
    moves = [
        Move(Deploy(project=PROJECT, endpoint=name, model=MODEL, version="1"), world.admin),
        Move(Rollback(project=PROJECT, endpoint=name), world.admin),
    ]

    def state() -> Any:
        with world.platform.ports.sql.read() as sql:
            return registry.require(sql, PROJECT, name).number

    return moves, state


def one_key_twice(world: World, name: str) -> tuple[list[Move], Callable[[], Any]]:
    move = Move(CreateProject(project=name), world.admin, key=name)
    return [move, move], lambda: None


def one_key_for_two_requests(world: World, name: str) -> tuple[list[Move], Callable[[], Any]]:
    return [Move(CreateProject(project=f"{name}-{n}"), world.admin, key=name) for n in range(2)], lambda: None


def one_name_twice(world: World, name: str) -> tuple[list[Move], Callable[[], Any]]:
    return [Move(CreateProject(project=name, description=text), world.admin) for text in ("a", "b")], lambda: None


def last_two_administrators(world: World, name: str) -> tuple[list[Move], Callable[[], Any]]:
    """Everybody else who administers is disabled first; whoever is left brings the next one in."""
    admins = sa.select(grants.c.principal).join(principals, principals.c.id == grants.c.principal)
    active = admins.where(grants.c.project == "*", grants.c.role == "admin", principals.c.disabled.is_(None))
    two = {f"principal:{one}": world.person(one, "admin", "*") for one in (f"{name}a", f"{name}b")}
    (first, a), (second, b) = two.items()
    for (other,) in world.rows(active):
        if other not in two:
            world.platform.call(DisablePrincipal(principal=other), token=a)
    moves = [Move(DisablePrincipal(principal=second), a), Move(DisablePrincipal(principal=first), b)]

    def state() -> Any:
        left = [principal for (principal,) in world.rows(active)]
        world.platform._token = world.admin = two[left[0]]
        return left

    return moves, state


def has_begun(leaf: Leaf) -> bool:
    """An erasure stands among other changes where it begins; the leaf of its end is about what it alone has destroyed."""
    return leaf.kind != "serving.erase_subject" or "begun" in leaf.body


def erase_and_lose(world: World, name: str, loses: Callable[[World, str, str], Move]) -> Made:
    """An erasure, and what takes its caller's leave away meanwhile: all is destroyed and certified, or nothing is."""
    eraser = f"{name}e"
    world.platform.call(CreatePrincipal(principal=eraser))
    world.platform.call(GrantRole(project=PROJECT, principal=eraser, role="admin"))
    issued = world.platform.call(IssueToken(principal=eraser))
    world.remember(name)
    moves = [
        Move(EraseSubject(project=PROJECT, subject=name), issued.token),
        loses(world, eraser, issued.id),
    ]
    return moves, lambda: world.what_is_left_of(name)


def erase_and_lose_the_role(world: World, name: str) -> Made:
    return erase_and_lose(
        world, name, lambda w, who, _: Move(RevokeRole(project=PROJECT, principal=who, role="admin"), w.admin)
    )


def erase_and_lose_the_token(world: World, name: str) -> Made:
    return erase_and_lose(world, name, lambda w, _who, token: Move(RevokeToken(token_id=token), w.admin))


def erase_two(world: World, name: str) -> Made:
    """Two people of one project, whose keys are wrapped anew by both."""
    people_ = [f"{name}a", f"{name}b"]
    for one in people_:
        world.remember(one)
    moves = [Move(EraseSubject(project=PROJECT, subject=one), world.admin) for one in people_]
    return moves, lambda: [world.what_is_left_of(one) for one in people_]


# The last one locks the local administrator out: the others come before it.
RACES: list[Race] = [
    approve_once_each,
    two_approve,
    grant_and_revoke,
    revoke_and_use,
    move_one_alias,
    move_the_champion,
    deploy_and_roll_back,
    one_key_twice,
    one_key_for_two_requests,
    one_name_twice,
    erase_and_lose_the_role,
    erase_and_lose_the_token,
    erase_two,
    last_two_administrators,
]


def outcome(world: World, race: Race, run: Callable[[Sequence[Move]], list[Any]], *, turned: bool) -> Outcome:
    """How it ended: each move's answer, the state, and the leaves of what was done, with nothing that varies."""
    name = world.name()
    moves, state = race(world, name)
    before = world.count()
    answers = run(moves[::-1] if turned else moves)
    text = repr((answers[::-1] if turned else answers, state(), world.leaves(before)))
    return (_VARIES.sub("#", text.replace(name, "NAME")),)


@pytest.mark.parametrize("race", RACES, ids=lambda race: race.__name__)
def test_the_outcome_of_a_race_is_that_of_one_order(world: World, race: Race) -> None:
    serial = {outcome(world, race, world.one_by_one, turned=turned) for turned in (False, True)}
    for number in range(ROUNDS):
        for at_once in (world.at_once_in_threads, world.at_once_in_processes):
            found = outcome(world, race, at_once, turned=bool(number % 2))
            assert found in serial, f"{at_once.__name__}: {found}\nis none of\n{serial}"


@pytest.mark.parametrize("how", ["threads", "processes"])
def test_two_who_erase_one_person_at_once_make_one_erasure_with_one_certificate(world: World, how: str) -> None:
    for _ in range(ROUNDS):
        name = world.name()
        prediction = world.remember(name)
        before = world.count()
        erase = EraseSubject(project=PROJECT, subject=name)
        moves = [Move(erase, world.admin), Move(erase, world.person(f"{name}e", "admin"))]
        answers = world.at_once_in_threads(moves) if how == "threads" else world.at_once_in_processes(moves)
        # Who comes between the last two steps of the other is told to call again.
        answers = [
            carry_out(world.platform, move) if answer == ("refused", "Busy") else answer
            for move, answer in zip(moves, answers, strict=True)
        ]
        # Both get it if one finds the other's under way; else the later one, in some order, finds nothing left.
        found = {answer["id"] for kind, answer in answers if kind == "done"} - {""}
        assert [kind for kind, _ in answers] == ["done", "done"], answers
        assert len(found) == 1
        certificates = {answer["certificate"] for _, answer in answers} - {""}
        assert len(certificates) == 1
        assert world.what_is_left_of(name) == (0, 0)
        told = [f"erasure:{one}" for one in found]
        assert [subject for kind, _, subject in world.ends(before) if kind == "serving.erase_subject"] == told
        page = world.platform.call(ShowPrediction(project=PROJECT, prediction=prediction))
        assert page.personal is not None
        assert (page.personal.state, page.personal.certificate) == ("erased", *found)


def test_beside_predictions_about_the_person_each_is_erased_or_about_somebody_new(world: World) -> None:
    name = world.name()
    stop = threading.Event()
    with people.gateway(world.platform) as writing, ThreadPoolExecutor(1) as pool:
        ids = writing.predict([name])

        def traffic() -> None:
            while not stop.is_set():
                ids.extend(writing.predict([name]))
                stop.wait(0.005)

        running = pool.submit(traffic)
        erase = Move(EraseSubject(project=PROJECT, subject=name), world.admin)
        answers = [answer for _ in range(ROUNDS) for answer in world.at_once_in_processes([erase, erase])]
        stop.set()
        running.result()
    assert {kind for kind, _ in answers} == {"done"}
    certified = {answer["id"]: answer for _, answer in answers if answer["id"]}
    pages = [world.platform.call(ShowPrediction(project=PROJECT, prediction=one)).personal for one in ids]
    found = [page for page in pages if page is not None]
    assert {page.state for page in found} <= {"erased", "readable"}
    assert found[0].state == "erased"
    erased = {page.certificate for page in found if page.state == "erased"}
    assert erased <= set(certified)
    counted = sum(answer["predictions"] for answer in certified.values())
    assert counted == sum(page.state == "erased" for page in found)
    assert all(page.values["inputs.c"] == name for page in found if page.state == "readable")


def test_two_who_register_at_once_get_the_next_two_numbers(world: World) -> None:
    before = world.count()
    moves = [Move(RegisterVersion(project=PROJECT, model=MODEL, run=run), world.admin) for run in world.runs[2:]]
    answers = world.at_once_in_processes(moves)
    assert sorted(msgspec.convert(answer["number"], int) for how, answer in answers if how == "done") == [3, 4]
    query = sa.select(versions.c.number).where(versions.c.model == MODEL).order_by(versions.c.number)
    assert world.rows(query) == [(1,), (2,), (3,), (4,)]
    registered = [subject for kind, _, subject in world.leaves(before) if kind == "models.register_version"]
    assert registered == [f"model:{MODEL}@3", f"model:{MODEL}@4"]


def test_after_all_races_the_ledger_holds(world: World) -> None:
    assert world.platform.call(VerifyLedger(deep=True)).problems == ()

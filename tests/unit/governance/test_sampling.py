"""Sealed predictions followed back to their evidence, over real objects, leaves and proofs."""

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import sqlalchemy as sa
from unit.access.homes import Door, ports_of
from unit.governance.worlds import ARTIFACT, leaf, leaves

from macadam.access import service as access
from macadam.access.types import CreateProject
from macadam.governance import sampling
from macadam.governance.checks import CHECKS
from macadam.governance.collect import gather
from macadam.governance.evidence import Sample
from macadam.journal import layout, places, record
from macadam.journal.places import Place
from macadam.journal.record import Prediction
from macadam.journal.schema import segments
from macadam.ledger import sequencer
from macadam.ledger import service as ledger
from macadam.ledger.leaf import Leaf
from macadam.ledger.tree import leaf_hash, root_of
from macadam.operations import Call, Context, Decision, of_request
from macadam.ports import Ports
from macadam.values import instant, utc_now, uuid7


def prediction(deployment: str, **changes: str) -> Prediction:
    made = Prediction(
        id=uuid7(),
        at=instant(utc_now()),
        project="flights",
        endpoint="delay",
        variant="live",
        version="model:delay@1",
        model_digest=ARTIFACT,
        deployment=deployment,
        actor="service:replay",
        inputs={},
        features={},
        output={"score": 0.5},
        outcome="ok",
        stages_us={},
    )
    return msgspec.structs.replace(made, **changes)


class Home:
    """A project whose evidence is in a real ledger, to which sealed segments are added."""

    def __init__(self, ports: Ports) -> None:
        self.ports = ports
        Door(ports).call(CreateProject(project="flights"))
        self.chain = [x for x in leaves() if x.subject not in ("project:flights", "segment:1")]
        self.deployment = next(x for x in self.chain if x.subject == "endpoint:delay").id

    def record(self, chain: list[Leaf]) -> None:
        self.ports.sql.write(lambda sql: [ledger.queue(sql, x) for x in chain])

    def seal(self, *sealed: Prediction, told: int | None = None, spoil: Callable[[bytes], bytes] = bytes) -> None:
        """told: how many records the leaf claims; spoil: what happened to the archive's bytes."""
        payloads = [record.encode(p) for p in sealed]
        frames = [layout.frame(p) for p in payloads]
        offsets = [sum(map(len, frames[:i])) for i in range(len(frames))]
        hashes = [leaf_hash(p) for p in payloads]
        index = places.build([Place(uuid.UUID(p.id).bytes, offsets[i], i) for i, p in enumerate(sealed)], hashes)
        name, root = uuid7(), f"sha256:{root_of(hashes).hex()}"
        count = len(sealed) if told is None else told
        said = leaf(30, "journal.seal_segments", f"segment:{name}", root=root, count=count, answers=count)
        objects = self.ports.objects
        values = {
            "id": name, "project": "flights", "gateway": "g", "worker": 0, "first_id": sealed[0].id,
            "last_id": sealed[-1].id, "first_at": "", "last_at": "", "count": len(sealed), "answers": len(sealed),
            "torn": 0, "root": root, "archive": objects.put(spoil(b"".join(frames))), "places": objects.put(index),
            "snapshot": "", "leaf": said.id, "sealed": utc_now(),
        }  # fmt: skip

        def keep(sql: sa.Connection) -> None:
            ledger.queue(sql, said)
            sql.execute(sa.insert(segments).values(values))

        self.ports.sql.write(keep)

    def draw(self) -> Sample:
        sequencer.integrate_all(self.ports)
        with self.ports.sql.read() as sql:
            return sampling.draw(context(self.ports), sql, "flights")

    def faults(self) -> set[str]:
        return {fault for traced in self.draw().drawn for fault in traced.faults}


def context(ports: Ports) -> Context:
    operation = of_request(CreateProject)
    token = ports.secrets.get("local-token").decode()
    with ports.sql.read() as sql:
        actor = access.authenticate(sql, token, utc_now())
    decision = Decision(id=uuid7(), allowed=True, policies=(), policy_set="")
    call = Call(
        operation=operation,
        actor=actor,
        project="flights",
        decision=decision,
        request_digest="",
        now=utc_now(),
    )
    return Context(call=call, ports=ports, progress=lambda *_: None, authorise=lambda *_: None, begin=lambda _: None)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    ports = ports_of(tmp_path / "home")
    ports.sql.migrate()
    ledger.bootstrap(ports)
    access.bootstrap(ports)
    yield Home(ports)
    ports.sql.close()


def test_a_project_without_predictions_has_none_to_draw(home: Home) -> None:
    home.record(home.chain)
    assert home.draw() == Sample()


def test_every_record_of_a_small_journal_is_drawn_and_proves(home: Home) -> None:
    home.record(home.chain)
    told = [prediction(home.deployment) for _ in range(60)]
    home.seal(*told[:7])
    home.seal(*told[7:])
    sample = home.draw()
    assert sample.population == 60
    assert sorted(traced.id for traced in sample.drawn) == [p.id for p in told]
    assert {fault for traced in sample.drawn for fault in traced.faults} == set()


def test_a_large_journal_is_sampled(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "DRAWN", 10)
    monkeypatch.setattr(sampling, "MOST_SEGMENTS", 2)
    home.record(home.chain)
    for _ in range(4):
        home.seal(*(prediction(home.deployment) for _ in range(9)))
    sample = home.draw()
    assert (sample.population, len(sample.drawn)) == (36, 10)
    assert len({traced.id for traced in sample.drawn}) == 10


@pytest.mark.parametrize(
    ("subject", "word"),
    [
        ("model:delay@1", "model:delay@1 was never registered"),
        ("run:1", "no run behind"),
        ("training_set:early@1", "training_set:early@1 is named behind model:delay@1"),
        ("thresholds:delay@1", "thresholds:delay@1 is named behind model:delay@1"),
        ("table:flights@1", "no snapshot behind"),
        ("contract:flights@1.0.0", "no contract behind"),
        ("environment:lock@1", "no environment behind"),
        ("endpoint:delay", "is not in the ledger"),
    ],
)
def test_a_link_that_was_never_recorded_is_missed(home: Home, subject: str, word: str) -> None:
    home.record([x for x in home.chain if x.subject != subject])
    home.seal(prediction(home.deployment))
    assert any(word in fault for fault in home.faults())


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"model_digest": "sha256:" + "0" * 64}, "is of other bytes"),
        ({"version": "model:delay@2"}, "is not of model:delay@2"),
        ({"deployment": uuid7()}, "is not in the ledger"),
    ],
)
def test_an_answer_by_something_else_than_was_deployed_is_caught(
    home: Home, changes: dict[str, str], word: str
) -> None:
    home.record(home.chain)
    home.seal(msgspec.structs.replace(prediction(home.deployment), **changes))
    assert any(word in fault for fault in home.faults())


def test_a_changed_record_does_not_prove(home: Home) -> None:
    home.record(home.chain)
    home.seal(prediction(home.deployment), spoil=lambda data: data.replace(b"0.5", b"0.9"))
    assert any("does not prove" in fault for fault in home.faults())


def test_a_segment_that_the_ledger_does_not_describe_is_caught(home: Home) -> None:
    home.record(home.chain)
    home.seal(prediction(home.deployment), prediction(home.deployment), told=3)
    assert any("not what the ledger says" in fault for fault in home.faults())


def test_lost_bytes_are_a_fault_and_no_crash(home: Home) -> None:
    home.record(home.chain)
    home.seal(prediction(home.deployment))
    for file in (home.ports.settings.home / "objects").rglob("*"):
        if file.is_file() and file.stat().st_size == 76:  # the index: one record
            file.unlink()
    assert any("cannot be read" in fault for fault in home.faults())


def test_a_refusal_before_any_model_was_chosen_has_nothing_behind_it(home: Home) -> None:
    home.record(home.chain)
    home.seal(prediction("", version="", model_digest="", outcome="error:invalid-input"))
    assert home.faults() == set()


def test_what_is_gathered_reaches_the_check(home: Home) -> None:
    home.record(home.chain)
    home.seal(prediction(home.deployment))
    sequencer.integrate_all(home.ports)
    with home.ports.sql.read() as sql:
        evidence = gather(context(home.ports), sql, "flights", utc_now())
    assert CHECKS["35"](evidence).status == "pass"
    assert CHECKS["34"](evidence).status == "pass"
    assert CHECKS["42"](evidence).status == "did_not_run"

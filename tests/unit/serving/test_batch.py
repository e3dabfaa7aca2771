"""What one turn of the loop answers together: each by itself right or wrong, and nothing without its record."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.serving.leave import to_ask

from macadam.errors import MacadamError, StorageFull, Unavailable
from macadam.journal import record
from macadam.journal.gaps import GapCounter
from macadam.journal.layout import MAX_PAYLOAD
from macadam.journal.segment import SegmentReader
from macadam.journal.types import JournalPolicy, OnFailure
from macadam.journal.writer import JournalWriter
from macadam.models.signature import Encoder, Input, Output, Signature
from macadam.personal.cloak import ProjectCloak
from macadam.personal.types import PersonalFields
from macadam.serving.batch import Ask, Batcher, Ids
from macadam.serving.desk import Clerk
from macadam.serving.journals import ProjectJournal, working
from macadam.serving.metrics import Metrics
from macadam.serving.runtime import Model, Serving
from macadam.serving.types import Deployment

SIGNATURE = Signature(
    inputs=(Input(name="x", kind="number"), Input(name="c", kind="category", categories=("a", "b"))),
    outputs=(Output(name="score", kind="probability", tensor="probabilities", column=1),),
)
DEPLOYMENT = Deployment(
    id="0193e000-0000-7000-8000-000000000000",
    project="flights",
    endpoint="delay",
    model="m",
    number=1,
    version="model:m@1",
    artifact="sha256:" + "a" * 64,
    signature="sha256:" + "b" * 64,
    service=None,
    threshold=0.5,
    replaced="",
    actor="principal:local",
    at=datetime(2026, 1, 1, tzinfo=UTC),
)


class Half(Model):
    """A model in Python: answers x / 2; fails if it is told to."""

    def __init__(self, *, broken: bool = False) -> None:
        self.signature = SIGNATURE
        self.is_probability = True
        self.broken = broken
        self.calls: list[int] = []

    def scores(self, rows: object) -> list[float]:
        assert isinstance(rows, list)
        self.calls.append(len(rows))
        if self.broken:
            raise RuntimeError("no memory")
        return [row[0] / 2 for row in rows]


class Features:
    """A feature service that cannot read its store."""

    def read(self, *_: object) -> dict[str, object]:
        raise Unavailable("The online store does not answer.")


class Nothing:
    def get(self, keys: object) -> list[bytes | None]:
        raise NotImplementedError

    put = delete = scan = close = get


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[JournalWriter]:
    with JournalWriter(tmp_path, gateway="g", worker=0, project="flights") as writer:
        yield writer


def serving(*, broken: bool = False) -> Serving:
    return Serving(DEPLOYMENT, Half(broken=broken))


def ask(to: Serving, **inputs: object) -> Ask:
    return Ask(
        serving=to, actor="service:web", granted=to_ask(to.deployment.endpoint), inputs={"x": 0.5, "c": "a", **inputs}
    )  # type: ignore[dict-item]


def written(journal: JournalWriter) -> list[record.Prediction]:
    with SegmentReader(journal.path) as reader:
        return [record.decode(item.payload) for item in reader]


def batcher(journal: JournalWriter) -> Batcher:
    return Batcher(Nothing(), lambda _project: working(journal))  # type: ignore[arg-type]


def test_a_batch_is_one_model_call_and_each_gets_its_own_answer(journal: JournalWriter) -> None:
    to = serving()
    asks = [ask(to, x=n / 10) for n in range(10)]
    asks.insert(3, ask(to, x="wrong"))
    asks.insert(5, ask(to, other=1))
    batcher(journal).run(asks)
    assert to.model.calls == [10]  # type: ignore[attr-defined]
    assert [a.status for a in asks].count(200) == 10
    assert (asks[3].status, asks[5].status) == (422, 422)
    bodies = [msgspec.json.decode(a.answer.partition(b"\r\n\r\n")[2]) for a in asks if a.status == 200]
    found = written(journal)
    assert [r.id for r in found] == [b["prediction"] for b in bodies]
    assert [r.output for r in found] == [b["output"] for b in bodies]
    assert [r.inputs["x"] for r in found] == [n / 10 for n in range(10)]
    assert found[0].actor == "service:web"
    assert found[0].deployment == DEPLOYMENT.id


def test_a_model_that_fails_is_said_and_recorded(journal: JournalWriter) -> None:
    one = ask(serving(broken=True))
    batcher(journal).run([one])
    assert one.status == 503
    assert b"model-failed" in one.answer
    assert b"no memory" not in one.answer  # it may quote the row of another caller
    assert [(r.outcome, r.output) for r in written(journal)] == [("error:model", {})]


def test_features_that_cannot_be_read_are_said_and_recorded(journal: JournalWriter) -> None:
    to = serving()
    to.service = Features()  # type: ignore[assignment]
    one = ask(to)
    batcher(journal).run([one])
    assert one.status == 503
    assert b"online store does not answer" in one.answer
    assert [r.outcome for r in written(journal)] == ["error:features"]


def test_a_request_that_breaks_a_feature_service_takes_no_other_with_it(journal: JournalWriter) -> None:
    class Broken(Features):
        def read(self, *_: object) -> dict[str, object]:
            raise ZeroDivisionError

    to = serving()
    to.service = Broken()  # type: ignore[assignment]
    bad, good = ask(to), ask(serving())
    batcher(journal).run([bad, good])
    assert (bad.status, good.status) == (503, 200)
    assert [r.outcome for r in written(journal)] == ["error:features", "ok"]


def full(on_failure: OnFailure, folder: Path) -> ProjectJournal:
    """A journal whose disk is full."""
    made = ProjectJournal(JournalPolicy(on_journal_failure=on_failure), GapCounter(folder))
    made.problem = StorageFull("The disk of /somewhere is full.", next_step="Free space.")
    return made


def test_without_room_for_the_record_there_is_no_answer_and_no_path_in_the_refusal(tmp_path: Path) -> None:
    one, journal = ask(serving()), full("stop", tmp_path)
    _, receipts = Batcher(Nothing(), lambda _: journal).run([one])  # type: ignore[arg-type]
    assert (one.status, receipts) == (503, [])
    assert b"journal-disk-full" in one.answer
    assert b"retry-after: 1" in one.answer
    assert b"/somewhere" not in one.answer
    assert b'"score"' not in one.answer
    assert (journal.refused["disk-full"], journal.gap.answers) == (1, 0)


def test_without_keys_nobody_is_answered_about_a_person_and_no_path_is_named(journal: JournalWriter) -> None:
    def no_cloak(_project: str) -> ProjectCloak:
        raise Unavailable("The keys cannot be opened: /somewhere/subjects.")

    to = Serving(msgspec.structs.replace(DEPLOYMENT, personal=PersonalFields(subject="c", inputs=("c",))), Half())
    one, other = ask(to), ask(serving())
    Batcher(Nothing(), lambda _: working(journal), no_cloak).run([one, other])  # type: ignore[arg-type]
    assert (one.status, other.status) == (503, 200)
    assert b"keys-unavailable" in one.answer
    assert b"/somewhere" not in one.answer
    assert len(written(journal)) == 1


def test_an_answer_that_no_writer_has_seen_is_counted_where_it_leaves(tmp_path: Path) -> None:
    class Line:
        def send(self, _data: bytes, *, last: bool) -> bool:
            return not last

        def answered(self, _count: int) -> None:
            pass

    class Sent:
        fixed, keep_alive, old, method = False, True, False, b"POST"

        def __init__(self, one: Ask) -> None:
            self.connection, self.answer = Line(), one.answer

    def deliver(one: Ask, journal: ProjectJournal) -> int:
        journals = type("One", (), {"of": lambda _self, _project: journal})()
        nothing: Any = None
        clerk = Clerk(
            nothing, nothing, Metrics(), nothing, journals=journals, guard=nothing, gauges=dict, is_draining=bool
        )
        sent: Any = Sent(one)
        clerk._deliver(sent.connection, [(sent, one)])
        return journal.gap.answers

    silent = ask(serving())
    silent.status, silent.answer = 200, b"HTTP/1.1 200 OK\r\n\r\n{}"
    assert deliver(silent, full("stop", tmp_path)) == 1
    declared, journal = ask(serving()), full("answer-unrecorded", tmp_path)
    Batcher(Nothing(), lambda _: journal).run([declared])  # type: ignore[arg-type]
    assert deliver(declared, journal) == 1  # counted when the journal refused it, and not again
    wrong = ask(serving())
    wrong.status, wrong.answer = 422, b"HTTP/1.1 422 No\r\n\r\n{}"
    assert deliver(wrong, full("stop", tmp_path)) == 0


def test_where_it_was_declared_answers_without_a_record_say_so_and_are_counted(tmp_path: Path) -> None:
    asks, journal = [ask(serving()), ask(serving()), ask(serving(), x="wrong")], full("answer-unrecorded", tmp_path)
    _, receipts = Batcher(Nothing(), lambda _: journal).run(asks)  # type: ignore[arg-type]
    assert ([one.status for one in asks], receipts) == ([200, 200, 422], [])
    assert b"x-macadam-journal: unrecorded" in asks[0].answer
    assert b'"prediction":""' in asks[0].answer
    assert b"x-macadam-journal" not in asks[2].answer
    gap = journal.gap.pending()
    assert gap is not None
    assert (gap.causes, gap.answers) == ({"disk-full": 2}, 2)


def test_a_record_over_the_limit_is_refused_alone(journal: JournalWriter) -> None:
    large, other = ask(serving(), c="x" * MAX_PAYLOAD), ask(serving())
    batcher(journal).run([large, other])
    assert (large.status, other.status) == (413, 200)
    assert len(written(journal)) == 1


def test_a_number_that_is_none_is_null_in_record_and_answer(journal: JournalWriter) -> None:
    one = ask(serving(), x=None)
    batcher(journal).run([one])
    assert one.status == 200
    assert one.answer.endswith(b'"output":{"score":null}}')
    assert written(journal)[0].output == {"score": None}


@given(
    st.dictionaries(st.sampled_from(["x", "c"]), st.text() | st.integers() | st.floats() | st.booleans() | st.none())
)
def test_whatever_is_sent_one_answer_spoils_no_other(
    tmp_path_factory: pytest.TempPathFactory, sent: dict[str, object]
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    to = serving()
    bad = Ask(serving=to, actor="service:web", granted=to_ask(to.deployment.endpoint), inputs=sent)  # type: ignore[arg-type]
    good = ask(to)
    with JournalWriter(folder, gateway="g", worker=0, project="flights", fsync_every=60) as journal:
        batcher(journal).run([bad, good])
        assert good.status == 200
        assert bad.status in (200, 422)
        assert len(written(journal)) == 1 + (bad.status == 200)


def test_ids_grow_even_if_the_clock_goes_back() -> None:
    ids = Ids()
    now = time.time_ns()
    found = [one for step in (0, 0, -5_000_000, 1_000) for one in ids.take(700, now + step)]
    assert found == sorted(set(found))
    assert {(len(one), one[14], one[19]) for one in found} == {(36, "7", "8")}


def test_the_encoder_is_that_of_the_training(journal: JournalWriter) -> None:
    one = ask(serving(), x=3, c="unseen")
    batcher(journal).run([one])
    assert repr(one.row) == repr(Encoder(SIGNATURE)({"x": 3, "c": "unseen"}))


def test_errors_of_the_journal_are_the_trees(journal: JournalWriter) -> None:
    journal.close()
    one = ask(serving())
    batcher(journal).run([one])
    assert one.status == 503
    assert issubclass(StorageFull, MacadamError)

"""Answers the requests of one turn of the event loop together: one clock, one model call per version, one journal write.

Every record is in the journal before any answer is made. What a request alone does wrong is its own answer; what the
platform fails at (features, model, journal) is said, and recorded where the journal still takes it.
"""

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from macadam.errors import InvalidInput, MacadamError, TooLarge, Unavailable
from macadam.journal.layout import MAX_PAYLOAD
from macadam.journal.writer import Receipt
from macadam.operations import Granted
from macadam.personal import cipher, cloak
from macadam.personal.cipher import SubjectKey
from macadam.personal.cloak import ProjectCloak
from macadam.ports import OnlineStore
from macadam.serving import answers
from macadam.serving.journals import ProjectJournal, refusal
from macadam.serving.runtime import Serving
from macadam.values import instant

JournalOf = Callable[[str], ProjectJournal]
"""Project -> its journal."""
CloakOf = Callable[[str], ProjectCloak]
"""Project -> what hides its personal values. Raises Unavailable."""

Scalar = str | int | float | bool | None


class Body(msgspec.Struct, forbid_unknown_fields=True):
    """What a client sends. at: a replay's clock."""

    inputs: dict[str, Scalar]
    at: datetime | None = None


ASKS = ("predictions:create",)


class Ask(msgspec.Struct):
    """One authorised request, on its way. granted: without it no feature is read and no model asked. answer: empty until there is one; journal: that must confirm the record before
    the answer leaves, if any; subject: whom it is about, where the endpoint has personal fields; is_unrecorded: it has no
    record and is counted as such.
    """

    serving: Serving
    actor: str
    granted: Granted
    inputs: dict[str, Scalar]
    at: datetime | None = None
    trace: str = ""
    features: dict[str, Any] = msgspec.field(default_factory=dict)
    row: list[float] = msgspec.field(default_factory=list)
    score: float | None = None
    output: bytes = b""
    outcome: str = ""
    problem: bytes = b""
    answer: bytes = b""
    status: int = 0
    receipt: Receipt | None = None
    journal: ProjectJournal | None = None
    subject: str = ""
    is_unrecorded: bool = False


class _Moment(msgspec.Struct, frozen=True):
    """What the records and answers of one batch share. end: of a record; timing: a header's value."""

    now_ns: int
    at: str
    end: bytes
    timing: bytes


class Stages(msgspec.Struct):
    """Seconds that one batch spent in each stage."""

    features: float = 0.0
    predict: float = 0.0
    journal: float = 0.0


class _Tail(msgspec.Struct):
    """The part of a record that differs between requests, in the order of `record.Prediction`."""

    inputs: Mapping[str, object]
    features: Mapping[str, object]


_log = logging.getLogger(__name__)
_FEATURES_FAILED = answers.problem(
    503, "features-failed", "The features could not be computed.", next_step="Ask the operator to read the log."
)
_MODEL_FAILED = answers.problem(503, "model-failed", "The model failed.", next_step="Ask the operator to read the log.")
_NO_KEYS = answers.problem(
    503,
    "keys-unavailable",
    "No prediction about a person is answered while the keys that its record needs cannot be used.",
    next_step="Ask again later. The operator finds why in the gateway's log.",
)
_RANDOM_BLOCK = 512
_encode = msgspec.json.Encoder().encode
decode_body = msgspec.json.Decoder(Body).decode


class Ids:
    """UUIDv7 for a batch from one look at the clock; strictly increasing within this process."""

    def __init__(self) -> None:
        self._last = 0
        self._random = ""
        self._used = 0

    def take(self, count: int, now_ns: int) -> list[str]:
        """now_ns: of the epoch."""
        ticks = now_ns * 4096 // 1_000_000  # RFC 9562, method 3: parts of a millisecond in rand_a
        at = self._used
        if at + 16 * count > len(self._random):
            self._random, at = os.urandom(8 * (count + _RANDOM_BLOCK)).hex(), 0  # one system call for many ids
        random = self._random
        found = []
        for _ in range(count):
            ticks = self._last = ticks if ticks > self._last else self._last + 1
            head = f"{ticks >> 12:012x}"
            # The digit 8 is the variant; it is followed by 60 random bits.
            tail = random[at + 1 : at + 4], random[at + 4 : at + 16]
            found.append(f"{head[:8]}-{head[8:]}-7{ticks & 0xFFF:03x}-8{tail[0]}-{tail[1]}")
            at += 16
        self._used = at
        return found


def no_cloak(project: str) -> ProjectCloak:
    """For a gateway whose endpoints have no personal fields. Raises Unavailable."""
    raise Unavailable(f"This gateway has no keys of project {project!r}.", next_step="Start it on the project's home.")


class Batcher:
    """Carries batches out. One per gateway; for the event loop's thread only."""

    def __init__(self, online: OnlineStore, journal_of: JournalOf, cloak_of: CloakOf = no_cloak) -> None:
        self._online = online
        self._journal_of = journal_of
        self._cloak_of = cloak_of
        self._ids = Ids()
        self._heads: dict[tuple[str, str], bytes] = {}
        self._said: dict[str, str] = {}

    def run(self, asks: Sequence[Ask]) -> tuple[Stages, list[Receipt]]:
        """Fills in each answer. Returns how long the stages took, and the receipts of what was journaled."""
        stages = Stages()
        now_ns = time.time_ns()
        start = time.perf_counter()
        now = datetime.fromtimestamp(now_ns // 1000 / 1e6, UTC)
        for ask in asks:
            self._prepare(ask, now)
        featured = time.perf_counter()
        for group in _groups(asks):
            _score(group)
        scored = time.perf_counter()
        stages.features, stages.predict = featured - start, scored - featured
        receipts = self.journal(asks, now_ns, now, stages)
        stages.journal = time.perf_counter() - scored
        return stages, receipts

    def _prepare(self, ask: Ask, now: datetime) -> None:
        """Features and the model's row."""
        serving = ask.serving
        ask.granted.require(serving.asset, *ASKS)
        try:
            if serving.personal is not None:
                name = serving.personal.subject
                ask.subject = cipher.subject_text(ask.inputs.get(name), name)
            if serving.service is None:
                ask.features = ask.inputs
            else:
                ask.features = serving.service.read(self._online, serving.deployment.project, ask.inputs, ask.at or now)
            ask.row = serving.encode(ask.features)
            if serving.service is None and len(ask.inputs) != len(serving.inputs):
                _refuse_unknown(ask)
        except InvalidInput as error:
            ask.status, ask.answer = 422, answers.of_error(error, 422)
        except MacadamError as error:
            ask.outcome, ask.status, ask.problem = "error:features", 503, answers.of_error(error, 503)
        except Exception as error:  # noqa: BLE001 - one request must not take the others of its turn with it
            # Of a personal value an error's text may say anything: it stays out of the log.
            told = error if serving.personal is None else None
            _log.error("features of %s failed (%s)", serving.deployment.endpoint, type(error).__name__, exc_info=told)
            ask.outcome, ask.status, ask.problem = "error:features", 503, _FEATURES_FAILED

    def journal(self, asks: Sequence[Ask], now_ns: int, now: datetime, stages: Stages) -> list[Receipt]:
        """Journals what was answered or failed, then makes the answers."""
        spent = {"features": round(stages.features * 1e6), "predict": round(stages.predict * 1e6)}
        moment = _Moment(
            now_ns,
            instant(now),
            b',"stages_us":%b,"trace":"' % _encode(spent),
            f"features;dur={stages.features * 1e3:.3f}, predict;dur={stages.predict * 1e3:.3f}".encode(),
        )
        by_project: dict[str, list[Ask]] = {}
        for ask in asks:
            if not ask.answer:
                by_project.setdefault(ask.serving.deployment.project, []).append(ask)
        receipts = []
        for project, some in by_project.items():
            ids = [ask.subject for ask in some if ask.subject]
            receipt = self._write_hidden(project, some, ids, moment) if ids else self._write(project, some, {}, moment)
            if receipt is not None:
                receipts.append(receipt)
        return receipts

    def _write_hidden(self, project: str, asks: Sequence[Ask], ids: list[str], moment: _Moment) -> Receipt | None:
        """Like `_write`, with the keys of those whom the requests are about; without keys they are not answered."""
        try:
            with self._cloak_of(project).using(ids) as keys:
                self._said.pop(project, None)
                return self._write(project, asks, keys, moment)
        except MacadamError as error:
            self._say(project, error)
        for ask in asks:
            if ask.subject:
                ask.status, ask.answer = 503, _NO_KEYS
        others = [ask for ask in asks if not ask.subject]
        return self._write(project, others, {}, moment) if others else None

    def _say(self, project: str, error: MacadamError) -> None:
        """To the operator, once for as long as it stays the same: it may name files, and callers are not operators."""
        if self._said.get(project) != str(error):
            self._said[project] = str(error)
            _log.error("project %s cannot encrypt personal values, and answers none: %s", project, error)

    def _write(
        self, project: str, asks: Sequence[Ask], keys: Mapping[str, SubjectKey], moment: _Moment
    ) -> Receipt | None:
        """Journals the requests of one project, then makes their answers."""
        written, payloads, frames = self._records(asks, keys, moment)
        if not payloads:
            return None
        journal = self._journal_of(project)
        try:
            receipt = journal.append_many(payloads, beside=b"".join(frames))
        except MacadamError as error:
            _answer_without(journal, error, [ask for ask, _ in written], moment.timing)
            return None
        waits = journal if journal.waits else None
        for ask, id_ in written:
            ask.receipt, ask.journal = receipt, waits
            _answer(ask, id_, moment.timing)
        return receipt

    def _records(
        self, asks: Sequence[Ask], keys: Mapping[str, SubjectKey], moment: _Moment
    ) -> tuple[list[tuple[Ask, str]], list[bytes], list[bytes]]:
        """Those that can be written, with their ids, their records, and what lies beside those."""
        written: list[tuple[Ask, str]] = []
        payloads: list[bytes] = []
        frames: list[bytes] = []
        for ask, id_ in zip(asks, self._ids.take(len(asks), moment.now_ns), strict=True):
            try:
                payload, frame = self._record(ask, id_, keys, moment)
            except OverflowError:
                _refuse_number(ask)
                continue
            if len(payload) > MAX_PAYLOAD:
                _refuse_size(ask, len(payload))
                continue
            payloads.append(payload)
            frames.append(frame)
            written.append((ask, id_))
        return written, payloads, frames

    def _record(self, ask: Ask, id_: str, keys: Mapping[str, SubjectKey], moment: _Moment) -> tuple[bytes, bytes]:
        """The record, and what lies beside it: nothing, or the ciphertext of what is not in it."""
        output = ask.output = _output(ask)
        fields = ask.serving.personal
        if fields is None:
            return self._joined(ask, id_, _Tail(ask.inputs, ask.features), output, moment), b""
        place = (ask.serving.deployment.project, id_)
        hidden = cloak.hide(keys[ask.subject], fields, place, ask.inputs, ask.features, output)
        told = b"{}" if fields.output else output
        tail = _Tail(hidden.inputs, hidden.features)
        return self._joined(ask, id_, tail, told + b',"personal":' + hidden.note, moment), hidden.frame

    def _joined(self, ask: Ask, id_: str, tail: _Tail, output: bytes, moment: _Moment) -> bytes:
        """The record's JSON, put together from parts that are encoded once per deployment and caller."""
        one = ask.serving.deployment
        key = (one.id, ask.actor)
        head = self._heads.get(key)
        if head is None:
            if len(self._heads) > 10_000:  # noqa: PLR2004 - deployments and callers of long ago
                self._heads.clear()
            head = self._heads[key] = _head(ask)
        parts = [b'{"id":"', id_.encode(), b'","at":"', moment.at.encode(), head, _encode(tail)[1:-1]]
        parts += [b',"output":', output, b',"outcome":"', ask.outcome.encode(), b'"', moment.end, ask.trace.encode()]
        if ask.at is not None:
            parts += [b'","clock":"', instant(ask.at).encode()]
        parts.append(b'","v":1}')
        return b"".join(parts)


def _head(ask: Ask) -> bytes:
    one = ask.serving.deployment
    constant = {
        "project": one.project,
        "endpoint": one.endpoint,
        "variant": "live",
        "version": one.version,
        "model_digest": one.artifact,
        "deployment": one.id,
        "actor": ask.actor,
    }
    return b'",' + _encode(constant)[1:-1] + b","


def _groups(asks: Sequence[Ask]) -> list[list[Ask]]:
    """By model, those with a row to score."""
    found: dict[int, list[Ask]] = {}
    for ask in asks:
        if ask.row and not ask.answer and not ask.outcome:
            found.setdefault(id(ask.serving.model), []).append(ask)
    return list(found.values())


def _score(group: list[Ask]) -> None:
    try:
        scores = group[0].serving.model.scores([ask.row for ask in group])
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors share no base; it is recorded and answered
        # Its text may quote a row, and the group's callers are strangers to each other: only the log is told.
        serving = group[0].serving
        told = error if serving.personal is None else None
        _log.error("the model of %s failed (%s)", serving.deployment.endpoint, type(error).__name__, exc_info=told)
        for ask in group:
            ask.outcome, ask.status, ask.problem = "error:model", 503, _MODEL_FAILED
        return
    for ask, score in zip(group, scores, strict=True):
        ask.score, ask.outcome = score, "ok"


def _refuse_unknown(ask: Ask) -> None:
    """Raises InvalidInput."""
    wanted = ask.serving.inputs
    unknown = sorted(ask.inputs.keys() - wanted)
    raise InvalidInput(
        f"The endpoint takes no input {', '.join(map(repr, unknown))}.",
        next_step=f"Its inputs are: {', '.join(sorted(wanted))}.",
        details={"input": unknown[0]},
    )


def _refuse_number(ask: Ask) -> None:
    error = InvalidInput("An input is a whole number of more than 64 bits.", next_step="Send it as text.")
    ask.status, ask.answer = 422, answers.of_error(error, 422)


def _refuse_size(ask: Ask, size: int) -> None:
    """Alone: the others of its turn are journaled."""
    error = TooLarge(
        f"The record of this prediction would have {size} bytes, more than {MAX_PAYLOAD}.",
        next_step="Send smaller inputs, or pass large ones by reference.",
    )
    ask.status, ask.answer = 413, answers.of_error(error, 413)


def _answer_without(journal: ProjectJournal, error: MacadamError, asks: Sequence[Ask], timing: bytes) -> None:
    """The journal takes nothing: either nobody gets an answer, or all get one that says it left no record."""
    cause = journal.missed(error, len(asks))
    if journal.stops:
        refused = refusal(cause)
        for ask in asks:
            ask.status, ask.answer = 503, refused
        return
    for ask in asks:
        _answer(ask, "", timing)
        ask.is_unrecorded = True
        ask.answer = answers.with_header(ask.answer, b"x-macadam-journal: unrecorded")


def _output(ask: Ask) -> bytes:
    """The model's answer as JSON: the same bytes in the record and in the response."""
    score = ask.score
    if score is None:
        return b"{}"
    if score - score != 0:  # infinite or no number
        return b'{"score":null}'
    if ask.serving.model.is_probability:
        return b'{"score":%b,"label":%d}' % (repr(score).encode(), score >= ask.serving.deployment.threshold)
    return b'{"score":%b}' % repr(score).encode()


def _answer(ask: Ask, id_: str, timing: bytes) -> None:
    """id_: empty for one that has no record, and so nothing that could be asked for by an id."""
    if ask.problem:
        ask.answer = ask.problem
        return
    name, version = id_.encode(), ask.serving.deployment.version.encode()
    body = b'{"prediction":"%b","version":"%b","output":%b}' % (name, version, ask.output)
    ask.status = 200
    ask.answer = (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
        b"x-macadam-prediction: %b\r\nx-macadam-version: %b\r\nserver-timing: %b\r\n\r\n%b"
        % (len(body), name, version, timing, body)
    )

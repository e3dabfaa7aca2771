"""The journals that a gateway writes: one per project, opened and repaired beside the event loop, and what happens to
answers that a journal cannot take.

A project of high risk, and any other that has not declared otherwise, stops answering; one that wants to go on answers
without a record, which is counted until a segment can tell it. Nothing here blocks: opening files and waiting for the
disk happen on other threads.
"""

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Sequence

from macadam.errors import Busy, Conflict, MacadamError, StorageFull, Unavailable
from macadam.journal.gaps import CAUSES, GapCounter
from macadam.journal.sealing import folder_of
from macadam.journal.status import StatusFile, WriterStatus
from macadam.journal.types import JournalPolicy
from macadam.journal.writer import JournalWriter, Receipt, Told
from macadam.serving import answers
from macadam.settings import Settings
from macadam.values import instant, utc_now, uuid7

_log = logging.getLogger(__name__)
_RETRY = 1.0
"""Seconds between attempts to open what could not be opened."""
_DEFAULT_PACE = 0.020
_PROBE = 4096
"""Bytes that must find room before a journal that failed is called working without a record to show it."""
FULL, BROKEN, BEHIND = CAUSES
_WHY = {
    FULL: "the journal's disk is full",
    BROKEN: "the journal cannot be written",
    BEHIND: "the journal's disk does not keep up",
}


def cause_of(error: MacadamError) -> str:
    """One of `gaps.CAUSES`."""
    if isinstance(error, StorageFull):
        return FULL
    return BEHIND if isinstance(error, Busy) else BROKEN


def refusal(cause: str) -> bytes:
    """The answer where none is given without its record. It names no path: callers are not operators."""
    return answers.problem(
        503,
        f"journal-{cause}",
        f"No prediction of this project is answered without its record, and {_WHY[cause]}.",
        next_step="Ask again later. The operator sees why with `macadam journal status`.",
    )


class ProjectJournal:
    """One project's journal as the gateway uses it. For the event loop's thread, but for `attach`."""

    def __init__(self, policy: JournalPolicy, gap: GapCounter) -> None:
        self.policy = policy
        self.gap = gap
        self.writer: JournalWriter | None = None
        self.status: StatusFile | None = None
        self.problem: MacadamError | None = None
        self.tried = 0.0
        self.failing = ""
        self.always_waits = False
        self.records = 0
        self.unrecorded = dict.fromkeys(CAUSES, 0)
        self.refused = dict.fromkeys(CAUSES, 0)

    @property
    def waits(self) -> bool:
        """Whether answers are held until their records are durable."""
        return self.always_waits or self.policy.durability == "answer-after-fsync"

    @property
    def stops(self) -> bool:
        """Whether nothing is answered without a record."""
        return self.policy.on_journal_failure != "answer-unrecorded"

    def append_many(self, payloads: Sequence[bytes], *, beside: bytes = b"") -> Receipt:
        """Raises what the writer raises, and Unavailable while there is none."""
        writer = self.writer
        if writer is None:
            raise self.problem or Unavailable("The journal is being opened.", next_step="Ask again in a second.")
        receipt = writer.append_many(payloads, beside=beside)
        self.records += len(payloads)
        self.failing = ""
        return receipt

    def missed(self, error: MacadamError, answers_: int) -> str:
        """Counts answers whose records were not taken. Returns the cause."""
        cause = cause_of(error)
        self.failing = cause
        if self.stops:
            self.refused[cause] += answers_
        else:
            self.unrecorded[cause] += answers_
            self.gap.add(cause, answers_, utc_now())
        return cause

    def omitted(self, answers_: int) -> None:
        """Counts answers that left without a record though nothing had allowed it: a fault of the gateway itself."""
        self.unrecorded[BROKEN] += answers_
        self.gap.add(BROKEN, answers_, utc_now())

    def lost(self, answers_: int) -> None:
        """Counts answers that were held and refused, since their records may not be durable."""
        self.failing = BROKEN
        self.refused[BROKEN] += answers_

    def when_durable(self, told: Told) -> None:
        """As the writer's."""
        if self.writer is None:
            told(Conflict("The journal is closed.", next_step="Start the gateway again."))
        else:
            self.writer.when_durable(told)

    @property
    def condition(self) -> str:
        """Why it takes no records now, '' if it does."""
        if self.writer is None:
            return cause_of(self.problem) if self.problem else ""
        if self.writer.failure is not None:
            return cause_of(self.writer.failure)
        return self.failing


class Journals:
    """One per project, begun by a thread when the project is first loaded, or again when that did not work."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._of: dict[str, ProjectJournal] = {}
        self._policies: dict[str, JournalPolicy] = {}
        self._opening = threading.Lock()
        self._conditions: dict[str, str] = {}
        self._name = settings.server.gateway_name or f"{socket.gethostname()}:{settings.server.gateway_port}"

    def declare(self, policies: dict[str, JournalPolicy]) -> None:
        """Takes over what projects ask of their journals."""
        self._policies = policies
        for project, journal in self._of.items():
            journal.policy = policies.get(project, JournalPolicy())

    def of(self, project: str) -> ProjectJournal:
        """Never blocks: what is not open yet says so when it is appended to."""
        found = self._of.get(project)
        if found is None:
            policy = self._policies.get(project, JournalPolicy())
            found = ProjectJournal(policy, GapCounter(folder_of(self._settings.home, project)))
            # Zero: an fsync before each answer, for all projects. They still share it.
            found.always_waits = not self._settings.journal.fsync_every
            found = self._of.setdefault(project, found)
        return found

    def open(self, project: str) -> None:
        """Begins a project's journal; not for the event loop, since it waits for the disk. A failure stays with it."""
        with self._opening:
            journal = self.of(project)
            if journal.writer is not None or time.monotonic() - journal.tried < _RETRY:
                return
            journal.tried = time.monotonic()
            try:
                journal.writer = self._writer(project, journal.gap)
            except (StorageFull, Unavailable) as refused:
                journal.problem = refused
                return
            journal.problem = None
            try:
                journal.gap.prepare()
                journal.status = StatusFile(folder_of(self._settings.home, project), self._name)
            except OSError as error:
                _log.warning("the journal of %s goes on without its counters' files: %s", project, error)

    def _writer(self, project: str, gap: GapCounter) -> JournalWriter:
        journal = self._settings.journal
        return JournalWriter(
            folder_of(self._settings.home, project),
            gateway=self._name,
            worker=0,
            project=project,
            fsync_every=journal.fsync_every or _DEFAULT_PACE,
            segment_bytes=journal.segment_bytes,
            segment_age=journal.segment_age,
            most_unsynced=journal.most_unsynced,
            gap=gap,
        )

    def tend(self) -> None:
        """What is due each second, on a thread: tries again what could not be opened, and says what changed."""
        for project, journal in list(self._of.items()):
            if journal.writer is None:
                self.open(project)
            elif journal.failing and self._works(project, journal.writer):
                journal.failing = ""
            self._say(project, journal)
            if journal.status is not None:
                journal.status.write(self._status(project, journal))

    def _works(self, project: str, writer: JournalWriter) -> bool:
        """Whether records would be taken again. Asked without one: a gateway that is not ready gets no requests to try."""
        if writer.failure is not None or writer.is_behind:
            return False
        probe = folder_of(self._settings.home, project) / f"{uuid7()}.probe"
        try:
            probe.write_bytes(bytes(_PROBE))
        except OSError:
            return False
        finally:
            with contextlib.suppress(OSError):
                probe.unlink(missing_ok=True)
        return True

    def _say(self, project: str, journal: ProjectJournal) -> None:
        now, before = journal.condition, self._conditions.get(project, "")
        self._conditions[project] = now
        if now and now != before:
            does = "stops answering" if journal.stops else "answers without records, which are counted"
            _log.error("project %s %s: %s", project, does, _WHY[now])
        elif before and not now:
            _log.warning("project %s is journaled again", project)

    def _status(self, project: str, journal: ProjectJournal) -> WriterStatus:
        writer = journal.writer
        return WriterStatus(
            project=project,
            gateway=self._name,
            at=instant(utc_now()),
            durability="answer-after-fsync" if journal.waits else "group",
            on_journal_failure=journal.policy.on_journal_failure,
            condition=journal.condition,
            records=journal.records,
            unsynced=writer.unsynced if writer else 0,
            last_fsync=writer.last_fsync if writer else "",
            unrecorded=sum(journal.unrecorded.values()),
            untold=journal.gap.answers,
            refused=sum(journal.refused.values()),
        )

    def require_working(self) -> None:
        """Raises what ended a journal for good."""
        for journal in self._of.values():
            if journal.writer is not None and journal.writer.failure is not None:
                raise journal.writer.failure

    @property
    def conditions(self) -> dict[str, tuple[str, bool]]:
        """Project → why its journal takes no records, and whether it has stopped answering; those that work are left out."""
        return {
            project: (_WHY[journal.condition], journal.stops)
            for project, journal in self._of.items()
            if journal.condition
        }

    @property
    def unsynced(self) -> int:
        """Bytes that are written and not known to be durable."""
        return sum(journal.writer.unsynced for journal in self._of.values() if journal.writer)

    def counters(self) -> list[str]:
        """Lines for the metrics."""
        lines = []
        for name, kind in (("unrecorded", "counter"), ("refused", "counter")):
            lines.append(f"# TYPE macadam_gateway_journal_{name}_total {kind}")
            for project, journal in sorted(self._of.items()):
                found: dict[str, int] = getattr(journal, name)
                lines += [
                    f'macadam_gateway_journal_{name}_total{{project="{project}",cause="{cause}"}} {count}'
                    for cause, count in found.items()
                ]
        lines.append("# TYPE macadam_gateway_journal_failing gauge")
        for project, journal in sorted(self._of.items()):
            lines.append(f'macadam_gateway_journal_failing{{project="{project}"}} {int(bool(journal.condition))}')
        return lines

    def close(self) -> None:
        """Finishes every segment; what cannot be finished is said, and recovered by whoever starts next."""
        for project, journal in self._of.items():
            try:
                if journal.writer is not None:
                    journal.writer.close()
            except MacadamError as error:
                _log.error("the journal of %s was not finished: %s", project, error)
            journal.gap.close()
            if journal.status is not None:
                journal.status.close()


def working(
    writer: JournalWriter, policy: JournalPolicy | None = None, gap: GapCounter | None = None
) -> ProjectJournal:
    """A journal around a writer that somebody else opened and closes."""
    made = ProjectJournal(policy or JournalPolicy(), gap or GapCounter(writer.path.parent))
    made.writer = writer
    return made

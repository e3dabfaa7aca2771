"""Answers on their way out: those whose records must be durable first wait here, and each connection keeps its order.

The event loop never waits for the disk: the journal's thread says when an fsync has ended, one for all that waited for it.
An answer that cannot be vouched for leaves as a refusal. For the event loop's thread only.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from macadam.errors import MacadamError
from macadam.serving import answers
from macadam.serving.batch import Ask
from macadam.serving.journals import ProjectJournal, cause_of, refusal
from macadam.serving.protocol import Connection, Incoming

_log = logging.getLogger(__name__)
LONGEST_WAIT = 10.0
"""Seconds that an answer is held for its fsync before it is refused: clients wait no longer either."""

Entry = tuple[Incoming, Ask | None]
Deliver = Callable[[Connection, Sequence[Entry]], None]
_LATE = answers.problem(
    503,
    "journal-unavailable",
    f"The record of this prediction was not durable within {LONGEST_WAIT:g} s.",
    next_step="Ask again later. The operator sees why with `macadam journal status`.",
)


class _Held:
    """Answers of one turn on one connection. waits: how many journals have not confirmed yet; since: the loop's time."""

    __slots__ = ("entries", "since", "waits")

    def __init__(self, entries: Sequence[Entry], waits: int, since: float) -> None:
        self.entries = entries
        self.waits = waits
        self.since = since


def _waits(entries: Sequence[Entry]) -> bool:
    # A loop: this runs for each connection of each turn, and a generator costs more than all the rest of `put`.
    for _, ask in entries:  # noqa: SIM110
        if ask is not None and ask.journal is not None:
            return True
    return False


class Outbox:
    """deliver: sends finished answers on their connection and counts them."""

    def __init__(self, loop: asyncio.AbstractEventLoop, deliver: Deliver) -> None:
        self._loop = loop
        self._deliver = deliver
        self._queues: dict[Connection, deque[_Held]] = {}
        self.held = 0

    def put(self, by_connection: Iterable[tuple[Connection, Sequence[Entry]]]) -> None:
        """Sends what may leave now; holds the rest. All asks of one call share one confirmation per journal."""
        waiting: dict[ProjectJournal, list[_Held]] = {}
        for connection, entries in by_connection:
            if connection not in self._queues and not _waits(entries):
                self._deliver(connection, entries)
                continue
            journals = {ask.journal for _, ask in entries if ask is not None and ask.journal is not None}
            held = _Held(entries, len(journals), self._loop.time())
            self._queues.setdefault(connection, deque()).append(held)
            self.held += len(entries)
            for journal in journals:
                waiting.setdefault(journal, []).append(held)
        for journal, some in waiting.items():
            journal.when_durable(partial(self._from_journal, journal, some))

    def _from_journal(self, journal: ProjectJournal, some: list[_Held], error: MacadamError | None) -> None:
        """Called by the journal's thread."""
        try:
            self._loop.call_soon_threadsafe(self._confirm, journal, some, error)
        except RuntimeError:  # the loop has ended, and with it every connection
            _log.warning("%d answers were held when the gateway ended", sum(len(held.entries) for held in some))

    def _confirm(self, journal: ProjectJournal, some: list[_Held], error: MacadamError | None) -> None:
        refused = refusal(cause_of(error)) if error is not None else b""
        for held in some:
            held.waits -= 1
            if refused:
                self._refuse(held, refused, journal)
        for connection in {held.entries[0][0].connection for held in some}:
            self._flush(connection)

    def _refuse(self, held: _Held, answer: bytes, journal: ProjectJournal | None = None) -> None:
        """Puts a refusal in the place of answers that cannot be vouched for."""
        for request, ask in held.entries:
            if ask is None or ask.journal is None or journal not in (None, ask.journal):
                continue
            ask.journal.lost(1)
            ask.status, ask.receipt, ask.journal = 503, None, None
            request.answer = answer

    def _flush(self, connection: Connection) -> None:
        """Sends from the front, as far as it is confirmed."""
        queue = self._queues.get(connection)
        if queue is None:
            return
        ready: list[Entry] = []
        while queue and queue[0].waits <= 0:
            ready += queue.popleft().entries
        if not queue:
            del self._queues[connection]
        if ready:
            self.held -= len(ready)
            self._deliver(connection, ready)

    def sweep(self) -> None:
        """Refuses what has waited too long: an fsync that hangs must not hold callers for ever."""
        late = self._loop.time() - LONGEST_WAIT
        for connection, queue in list(self._queues.items()):
            for held in queue:
                if held.waits > 0 and held.since < late:
                    self._refuse(held, _LATE)
                    held.waits = 0
            self._flush(connection)

"""One writer thread that takes work from any thread and hands it on in groups, so that many callers share one commit.

What a group's transaction is, the database's own adapter says; here is only the queue, its order and its end.
"""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import sqlalchemy as sa

from macadam.errors import Unavailable

T = TypeVar("T")
Work = tuple[Callable[[sa.Connection], Any], "Future[Any]"]


class GroupWriter:
    """run: carries out one group and answers each of its futures. limit: pieces of work in a group.

    refused: what a caller gets for the error that `run` raised, for futures that it left open.
    """

    def __init__(
        self,
        name: str,
        limit: int,
        run: Callable[[list[Work]], None],
        refused: Callable[[BaseException], BaseException],
    ) -> None:
        self._limit, self._run, self._refused = limit, run, refused
        self._queue: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._door = threading.Lock()  # held while work is handed in, so that none arrives after the last
        self._closed = False
        self._thread = threading.Thread(target=self._write_groups, name=name, daemon=True)
        self._thread.start()

    def write(self, work: Callable[[sa.Connection], T]) -> T:
        """Returns what `work` does once its group is committed. Raises Unavailable after `close`."""
        if threading.current_thread() is self._thread:
            raise RuntimeError("write() was called from inside a write: use the transaction's connection")
        answer: Future[T] = Future()
        with self._door:
            if self._closed:
                raise Unavailable("The database was closed.", next_step="Open the home again.")
            self._queue.put((work, answer))
        return answer.result()

    def close(self) -> bool:
        """Waits for the work handed in so far. False if it was closed before."""
        with self._door:
            if self._closed:
                return False
            self._closed = True
            self._queue.put(None)
        self._thread.join()
        return True

    def _write_groups(self) -> None:
        last = False
        while not last and (first := self._queue.get()) is not None:
            group, last = self._gather(first)
            try:
                self._run(group)
            except BaseException as error:  # noqa: BLE001 - the writer outlives any error; its callers are told
                for _, answer in group:
                    if not answer.done():
                        answer.set_exception(self._refused(error))

    def _gather(self, first: Work) -> tuple[list[Work], bool]:
        group = [first]
        while len(group) < self._limit:
            try:
                piece = self._queue.get_nowait()
            except queue.Empty:
                break
            if piece is None:
                return group, True
            group.append(piece)
        return group, False

"""A thread for work that is to follow a change soon, and never in the way of whoever made the change.

What the work is, how long bursts are gathered and when a failure is tried again is for each user to say.
"""

import threading
from collections.abc import Callable


class Nudged:
    """Runs `work` once on a thread of its own, which begins with the first nudge; `work` goes on until `closing` is set.

    wanted: set by each nudge, for `work` to wait for and to clear. closing: set for good by `close`.
    """

    def __init__(self, name: str, work: Callable[[], None]) -> None:
        self.wanted = threading.Event()
        self.closing = threading.Event()
        self._name = name
        self._work = work
        self._thread: threading.Thread | None = None
        self._start = threading.Lock()

    def nudge(self) -> None:
        """Returns at once. After `close` it starts nothing."""
        self.wanted.set()
        if self._thread is None:
            with self._start:
                if self._thread is None and not self.closing.is_set():
                    self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                    self._thread.start()

    def close(self) -> bool:
        """Waits for the work to end. Returns whether it had ever begun."""
        with self._start:
            self.closing.set()
        self.wanted.set()
        if self._thread is not None:
            self._thread.join()
        return self._thread is not None

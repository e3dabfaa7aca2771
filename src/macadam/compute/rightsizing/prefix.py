"""What a replica has read before: keys and values of whole blocks of prompts, found again by their ids (vLLM's automatic
prefix caching; SGLang's RadixAttention, Zheng et al. 2024, arXiv:2312.07104).

Blocks that some request uses are shared and counted once; those that none uses any more stay while nobody needs their
memory, and go in the order in which they were last used. So how much is found again is an outcome of the memory that is
left, not something to be hoped for. Answers are not kept: what a next turn repeats of them has ids of its own in a trace.
"""

from collections import OrderedDict
from collections.abc import Sequence

from macadam.compute.rightsizing.types import Trace


class Cache:
    """Of one replica. each: of the engine's blocks to one block of a prompt. Sizes in the engine's blocks."""

    __slots__ = ("_each", "_held", "_idle", "_users")

    def __init__(self, each: int) -> None:
        self._each = each
        self._users: dict[int, int] = {}  # by id, those that run
        self._idle: OrderedDict[int, None] = OrderedDict()  # ids that none uses, the one used longest ago first
        self._held: dict[int, list[int]] = {}  # by request, the ids that it uses

    @property
    def idle(self) -> int:
        """Blocks that stay for those to come, and go when their room is needed."""
        return len(self._idle) * self._each

    def found(self, ids: Sequence[int]) -> int:
        """How many of the first ids are here: a prefix ends where the first is missing."""
        for number, block in enumerate(ids):
            if block not in self._users:
                return number
        return len(ids)

    def revived(self, ids: Sequence[int]) -> int:
        """Blocks that would be used again, of those that none uses now."""
        return sum(1 for block in ids if block in self._idle) * self._each

    def take(self, request: int, ids: Sequence[int]) -> None:
        """A request uses what was found."""
        for block in ids:
            self._users[block] += 1
            self._idle.pop(block, None)
        self._held[request] = list(ids)

    def keep(self, request: int, ids: Sequence[int]) -> None:
        """A request has read all of its prompt: others can find it from now on. What another read in the meantime stays that
        one's, and this one's copy its own.
        """
        held = self._held.setdefault(request, [])
        for block in ids[len(held) :]:
            if block not in self._users:
                self._users[block] = 1
                held.append(block)

    def release(self, request: int) -> int:
        """A request is gone. Returns its blocks that others still use. The end of a prefix goes before its beginning."""
        shared = 0
        for block in reversed(self._held.pop(request, [])):
            self._users[block] -= 1
            if self._users[block]:
                shared += 1
            else:
                self._idle[block] = None
        return shared * self._each

    def trim(self, free: int) -> None:
        """Makes room: `free` blocks are all that nobody uses."""
        while self.idle > free:
            block, _ = self._idle.popitem(last=False)
            del self._users[block]


def whole(trace: Trace, request: int) -> Sequence[int]:
    """The ids of its whole blocks: the last, if it is part of one, is found by nobody."""
    return trace.ids[request][: trace.prompt[request] // trace.unit]


def usable(ids: Sequence[int], unit: int, tokens: int) -> Sequence[int]:
    """Those that may be found: the last token is always computed, since its state makes the next one."""
    return ids[: (tokens - 1) // unit]


def foreseen(trace: Trace) -> tuple[int, ...]:
    """Tokens of each prompt that were read before, if nothing were ever forgotten and one replica saw all. No cache finds
    more.
    """
    if not trace.ids:
        return trace.hit
    seen: set[int] = set()
    found = []
    for request, prompt in enumerate(trace.prompt):
        ids = whole(trace, request)
        least = usable(ids, trace.unit, prompt)
        number = next((n for n, block in enumerate(least) if block not in seen), len(least))
        found.append(number * trace.unit)
        seen.update(ids)
    return tuple(found)

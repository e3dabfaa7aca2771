"""One replica under continuous batching, event by event: iteration-level scheduling (Yu et al. 2022, Orca), prompts in
chunks beside the decoding (Agrawal et al. 2024, Sarathi-Serve), keys and values in blocks, and preemption by
recomputation when they run out (Kwon et al. 2023, vLLM).

Between an arrival, a finished request and a full memory nothing changes but the length of the contexts, so that a run
of decoding iterations is one event: its duration is a sum in closed form. That, and no approximation, is what makes it
fast.
"""

import heapq
import math
from collections import deque
from collections.abc import Sequence

from macadam.compute.rightsizing import prefix
from macadam.compute.rightsizing.prefix import Cache
from macadam.compute.rightsizing.roofline import Speed
from macadam.compute.rightsizing.types import Engine, Trace
from macadam.errors import InvalidInput

_WATERMARK = 0.01  # of all blocks stay free when a request is let in, so that those that run can grow (vLLM)


class Machine:
    """The state of one replica. Times in seconds. What happened to requests is written into `first`, `finish` and
    `preempted`, which all replicas of a simulation share, by the request's number.
    """

    __slots__ = (
        "_admitted",
        "_all_blocks",
        "_anchor",
        "_block",
        "_cache",
        "_context",
        "_costs",
        "_decoding",
        "_ends",
        "_engine",
        "_finish",
        "_first",
        "_made",
        "_output",
        "_prefilling",
        "_prompt",
        "_residues",
        "_run",
        "_speed",
        "_step",
        "_trace",
        "_used",
        "_waiting",
        "asked",
        "busy",
        "iterations",
        "now",
        "preempted",
        "reused",
        "until",
        "version",
    )  # fmt: skip

    def __init__(
        self,
        speed: Speed,
        engine: Engine,
        trace: Trace,
        first: list[float],
        finish: list[float],
    ) -> None:
        if trace.ids and trace.unit % engine.block:
            raise InvalidInput(
                f"Blocks of {trace.unit} tokens are not made of blocks of {engine.block}.",
                next_step="Use an engine's block that divides them.",
            )
        self._speed, self._engine, self._trace = speed, engine, trace
        self._prompt, self._output, self._first, self._finish = trace.prompt, trace.output, first, finish
        self._block = engine.block
        self._cache = Cache(trace.unit // engine.block) if trace.ids else None
        self._all_blocks = speed.kv_tokens // engine.block
        self._used = 0
        self._waiting: deque[int] = deque()
        self._prefilling: list[list[int]] = []  # [request, tokens read, tokens to read]
        self._admitted: list[int] = []  # in the order in which they were let in
        self._anchor: dict[int, tuple[int, int]] = {}  # decoding requests: step and context at which they began
        self._made: dict[int, int] = {}  # tokens that a preempted request had made
        self._decoding: int = 0
        self._context = 0
        self._step = 0
        self._residues = [0] * engine.block  # of (context - step) among those that decode: says who needs a block when
        self._ends: list[tuple[int, int]] = []  # (step at which it ends, request)
        self._costs: dict[int, float] = {}
        self._run = 0  # decoding iterations planned, 0 for one that also reads prompts
        self.now = 0.0
        self.until = math.inf
        self.version = 0
        self.busy = 0.0
        self.iterations = 0
        self.preempted = 0
        self.asked = 0  # tokens of prompts that were let in, those of preempted requests again
        self.reused = 0  # of them, those that were not computed

    def fits(self, request: int) -> bool:
        """Whether it could ever run here."""
        tokens = self._prompt[request] + self._output[request]
        if 0 < self._speed.context < tokens:
            return False
        return -(-tokens // self._block) < self._all_blocks * (1 - _WATERMARK)

    def arrive(self, request: int, at: float) -> None:
        """A request joins at the next iteration. What was planned beyond that is cut short."""
        blocked = bool(self._waiting)
        self._waiting.append(request)
        if self.until == math.inf:
            self.now = at
            self._plan()
        elif self._run > 1 and not blocked and self._running() < self._engine.most:
            self._cut(at)

    def advance(self) -> list[int]:
        """Carries out what was planned, until `until`; returns the requests that finished."""
        self.busy += self.until - self.now
        self.now = self.until
        done: list[int] = []
        if self._run:
            self.iterations += self._run
            self._grow(self._run)
        else:
            self.iterations += 1
            self._grow(1)
            self._read(done)
        while self._ends and self._ends[0][0] <= self._step:
            step, request = heapq.heappop(self._ends)
            began = self._anchor.get(request)
            if began is not None and self._end_of(request, began[0]) == step:  # else it was preempted since
                self._leave(request)
                self._finish[request] = self.now
                done.append(request)
        self._plan()
        return done

    def _plan(self) -> None:
        """Decides what comes next, and when it ends."""
        self.version += 1
        sent_back = self._make_room()
        if not sent_back:
            self._admit()
        if self._prefilling:
            self._run = 0
            self.until = self.now + self._mixed()
        elif self._decoding:
            # Whoever was sent back may find what it had a copy of with others, and then fit at once.
            again = sent_back and self._cache is not None
            self._run = 1 if again else min(self._ends_in(), self._room_for())
            self.until = self.now + self._duration(self._run)
        else:
            self.until = math.inf

    def _mixed(self) -> float:
        """Seconds of an iteration that reads prompts; marks how far each gets."""
        n = self._decoding
        left = max(1, self._engine.budget - n)
        total, samples, seconds = n, n, 0.0
        for entry in self._prefilling:
            if left <= 0:
                break
            chunk = min(left, entry[2] - entry[1])
            seconds += self._speed.prompt(chunk, entry[1])
            entry[1] += chunk
            left -= chunk
            total += chunk
            samples += entry[1] == entry[2]
        pace = self._speed
        seconds += pace.fixed + pace.matrices(total, samples) + pace.attend * self._context
        return seconds + pace.kv * n + pace.exchange * total

    def _read(self, done: list[int]) -> None:
        """Those whose prompt is read make their next token and decode from now on."""
        still = []
        for entry in self._prefilling:
            request, read, total = entry
            if read < total:
                still.append(entry)
                continue
            if self._cache is not None:
                self._cache.keep(request, prefix.whole(self._trace, request))
            made = self._made.pop(request, 0) + 1
            if made == 1:
                self._first[request] = self.now
            if made == self._output[request]:
                self._finish[request] = self.now
                self._give_back(request, total)
                self._admitted.remove(request)
                done.append(request)
                continue
            self._anchor[request] = (self._step, total)
            self._decoding += 1
            self._context += total
            self._residues[(total - self._step) % self._block] += 1
            heapq.heappush(self._ends, (self._end_of(request, self._step), request))
        self._prefilling = still

    def _end_of(self, request: int, began: int) -> int:
        """The step at which its last token is made."""
        context = self._anchor[request][1]
        return began + self._output[request] - (context - self._prompt[request]) - 1

    def _grow(self, steps: int) -> None:
        """Each that decodes gets `steps` more tokens."""
        if self._decoding:
            self._use(self._needed(steps))
            self._context += steps * self._decoding
            self._step += steps

    def _needed(self, steps: int) -> int:
        """Blocks that `steps` more iterations take. A context takes a new one when its length is a multiple of the
        block's.
        """
        cycles, rest = divmod(steps, self._block)
        first = -self._step
        return cycles * self._decoding + sum(self._residues[(first - i) % self._block] for i in range(rest))

    def _room_for(self) -> int:
        """How many iterations the free blocks last."""
        free = self._all_blocks - self._used
        steps = free // self._decoding * self._block
        free -= steps // self._block * self._decoding
        for _i in range(self._block):
            free -= self._residues[(-self._step - steps) % self._block]
            if free < 0:
                break
            steps += 1
        return steps

    def _ends_in(self) -> int:
        """Iterations until the first that decodes is done."""
        while True:
            step, request = self._ends[0]
            began = self._anchor.get(request)
            if began is not None and self._end_of(request, began[0]) == step:
                return step - self._step
            heapq.heappop(self._ends)

    def _duration(self, steps: int) -> float:
        """Seconds of `steps` iterations that only decode: the k-th reads k times as many more tokens as there are
        requests.
        """
        n, attend = self._decoding, self._speed.attend
        return steps * (self._cost(n) + attend * self._context) + attend * n * (steps * (steps - 1) / 2)

    def _cost(self, n: int) -> float:
        """Seconds of an iteration, but for reading what came before."""
        found = self._costs.get(n)
        if found is None:
            found = self._costs[n] = self._speed.decode(n, 0)
        return found

    def _cut(self, at: float) -> None:
        """Ends the run at the first iteration that is done at `at` or later."""
        each = self._cost(self._decoding) + self._speed.attend * self._context
        more = self._speed.attend * self._decoding / 2
        # each * k + more * k * (k - 1) = passed, solved for k; then made exact, since floats round
        passed = at - self.now
        slope = each - more
        k = math.ceil(2 * passed / (slope + math.sqrt(slope * slope + 4 * more * passed))) if passed > 0 else 1
        k = max(1, k)
        while k > 1 and self._duration(k - 1) >= passed:
            k -= 1
        while k < self._run and self._duration(k) < passed:
            k += 1
        if k < self._run:
            self._run = k
            self.until = self.now + self._duration(k)
            self.version += 1

    def _running(self) -> int:
        return self._decoding + len(self._prefilling)

    def _admit(self) -> None:
        """Lets the first in the queue in, while there are blocks, places and tokens left in the iteration."""
        spare = self._engine.budget - self._decoding - sum(entry[2] - entry[1] for entry in self._prefilling)
        keep = math.ceil(self._all_blocks * _WATERMARK) + (self._needed(1) if self._decoding else 0)
        while self._waiting and spare > 0 and self._running() < self._engine.most:
            request = self._waiting[0]
            tokens = self._prompt[request] + self._made.get(request, 0)
            known = self._known(request, tokens)
            blocks = -(-tokens // self._block)
            if self._cache is not None:
                blocks += self._cache.revived(known) - len(known) * (self._trace.unit // self._block)
            if self._used + blocks > self._all_blocks - keep:
                return
            self._waiting.popleft()
            if self._cache is not None:
                self._cache.take(request, known)
            self._use(blocks)
            read = len(known) * self._trace.unit if self._cache is not None else self._hit(request)
            self.asked += tokens
            self.reused += read
            self._prefilling.append([request, read, tokens])
            self._admitted.append(request)
            spare -= tokens - read

    def _known(self, request: int, tokens: int) -> Sequence[int]:
        """Ids of the blocks of its prompt that were read here before."""
        if self._cache is None:
            return ()
        ids = prefix.usable(prefix.whole(self._trace, request), self._trace.unit, tokens)
        return ids[: self._cache.found(ids)]

    def _hit(self, request: int) -> int:
        """Tokens that are taken to be cached: each has them in memory of its own, since who shares them is not known."""
        return self._trace.hit[request] if self._trace.hit else 0

    def _use(self, blocks: int) -> None:
        """What nobody uses makes room."""
        self._used += blocks
        if self._cache is not None:
            self._cache.trim(self._all_blocks - self._used)

    def _give_back(self, request: int, context: int) -> None:
        """The blocks of that many tokens, but for those that others use."""
        self._used -= -(-context // self._block)
        if self._cache is not None:
            self._used += self._cache.release(request)

    def _make_room(self) -> bool:
        """Sends the newest back to the queue, until the next iteration has the blocks that it needs; says whether any
        was.
        """
        before = self.preempted
        while self._decoding and self._used + self._needed(1) > self._all_blocks:
            request = self._admitted[-1]
            if request in self._anchor:
                began, context = self._anchor[request]
                self._made[request] = context - self._prompt[request] + self._step - began + 1
                self._leave(request)
            else:
                entry = next(e for e in self._prefilling if e[0] == request)
                self._prefilling.remove(entry)
                self._give_back(request, entry[2])
                self._admitted.pop()
            self._waiting.appendleft(request)
            self.preempted += 1
        return self.preempted > before

    def _leave(self, request: int) -> None:
        """Takes one that decodes out, and its blocks back."""
        began, context = self._anchor.pop(request)
        self._residues[(context - began) % self._block] -= 1
        context += self._step - began
        self._decoding -= 1
        self._context -= context
        self._give_back(request, context)
        self._admitted.remove(request)

"""How many requests of a size a replica serves in a second while the promise holds: the numbers that the mix is solved
with.

Requests are put into classes by the length of the prompt, which a router sees; within a class by the length of the
output, which it does not see. So only the class decides where a request goes (Griggs et al. 2024, Mélange, assume that
both are known), and the load that a class brings is the mean over its outputs.
"""

import bisect
import math
from collections import Counter
from collections.abc import Sequence

import msgspec

from macadam.compute.rightsizing import prefix
from macadam.compute.rightsizing.roofline import Speed
from macadam.compute.rightsizing.types import Engine, Slo, Trace

PROMPTS = (256, 512, 1024, 2048, 4096, 8192)  # tokens at which a class of prompts ends
OUTPUTS = (32, 128, 256, 512)
_KV_SHARE = 0.95  # of the blocks: contexts grow and ends don't meet
_SPARED = 0.5  # part of the requests that may miss the promise which whole classes may use up; chance gets the rest


class Bucket(msgspec.Struct, frozen=True, kw_only=True):
    """Requests of one class and about one length of output. prompt, output: their mean, tokens. rate: requests/s. cached:
    tokens of the prompt that need not be computed, mean.
    """

    kind: int
    prompt: float
    output: float
    rate: float
    cached: float = 0.0


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """What a trace asks for. classes: of each request. kinds: which of the lengths in PROMPTS each class is. rates:
    requests/s by class. spared: classes so rare and long that the promise may be missed for them.
    """

    classes: tuple[int, ...]
    kinds: tuple[int, ...]
    buckets: tuple[Bucket, ...]
    rates: tuple[float, ...]
    spared: frozenset[int]


def demand(trace: Trace, slo: Slo) -> Demand:
    """Puts requests into classes by prompt and buckets by output."""
    found = [bisect.bisect_left(PROMPTS, prompt) for prompt in trace.prompt]
    used = sorted(set(found))
    of_each = [used.index(kind) for kind in found]
    sums: dict[tuple[int, int], list[int]] = {}
    # With ids, what a cache that forgets nothing would find: the simulator says what is found, and margin makes up for it.
    cached = prefix.foreseen(trace) or (0,) * len(trace)
    for kind, prompt, output, hit in zip(of_each, trace.prompt, trace.output, cached, strict=True):
        entry = sums.setdefault((kind, bisect.bisect_left(OUTPUTS, output)), [0, 0, 0, 0])
        entry[0] += 1
        entry[1] += prompt
        entry[2] += output
        entry[3] += hit
    seconds = trace.seconds
    buckets = tuple(
        Bucket(
            kind=kind,
            prompt=entry[1] / entry[0],
            output=entry[2] / entry[0],
            rate=entry[0] / seconds,
            cached=entry[3] / entry[0],
        )
        for (kind, _), entry in sorted(sums.items())
    )
    counts = Counter(of_each)
    return Demand(
        classes=tuple(of_each),
        kinds=tuple(used),
        buckets=buckets,
        rates=tuple(counts[kind] / seconds for kind in range(len(used))),
        spared=_spared([counts[kind] for kind in range(len(used))], (1 - slo.attainment) * _SPARED),
    )


def classes(wanted: Demand, trace: Trace) -> tuple[int, ...]:
    """What a router that was set up for that demand takes the requests of another trace for: prompts of a length that it
    never saw are of the next longer class that it knows, or of the longest.
    """
    last = len(wanted.kinds) - 1
    return tuple(
        min(bisect.bisect_left(wanted.kinds, bisect.bisect_left(PROMPTS, prompt)), last) for prompt in trace.prompt
    )


def _spared(counts: Sequence[int], most: float) -> frozenset[int]:
    """The longest prompts' classes, while together they are at most that part of all requests."""
    left = most * sum(counts)
    spared = set()
    for kind in reversed(range(len(counts))):
        left -= counts[kind]
        if left < 0:
            break
        spared.add(kind)
    return frozenset(spared)


def iteration(
    pace: Speed, together: int, prompt: float, output: float, cached: float = 0.0, begun: float | None = None
) -> float:
    """Seconds of an iteration in which `together` requests of one size run steadily: each gets a token, and the share
    of new prompts that keeps their number is read beside, but for their first `cached` tokens. It is the mean time a token.
    begun: requests of which the prompt is read in an iteration, if it is another number.
    """
    new = together / output if begun is None else begun
    arriving = new * (prompt - cached)
    tokens = max(1, round(together + arriving))
    return (
        pace.fixed
        + pace.matrices(tokens, round(together + new))
        + pace.attend * together * (prompt + output / 2)
        + pace.prompt(max(1, round(prompt - cached)), round(cached)) * new
        + (pace.kv + pace.exchange) * together
        + pace.exchange * arriving
    )


def together(pace: Speed, engine: Engine, bucket: Bucket, slo: Slo) -> int:
    """How many requests may run at once: as many as memory holds and the promise allows. 0 if not even one."""
    held = int(pace.kv_tokens * _KV_SHARE / (bucket.prompt + bucket.output / 2))
    most = min(engine.most, held)
    if most < 1 or not _kept(pace, engine, bucket, slo, 1):
        return 0
    low, high = 1, most
    while low < high:  # both promises get worse with each request that joins
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _kept(pace, engine, bucket, slo, middle) else (low, middle - 1)
    return low


def work(pace: Speed, engine: Engine, bucket: Bucket, slo: Slo) -> float:
    """Seconds of the replica that one such request takes, when as many run beside it as may. Infinite if the promise
    cannot be kept.
    """
    n = together(pace, engine, bucket, slo)
    return iteration(pace, n, bucket.prompt, bucket.output, bucket.cached) * bucket.output / n if n else math.inf


def works(pace: Speed, engine: Engine, wanted: Demand, slo: Slo) -> tuple[float, ...]:
    """Seconds of the replica that a request of each class takes in the mean. Infinite if the promise cannot be kept for
    one of its buckets.
    """
    sums = [0.0] * len(wanted.rates)
    never = Slo(ttft=math.inf, tpot=math.inf) if wanted.spared else slo
    for bucket in wanted.buckets:
        promise = never if bucket.kind in wanted.spared else slo
        sums[bucket.kind] += bucket.rate * work(pace, engine, bucket, promise)
    return tuple(total / rate for total, rate in zip(sums, wanted.rates, strict=True))


def _kept(pace: Speed, engine: Engine, bucket: Bucket, slo: Slo, n: int) -> bool:
    # A request's own prompt is read before its first token: only those of the others come between its further ones.
    if iteration(pace, n, bucket.prompt, bucket.output, bucket.cached, (n - 1) / bucket.output) > slo.tpot:
        return False
    read = max(1.0, bucket.prompt - bucket.cached)
    chunks = math.ceil(read / max(1, engine.budget - n))
    chunk = read / chunks
    reading = pace.decode(n, round(n * (bucket.prompt + bucket.output / 2))) + chunk * pace.per_token
    return (chunks + 0.5) * reading <= slo.ttft  # half an iteration passes before the next begins

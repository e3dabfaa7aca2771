"""The same engine without shortcuts: one iteration after another, each request's context counted by hand. The reference
for batching.py.
"""

import math
from dataclasses import dataclass, field

from macadam.compute.rightsizing.roofline import Speed
from macadam.compute.rightsizing.types import Engine, Trace


@dataclass
class Running:
    number: int
    to_read: int
    read: int = 0
    context: int = 0
    made: int = 0
    blocks: int = 0  # of its own
    refs: list[int] = field(default_factory=list)  # blocks of prompts that it uses with others


@dataclass
class Result:
    first: list[float] = field(default_factory=list)
    finish: list[float] = field(default_factory=list)
    preempted: int = 0
    most_blocks: int = 0
    reused: int = 0
    asked: int = 0


def serve(trace: Trace, pace: Speed, engine: Engine) -> Result:  # noqa: C901, PLR0912, PLR0915 - one loop, as in a paper
    """One replica. All requests must fit."""
    n = len(trace)
    out = Result(first=[math.inf] * n, finish=[math.inf] * n)
    blocks = pace.kv_tokens // engine.block
    keep = math.ceil(blocks * 0.01)
    waiting: list[int] = []
    made_before: dict[int, int] = {}
    admitted: list[Running] = []
    idle: list[int] = []  # blocks of prompts that nobody uses, the one used longest ago first
    each = trace.unit // engine.block
    now, coming = -1.0, 0

    def used() -> int:
        """Whoever shares a block, it is counted once."""
        return sum(r.blocks for r in admitted) + each * len({ref for r in admitted for ref in r.refs})

    def trim() -> None:
        while used() + each * len(idle) > blocks:
            idle.pop(0)

    def leave(r: Running) -> None:
        admitted.remove(r)
        others = {ref for other in admitted for ref in other.refs}
        idle.extend(ref for ref in reversed(r.refs) if ref not in others)

    def known(number: int, tokens: int) -> list[int]:
        here = {ref for r in admitted for ref in r.refs} | set(idle)
        found: list[int] = []
        for place, block in enumerate(trace.ids[number] if trace.ids else ()):
            end = (place + 1) * trace.unit
            if block not in here or end > trace.prompt[number] or end >= tokens:
                break
            found.append(block)
        return found

    while True:
        while coming < n and trace.at[coming] <= now:
            waiting.append(coming)
            coming += 1
        if not waiting and not admitted:
            if coming == n:
                return out
            now = trace.at[coming]  # who comes first to an idle engine is begun with at once
            waiting.append(coming)
            coming += 1
        decoding = [r for r in admitted if r.read == r.to_read]
        sent_back = False
        while decoding:
            needed = sum(1 for r in decoding if r.context % engine.block == 0)
            if used() + needed <= blocks:
                break
            last = admitted[-1]
            leave(last)
            if last.read == last.to_read:
                made_before[last.number] = last.made
                decoding.remove(last)
            waiting.insert(0, last.number)
            out.preempted += 1
            sent_back = True
        spare = engine.budget - len(decoding) - sum(r.to_read - r.read for r in admitted if r.read < r.to_read)
        growing = sum(1 for r in decoding if r.context % engine.block == 0)
        while not sent_back and waiting and spare > 0 and len(admitted) < engine.most:
            tokens = trace.prompt[waiting[0]] + made_before.get(waiting[0], 0)
            refs = known(waiting[0], tokens)
            wanted = math.ceil(tokens / engine.block) - each * len(refs)
            if used() + wanted + each * len(set(refs) & set(idle)) + growing > blocks - keep:
                break
            read = trace.unit * len(refs) if trace.ids else trace.hit[waiting[0]] if trace.hit else 0
            admitted.append(Running(number=waiting.pop(0), to_read=tokens, read=read, blocks=wanted, refs=refs))
            idle = [block for block in idle if block not in refs]
            trim()
            out.reused += read
            out.asked += tokens
            spare -= tokens - read
        now += iteration(pace, engine, admitted, decoding)
        for r in decoding:
            if r.context % engine.block == 0:
                r.blocks += 1
            r.context += 1
            r.made += 1
        trim()
        out.most_blocks = max(out.most_blocks, used() + each * len(idle))
        for r in [*(r for r in admitted if r not in decoding), *decoding]:
            if r not in decoding and r.read == r.to_read:
                here = {ref for other in admitted for ref in other.refs} | set(idle)
                whole = trace.ids[r.number][: trace.prompt[r.number] // trace.unit] if trace.ids else ()
                new = [block for block in whole if block not in here]
                r.refs += new
                r.blocks -= each * len(new)
                r.context = r.to_read
                r.made = made_before.pop(r.number, 0) + 1
                if r.made == 1:
                    out.first[r.number] = now
            if r.read == r.to_read and r.made == trace.output[r.number]:
                out.finish[r.number] = now
                leave(r)


def iteration(pace: Speed, engine: Engine, admitted: list[Running], decoding: list[Running]) -> float:
    """Seconds, and moves the prompts on."""
    left = max(1, engine.budget - len(decoding))
    tokens, samples, seconds = len(decoding), len(decoding), 0.0
    for r in admitted:
        if r.read == r.to_read or left <= 0:
            continue
        chunk = min(left, r.to_read - r.read)
        seconds += pace.prompt(chunk, r.read)
        r.read += chunk
        left -= chunk
        tokens += chunk
        samples += r.read == r.to_read
    seconds += pace.fixed + pace.matrices(tokens, samples)
    seconds += pace.attend * sum(r.context for r in decoding) + pace.kv * len(decoding) + pace.exchange * tokens
    return seconds

"""What no engine can beat: the arithmetic over the data sheet's peak, the bytes over its bandwidth.

Computed from the requests alone, not from iterations, so that the simulator can be held against it.
"""

from collections.abc import Sequence

from macadam.compute.rightsizing.types import BYTES, Engine, Replica


def busy(
    replica: Replica, engine: Engine, requests: Sequence[tuple[int, int]], cached: Sequence[int] | None = None
) -> float:
    """Seconds that a replica needs at the very least to serve all requests (prompt, output), however it batches them.
    cached: tokens of each prompt that need not be computed, at the most.
    """
    if not requests:
        return 0.0
    found = cached or [0] * len(requests)
    flops = sum(_flops(replica, p, o) - _spared(replica, hit) for (p, o), hit in zip(requests, found, strict=True))
    moved = sum(
        _kv_moved(replica, engine, p, o) - hit * _kv(replica, engine)
        for (p, o), hit in zip(requests, found, strict=True)
    )
    # A request gets one token an iteration, and an iteration reads the weights.
    moved += weights_read(replica, engine) * max(output for _, output in requests)
    return max(flops / _peak(replica, engine), moved / _bandwidth(replica))


def run(replica: Replica, engine: Engine, prompt: int, output: int, count: int) -> float:
    """Seconds for `count` requests of that mean size at the least: work grows faster than length, so that no other lengths
    with that mean need less.
    """
    moved = count * _kv_moved(replica, engine, prompt, output) + weights_read(replica, engine) * output
    return max(count * _flops(replica, prompt, output) / _peak(replica, engine), moved / _bandwidth(replica))


def first_token(replica: Replica, engine: Engine, prompt: int) -> float:
    """Seconds to the first token of a request that is alone."""
    moved = weights_read(replica, engine) + 2 * prompt * _kv(replica, engine)
    return max(_flops(replica, prompt, 1) / _peak(replica, engine), moved / _bandwidth(replica))


def next_token(replica: Replica, engine: Engine, prompt: int) -> float:
    """Seconds for each further token of a request that is alone: its context is read, and the weights."""
    llm = replica.llm
    flops = 2 * llm.active + 4 * llm.layers * llm.heads * llm.head_dim * prompt
    moved = weights_read(replica, engine) + prompt * _kv(replica, engine)
    return max(flops / _peak(replica, engine), moved / _bandwidth(replica))


def weights_read(replica: Replica, engine: Engine) -> float:
    """Bytes that one iteration reads at the least: of a mixture of experts, those of one token."""
    return replica.llm.active * BYTES[engine.weights]


def _flops(replica: Replica, prompt: int, output: int) -> float:
    llm = replica.llm
    through = prompt + output - 1  # the last token that is made goes through no layer
    pairs = prompt * (prompt + 1) / 2 + _contexts(prompt, output)
    return (
        2 * llm.layer_parameters_used * through
        + 2 * llm.head_parameters * output
        + 4 * llm.layers * llm.heads * llm.head_dim * pairs
    )


def _contexts(prompt: int, output: int) -> float:
    """Tokens that stand before each token made but the first, summed over all of them."""
    further = output - 1
    return further * prompt + further * (further - 1) / 2


def _spared(replica: Replica, cached: int) -> float:
    """FLOPs of the first tokens of a prompt."""
    llm = replica.llm
    pairs = cached * (cached + 1) / 2
    return 2 * llm.layer_parameters_used * cached + 4 * llm.layers * llm.heads * llm.head_dim * pairs


def _kv_moved(replica: Replica, engine: Engine, prompt: int, output: int) -> float:
    reads = prompt + _contexts(prompt, output)
    return (reads + prompt + output - 1) * _kv(replica, engine)


def _kv(replica: Replica, engine: Engine) -> float:
    return replica.llm.kv_bytes(BYTES[engine.kv])


def _peak(replica: Replica, engine: Engine) -> float:
    return replica.gpu.peak[engine.weights] * replica.tp


def _bandwidth(replica: Replica) -> float:
    return replica.gpu.bandwidth * replica.tp

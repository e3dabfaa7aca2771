"""How long one iteration of a serving engine takes, from what the arithmetic and the memory can do at best.

A roofline (Williams et al. 2009, https://doi.org/10.1145/1498765.1498785) for each of the groups of kernels that run
one after another: the matrices (2 FLOPs a weight and token; the weights are read once an iteration, whatever the
batch), attention over what was generated (all of the keys and values are read for each token), attention within the
prompt, and what GPUs that share a layer tell each other. The sum of their maxima is never below the maximum of their
sums, which is what bounds.py computes by another way.
"""

from dataclasses import dataclass

from macadam.compute.rightsizing.types import BYTES, Efficiency, Engine, Replica
from macadam.errors import InvalidInput

PCIE = 32e9  # bytes/s in one direction, PCIe 4.0 x16, where GPUs have no link of their own
_EXCHANGES = (
    2  # all-reduces in each layer: after attention and after the feed-forward (Shoeybi et al. 2019, Megatron-LM)
)
_ACTIVATION = 2.0  # bytes of one number that GPUs tell each other


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """Coefficients of one replica. Times in seconds, sizes in bytes. Built by `speed`."""

    per_token: float  # s of arithmetic for one token in all layers
    per_sample: float  # s of arithmetic for one distribution over the vocabulary
    dense: float  # s to read the weights that every iteration reads
    expert: float  # s to read one expert of every layer
    experts: int
    experts_used: int
    attend: float  # s of decode attention for one token of context
    pair: float  # s of arithmetic for one token of a prompt and one before it
    kv: float  # s to read or write the keys and values of one token
    exchange: float  # s that GPUs tell each other for one token
    fixed: float  # s of each iteration: host and the latency of exchanges
    kv_tokens: int  # tokens whose keys and values fit
    context: int = 0  # tokens of one request that the model reads, 0 if not known

    def matrices(self, tokens: int, samples: int) -> float:
        """Seconds for all matrices, with `tokens` in the batch of which `samples` get a distribution."""
        busy = tokens * self.per_token + samples * self.per_sample
        return max(busy, self.dense + self.expert * self.touched(tokens))

    def touched(self, tokens: int) -> float:
        """How many experts of a layer at least one of the tokens goes to, if each goes to any with the same chance."""
        if self.experts == 1:
            return 1.0
        return self.experts * (1 - (1 - self.experts_used / self.experts) ** tokens)

    def prompt(self, tokens: int, before: int) -> float:
        """Seconds of attention for a chunk of a prompt, of which `before` tokens are there already."""
        pairs = tokens * before + tokens * (tokens + 1) / 2
        return max(self.pair * pairs, self.kv * (before + tokens)) + self.kv * tokens

    def decode(self, sequences: int, context: int) -> float:
        """Seconds of one iteration in which each of `sequences` gets one token; context: tokens of all of them
        together.
        """
        return (
            self.fixed
            + self.matrices(sequences, sequences)
            + self.attend * context
            + (self.kv + self.exchange) * sequences
        )


def speed(replica: Replica, engine: Engine, efficiency: Efficiency) -> Speed:
    """Raises InvalidInput if the GPU cannot compute in that format, or if the model does not fit."""
    llm, gpu, tp = replica.llm, replica.gpu, replica.tp
    if engine.weights not in gpu.peak:
        raise InvalidInput(
            f"{gpu.name} does not compute in {engine.weights}.", next_step="Choose another format or GPU."
        )
    arithmetic = gpu.peak[engine.weights] * tp * efficiency.compute
    reading = gpu.bandwidth * tp * efficiency.bandwidth
    width = BYTES[engine.weights]
    # Heads of keys are copied where more GPUs share a layer than there are heads.
    copies = max(1.0, tp / llm.kv_heads)
    kv = llm.kv_bytes(BYTES[engine.kv]) * copies / reading
    pair = (
        4 * llm.layers * llm.heads * llm.head_dim / arithmetic
    )  # queries with keys, and weights with values: 2 FLOPs each
    expert = llm.layers * llm.expert_parameters * width / reading
    layer = llm.layers * (llm.attention_parameters + (llm.hidden * llm.experts if llm.experts > 1 else 0))
    link = (gpu.link or PCIE) * efficiency.link
    told = _EXCHANGES * llm.layers * 2 * (tp - 1) / tp * llm.hidden * _ACTIVATION  # a ring: Patarasuk & Yuan 2009
    return Speed(
        per_token=2 * llm.layer_parameters_used / arithmetic,
        per_sample=2 * llm.head_parameters / arithmetic,
        dense=(layer + llm.head_parameters) * width / reading,
        expert=expert,
        experts=llm.experts,
        experts_used=llm.experts_used,
        attend=max(pair, kv),
        pair=pair,
        kv=kv,
        exchange=told / link,
        fixed=efficiency.overhead + (_EXCHANGES * llm.layers * efficiency.latency if tp > 1 else 0.0),
        kv_tokens=kv_tokens(replica, engine),
        context=llm.context,
    )


def kv_tokens(replica: Replica, engine: Engine) -> int:
    """Tokens whose keys and values fit beside the weights, in whole blocks. Raises InvalidInput if the weights do not
    fit.
    """
    llm, gpu, tp = replica.llm, replica.gpu, replica.tp
    copies = max(1.0, tp / llm.kv_heads)
    free = tp * (gpu.memory * engine.memory_share - engine.reserve) - llm.parameters * BYTES[engine.weights]
    blocks = int(free / (llm.kv_bytes(BYTES[engine.kv]) * copies) / engine.block) if free > 0 else 0
    if blocks < 1:
        raise InvalidInput(
            f"{llm.name} in {engine.weights} does not fit on {tp} x {gpu.name}.",
            next_step="Use more GPUs a replica, a shorter format or a larger GPU.",
        )
    return blocks * engine.block

"""What training takes: FLOPs from parameters and tokens, GPU-hours from measured utilisation, GPUs from memory."""

import math

from macadam.compute.catalogue.gpus import Gpu
from macadam.compute.catalogue.llms import Llm
from macadam.compute.rightsizing.questions import Kind, Question, Way
from macadam.errors import InvalidInput

# Per parameter that is used and token: 2 forward, 2 for the gradients of activations, 2 for those of weights (Kaplan et
# al. 2020,
# arXiv:2001.08361, section 2.1). LoRA needs no gradients of the frozen weights (Hu et al. 2021, arXiv:2106.09685,
# section 4.2).
FLOPS: dict[Kind, int] = {"scratch": 6, "finetune": 6, "lora": 4}
# Bytes of a parameter: weights and gradients in 16 bit, weights and two moments of Adam in 32 (Rajbhandari et al. 2020,
# ZeRO,
# arXiv:1910.02054, section 3.1). LoRA keeps the frozen weights only, and about 1% more to train.
_STATE: dict[Kind, float] = {"scratch": 16.0, "finetune": 16.0, "lora": 2.0 + 0.01 * 16.0}
_FREE = 0.7  # of memory for that; the rest is for activations
OPTIMAL = 20.0  # tokens a parameter at which compute is spent best (Hoffmann et al. 2022, Chinchilla, arXiv:2203.15556, table 3)
_HOUR = 3600


def flops(kind: Kind, llm: Llm, tokens: float, sequence: int = 0) -> float:
    """Of one pass over so many tokens, in sequences of that many. Attention adds 12 for each layer, number of a head and token of
    the sequence, as in the definition of the utilisation that it is divided by (Chowdhery et al. 2022, PaLM, arXiv:2204.02311,
    appendix B); with LoRA too, since gradients pass through it.
    """
    return (FLOPS[kind] * llm.active + 12 * llm.layers * llm.heads * llm.head_dim * sequence) * tokens


def sequence(question: Question, way: Way) -> int:
    """Tokens of one example: as the way says, else those of a request."""
    return way.sequence or question.prompt + way.extra_prompt + question.output


def gpu_hours(total: float, gpu: Gpu, mfu: float) -> float:
    """Raises InvalidInput if the GPU has no format that is trained in."""
    peak = gpu.peak.get("bf16") or gpu.peak.get("fp16")
    if not peak:
        raise InvalidInput(f"{gpu.name} trains in no 16-bit format.", next_step="Choose another GPU.")
    return total / (peak * mfu) / _HOUR


def gpus_at_least(kind: Kind, llm: Llm, gpu: Gpu) -> int:
    """So that weights, gradients and the optimiser's state fit, spread over all of them."""
    return math.ceil(llm.parameters * _STATE[kind] / (gpu.memory * _FREE))


def starved(kind: Kind, llm: Llm, tokens: float) -> bool:
    """Whether a model from scratch would see fewer than half of the tokens at which its compute is spent best."""
    return kind == "scratch" and tokens < OPTIMAL / 2 * llm.parameters

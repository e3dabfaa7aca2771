"""The shapes of language models: what one token costs in arithmetic and in memory follows from them.

From a catalogue of well-known ones, or from the `config.json` that stands beside any model on Hugging Face. Only
decoders that mix tokens by attention over all that came before are understood; what a file says beyond that is refused,
not guessed.
"""

import importlib.resources
import reprlib
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from macadam.errors import InvalidInput, NotFound

# Llama's blocks: RMS norms, rotary positions, gated feed-forward of three matrices. The others here differ by biases or
# experts.
_KNOWN = {
    "llama": False,
    "mistral": False,
    "mixtral": False,
    "qwen2": True,
}  # model_type → whether q, k and v have biases
_BYTES = {"float16": 2.0, "bfloat16": 2.0, "float32": 4.0, "float8_e4m3fn": 1.0}
_LARGEST_CONFIG = 1_000_000  # bytes
_LARGEST_COUNT = 1_000_000_000  # of anything in a model's shape


class Llm(msgspec.Struct, frozen=True, kw_only=True):
    """One architecture. ffn: width of the feed-forward (of one expert). experts, experts_used: in each layer, and of
    them for one token. tied: the output uses the input's embedding. weight_bytes: of one weight as published. sources
    and dated: where the shape stands and when it was read. published: parameters as its makers count them, 0 if not
    known. context: tokens of prompt and answer beyond which no version under these names reads, 0 if not known. Raises InvalidInput.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    experts: int = 1
    experts_used: int = 1
    tied: bool = False
    biased: bool = False
    weight_bytes: float = 2.0
    names: tuple[str, ...] = ()
    published: float = 0
    context: int = 0
    source: str = ""
    dated: str = ""

    def __post_init__(self) -> None:
        counts = (
            self.layers,
            self.hidden,
            self.heads,
            self.kv_heads,
            self.head_dim,
            self.ffn,
            self.vocab,
            self.experts_used,
        )
        if min(counts) < 1 or self.experts < self.experts_used or self.heads % self.kv_heads or self.weight_bytes <= 0:
            raise InvalidInput(
                f"{self.name} is no decoder: {self.heads} heads over {self.kv_heads} of keys, {self.layers} layers of {self.hidden}.",
                next_step="Give the config.json as it was published.",
            )

    @property
    def attention_parameters(self) -> int:
        """Of one layer: queries, keys, values and the output, with their biases."""
        wide, narrow = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return self.hidden * (2 * wide + 2 * narrow) + (wide + 2 * narrow if self.biased else 0)

    @property
    def expert_parameters(self) -> int:
        """Of one expert, or of the one feed-forward: gate, up and down."""
        return 3 * self.hidden * self.ffn

    @property
    def head_parameters(self) -> int:
        """The matrix that turns the last state into a distribution over the vocabulary."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """All of them, as they lie in memory."""
        router = self.hidden * self.experts if self.experts > 1 else 0
        layer = self.attention_parameters + self.experts * self.expert_parameters + router + 2 * self.hidden
        return self.layers * layer + self.head_parameters * (1 if self.tied else 2) + self.hidden

    @property
    def layer_parameters_used(self) -> int:
        """That one token is multiplied with in all layers: the 'active' ones, without embedding and output."""
        router = self.hidden * self.experts if self.experts > 1 else 0
        return self.layers * (self.attention_parameters + self.experts_used * self.expert_parameters + router)

    @property
    def active(self) -> int:
        """That one generated token is multiplied with. Looking an embedding up multiplies nothing."""
        return self.layer_parameters_used + self.head_parameters

    def kv_bytes(self, width: float) -> float:
        """Bytes of keys and values that one token leaves behind, at `width` bytes a number."""
        return 2 * self.layers * self.kv_heads * self.head_dim * width


@cache
def llms() -> dict[str, Llm]:
    """The whole catalogue by name."""
    text = importlib.resources.files("macadam.compute.catalogue").joinpath("llms.json").read_bytes()
    return {llm.name: llm for llm in msgspec.json.decode(text, type=list[Llm])}


def find(name: str) -> Llm:
    """By the catalogue's name or Hugging Face's. Raises NotFound with the names there are."""
    for llm in llms().values():
        if name.lower() in {llm.name, *(other.lower() for other in llm.names)}:
            return llm
    raise NotFound(
        f"No model is known as {name!r}.",
        next_step=f"Give the path of its config.json, or choose one of: {', '.join(sorted(llms()))}.",
    )


def read(spec: str) -> Llm:
    """`spec`: a name of the catalogue, or the path of a config.json. Raises NotFound, InvalidInput."""
    path = Path(spec)
    if not (spec.endswith(".json") or path.is_file()):
        return find(spec)
    try:
        if path.stat().st_size > _LARGEST_CONFIG:
            raise InvalidInput(f"{spec} is larger than any config.json.", next_step="Give the model's config.json.")
        text = path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{spec} cannot be read: {error.strerror}.", next_step="Correct the path.") from error
    return from_config(text, name=path.parent.name or path.stem, source=spec)


def from_config(text: bytes, *, name: str, source: str = "") -> Llm:
    """Reads a config.json. Raises InvalidInput if something is missing or of a kind that is not understood."""
    try:
        said = msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"The model's config is not JSON: {error}.", next_step="Give its config.json.") from error
    kind = said.get("model_type")
    if kind not in _KNOWN:
        raise InvalidInput(
            f"A model of the type {kind!r} is not understood.", next_step=f"Use one of: {', '.join(_KNOWN)}."
        )
    heads = _count(said, "num_attention_heads")
    hidden = _count(said, "hidden_size")
    return Llm(
        name=name,
        layers=_count(said, "num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=_count(said, "num_key_value_heads", heads),
        head_dim=_count(said, "head_dim", hidden // heads),
        ffn=_count(said, "intermediate_size"),
        vocab=_count(said, "vocab_size"),
        experts=_count(said, "num_local_experts", 1),
        experts_used=_count(said, "num_experts_per_tok", 1),
        tied=said.get("tie_word_embeddings") is True,
        biased=_KNOWN[str(kind)],
        weight_bytes=_weight_bytes(said),
        context=_context(said),
        source=source,
    )


def _context(said: dict[str, Any]) -> int:
    """Llama 3.1's way to scale positions counts them in; others multiply what the file says."""
    if said.get("max_position_embeddings") is None:
        return 0
    positions, scaling = _count(said, "max_position_embeddings"), said.get("rope_scaling")
    if not isinstance(scaling, dict) or scaling.get("rope_type", scaling.get("type")) == "llama3":
        return positions
    factor = scaling.get("factor")
    return int(positions * factor) if isinstance(factor, (int, float)) and 1 <= factor <= _LARGEST_COUNT else 0


def _count(said: dict[str, Any], key: str, default: int | None = None) -> int:
    found = said.get(key)
    found = default if found is None else found
    if not isinstance(found, int) or isinstance(found, bool) or not 1 <= found <= _LARGEST_COUNT:
        raise InvalidInput(
            f"The model's {key} is {reprlib.repr(found)}.", next_step="Give the config.json as it was published."
        )
    return found


def _weight_bytes(said: dict[str, Any]) -> float:
    quantised = said.get("quantization_config")
    if quantised is not None:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else None
        if method not in ("fp8", "fbgemm_fp8"):
            raise InvalidInput(
                f"Weights quantised by {method!r} are not understood.",
                next_step="Use the config of the model before quantisation, with --weights fp8 or bf16.",
            )
        return 1.0
    said_type = said.get("torch_dtype") or said.get("dtype") or "bfloat16"
    if said_type not in _BYTES:
        raise InvalidInput(
            f"Weights of the type {said_type!r} are not understood.", next_step=f"One of: {', '.join(_BYTES)}."
        )
    return _BYTES[said_type]

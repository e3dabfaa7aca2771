"""Shapes of language models: counted from the architecture, the same as their makers count."""

import json
from pathlib import Path

import pytest

from macadam.compute.catalogue import llms
from macadam.errors import InvalidInput, NotFound

CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "torch_dtype": "bfloat16",
}


@pytest.mark.parametrize("name", sorted(llms.llms()))
def test_parameters_counted_from_the_shape_are_those_that_were_published(name: str) -> None:
    llm = llms.find(name)
    assert llm.parameters == pytest.approx(llm.published, rel=0.004)
    assert llm.source
    assert llm.dated


def test_a_mixture_of_experts_uses_few_of_its_parameters_for_a_token() -> None:
    llm = llms.find("mixtral-8x7b")
    assert llm.active == pytest.approx(12.9e9, rel=0.02)  # arXiv:2401.04088: 13 B active


def test_grouped_queries_leave_fewer_keys_behind() -> None:
    assert (
        llms.find("llama-2-7b").kv_bytes(2) == 512 * 1024
    )  # vLLM's paper: 800 KB for OPT-13B; 512 KB for 32 layers of 4096
    assert llms.find("llama-3.1-8b").kv_bytes(2) == 128 * 1024


def test_a_config_from_hugging_face_gives_the_same_as_the_catalogue(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    mine = llms.read(str(folder / "config.json"))
    assert mine.name == "mine"
    assert mine.parameters == llms.find("meta-llama/Llama-3.1-8B-Instruct").parameters


def test_old_configs_without_groups_have_a_key_for_each_query() -> None:
    plain = {key: value for key, value in CONFIG.items() if key != "num_key_value_heads"}
    assert llms.from_config(json.dumps(plain).encode(), name="x").kv_heads == 32


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"model_type": "rwkv"}, "rwkv"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"hidden_size": "big"}, "hidden_size"),
        ({"num_key_value_heads": 5}, "heads"),
        ({"torch_dtype": "int3"}, "int3"),
        ({"quantization_config": {"quant_method": "awq"}}, "awq"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(wrong: dict[str, object], word: str) -> None:
    with pytest.raises(InvalidInput, match=word):
        llms.from_config(json.dumps({**CONFIG, **wrong}).encode(), name="x")


def test_a_config_that_is_no_json_or_not_there_is_an_error_with_a_next_step(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="not JSON"):
        llms.from_config(b"{", name="x")
    with pytest.raises(InvalidInput) as error:
        llms.read(str(tmp_path / "no.json"))
    assert error.value.next_step


def test_an_unknown_name_lists_those_that_are_known() -> None:
    with pytest.raises(NotFound) as error:
        llms.read("gpt-9")
    assert "llama-3.1-8b" in error.value.next_step


@pytest.mark.parametrize(
    ("said", "reads"),
    [
        ({}, 0),
        ({"max_position_embeddings": 8192}, 8192),
        ({"max_position_embeddings": 131072, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 131072),
        ({"max_position_embeddings": 32768, "rope_scaling": {"type": "yarn", "factor": 4.0}}, 131072),
        ({"max_position_embeddings": 32768, "rope_scaling": {"type": "dynamic"}}, 0),
    ],
)
def test_what_a_model_reads_at_most_follows_from_its_positions(said: dict[str, object], reads: int) -> None:
    assert llms.from_config(json.dumps(CONFIG | said).encode(), name="x").context == reads


def test_a_config_of_numbers_without_end_is_refused_in_few_words() -> None:
    for key in ("num_hidden_layers", "max_position_embeddings"):
        text = json.dumps(CONFIG | {key: 0}).replace(f'"{key}": 0', f'"{key}": {"9" * 400}')
        with pytest.raises(InvalidInput, match=key) as error:
            llms.from_config(text.encode(), name="x")
        assert len(error.value.what) < 200
    with pytest.raises(InvalidInput, match="not JSON"):
        llms.from_config(b'{"a":' * 100_000, name="x")

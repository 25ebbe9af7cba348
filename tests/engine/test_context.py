"""How long a text may be: the model's own limit, YaRN's where it stretches, and never a wish cut in silence."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from tests.support import make_model
from tiny_llm import LLM, SamplingParams, load
from tiny_llm.config import EngineConfig, ModelConfig
from tiny_llm.config.serving import ServingConfig
from tiny_llm.decode.generate import generate_naive, stream
from tiny_llm.engine.loop import Loop

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
LONG = [1 + (7 * i) % 250 for i in range(300)]


@pytest.fixture(scope="module")
def stretched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("yarn"), max_position_embeddings=160, rope_scaling=YARN)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("plain"), max_position_embeddings=160)


LIMITS = [
    (None, 160),
    ({"rope_type": "default"}, 160),
    (YARN, 512),
    ({**YARN, "factor": 1.5}, 192),
    ({**YARN, "factor": 1.1}, 160),  # less than what the file promises
    ({**YARN, "factor": None}, 160),
    ({**YARN, "original_max_position_embeddings": 160}, 640),
    ({"type": "yarn", "factor": 2.0}, 320),  # transformers takes max_position_embeddings for the missing one
    ({"type": "linear", "factor": 4.0}, 160),  # such models name the stretched length
    (
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        160,
    ),
]


@pytest.mark.parametrize(("scaling", "limit"), LIMITS, ids=str)
def test_only_yarn_gives_more_than_max_position_embeddings(scaling: Any, limit: int) -> None:
    shape = dict.fromkeys(("hidden_size", "intermediate_size", "vocab_size"), 64)
    shape |= {"num_hidden_layers": 1, "num_attention_heads": 1, "model_type": "qwen3", "max_position_embeddings": 160}
    config = ModelConfig.from_hf({**shape, "rope_scaling": scaling})
    assert config.max_context == config.context(None) == config.context(limit) == limit
    with pytest.raises(
        ValueError, match=rf"^max_context: expected at most {limit} tokens \(.*\), found {limit + 1}; lower"
    ):
        config.context(limit + 1)


def test_a_model_with_yarn_takes_its_long_context(stretched: Path) -> None:
    """It was cut to max_position_embeddings in silence, and the error advised to raise --max-context."""
    for config in (EngineConfig(), EngineConfig(max_context=512)):
        llm = load(stretched, config=config)
        assert llm.max_context == 512
    answer = llm.generate(LONG, GREEDY)
    assert answer.tokens == generate_naive(llm.model, LONG, 6)


def test_the_serving_engine_takes_it_too(stretched: Path) -> None:
    llm = load(stretched)
    alone = llm.generate(LONG, GREEDY)
    answers = llm.generate([LONG, LONG[:200]], GREEDY)
    assert answers[0].tokens == alone.tokens
    assert Loop(llm.model, llm.tokenizer, ServingConfig(2**20, 8)).max_context == 512


def test_a_larger_wish_is_refused_with_the_numbers_and_the_remedy(stretched: Path, plain: Path) -> None:
    with pytest.raises(
        ValueError, match=r"max_context: expected at most 512 tokens \(.*factor 4 times 128 .*\), found 513"
    ):
        load(stretched, config=EngineConfig(max_context=513))
    message = (
        r"max_context: expected at most 160 tokens \(the model's max_position_embeddings\), found 161; lower "
        r"max_context, or add the rope_scaling that the model's makers name$"
    )
    with pytest.raises(ValueError, match=message):
        load(plain, config=EngineConfig(max_context=161))
    assert load(plain, config=EngineConfig(max_context=160)).max_context == 160


def test_no_other_way_to_the_model_cuts_a_wish_in_silence(plain: Path) -> None:
    llm = load(plain, config=EngineConfig(max_context=100))
    model, tokenizer = llm.model, llm.tokenizer
    with pytest.raises(ValueError, match=r"max_context: expected at most 160 tokens \(.*\), found 200"):
        LLM(model, tokenizer, path=plain, config=EngineConfig(max_context=200))
    with pytest.raises(ValueError, match=r"max_context: expected at most 160 tokens \(.*\), found 200"):
        Loop(model, tokenizer, engine=EngineConfig(max_context=200))
    with pytest.raises(ValueError, match=r"max_context: expected at most 160 tokens \(.*\), found 200"):
        next(stream(model, tokenizer, [1], GREEDY, llm.kept()[0], max_context=200))
    assert Loop(model, tokenizer, engine=llm.engine_config).max_context == 100


def test_more_than_32768_tokens_are_served_where_the_model_has_them(tmp_path: Path) -> None:
    """Prompts side by side were held to 32,768 tokens, whatever the model's context."""
    path = make_model(
        tmp_path, max_position_embeddings=40960, rope_scaling={**YARN, "original_max_position_embeddings": 32768}
    )
    llm = load(path)
    assert llm.max_context == Loop(llm.model, llm.tokenizer, ServingConfig(2**20, 8)).max_context == 131072


def test_a_default_of_the_model_never_exceeds_its_context(plain: Path, tmp_path: Path) -> None:
    """max_new_tokens of generation_config.json is advice: it must not make a call fail that asked for nothing."""
    for file in plain.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "generation_config.json").write_text('{"max_new_tokens": 5000, "do_sample": false}')
    llm = load(tmp_path)
    assert llm.defaults["max_tokens"] == 160
    single, many = llm.generate([1, 2, 3], ignore_eos=True), llm.generate([[1, 2, 3], [4]], ignore_eos=True)
    assert [len(answer.tokens) for answer in (single, *many)] == [157, 157, 159]


def test_positions_beyond_the_table_are_stretched_as_far_as_they_go(stretched: Path) -> None:
    """The rotation at position 500 is that of YaRN, not of a table that ends at max_position_embeddings."""
    rope = load(stretched).model.rope
    turned = rope.at(mx.array([500]))
    np.testing.assert_allclose(np.array(turned.cos)[0], np.cos(500 * np.array(rope.inverse)) * rope.gain, atol=1e-4)

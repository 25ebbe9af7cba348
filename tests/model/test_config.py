"""Both generations of config.json, and every value that is refused."""

import json
from typing import Any

import pytest

from tiny_llm.config import EngineConfig, ModelConfig, QuantizationConfig, RopeConfig, SamplingParams
from tiny_llm.config.fields import parse_object

QWEN3 = {  # Qwen3-0.6B's
    "model_type": "qwen3",
    "attention_bias": False,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN25 = {  # Qwen2.5-0.5B's
    "model_type": "qwen2",
    "hidden_act": "silu",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 21,
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}


def changed(**changes: Any) -> ModelConfig:
    return ModelConfig.from_hf({**QWEN3, **changes})


def test_qwen3() -> None:
    config = ModelConfig.from_hf(QWEN3)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (16, 8, 128)
    assert config.qk_norm
    assert not config.qkv_bias
    assert config.rope == RopeConfig(1e6)
    assert config.tie_word_embeddings
    assert config.quantization is None
    assert [config.window_of(layer) for layer in (0, 27)] == [None, None]


def test_qwen25_derives_its_head_and_has_a_bias() -> None:
    config = ModelConfig.from_hf(QWEN25)
    assert config.head_dim == 64
    assert config.qkv_bias
    assert not config.qk_norm
    assert config.sliding_window is None


def test_what_old_files_leave_out() -> None:
    optional = ("num_key_value_heads", "head_dim", "tie_word_embeddings", "rope_theta", "hidden_act", "attention_bias")
    config = ModelConfig.from_hf({key: value for key, value in QWEN3.items() if key not in optional})
    assert (config.num_key_value_heads, config.head_dim, config.tie_word_embeddings) == (16, 128, False)
    assert config.rope == RopeConfig(10000.0)
    assert changed(head_dim=None).head_dim == 64
    old = {key: value for key, value in QWEN25.items() if key not in optional}
    assert ModelConfig.from_hf({**old, "num_attention_heads": 64, "hidden_size": 4096}).num_key_value_heads == 32


YARN = {"factor": 4.0, "original_max_position_embeddings": 32768, "beta_fast": 16, "attention_factor": 1.5}


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_theta": 5e5, "rope_scaling": {"type": "yarn", **YARN}},
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "yarn", **YARN}},
        {"rope_theta": 5e5, "rope_parameters": {"rope_type": "yarn", **YARN}},
        {"rope_theta": None, "rope_parameters": {"rope_type": "yarn", "rope_theta": 5e5, **YARN}},
    ],
)
def test_both_generations_of_rope(fields: dict[str, Any]) -> None:
    expected = RopeConfig(
        5e5, "yarn", 4.0, original_max_position_embeddings=32768, beta_fast=16.0, attention_factor=1.5
    )
    assert changed(**fields).rope == expected


def test_rope_parameters_without_a_scaling() -> None:
    assert changed(rope_theta=None, rope_parameters={"rope_type": "default", "rope_theta": 7e5}).rope == RopeConfig(7e5)


def test_llama3_scaling() -> None:
    scaling = {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}
    rope = changed(rope_scaling={**scaling, "original_max_position_embeddings": 8192}).rope
    assert (rope.factor, rope.low_freq_factor, rope.high_freq_factor) == (8.0, 1.0, 4.0)
    assert changed(rope_scaling=scaling).rope.original_max_position_embeddings == 40960


def test_sliding_windows() -> None:
    config = changed(use_sliding_window=True, sliding_window=4096, max_window_layers=26)
    assert [config.window_of(layer) for layer in (0, 25, 26, 27)] == [None, None, 4096, 4096]
    kinds = ["sliding_attention", "full_attention"] * 14
    config = changed(use_sliding_window=True, sliding_window=4096, layer_types=kinds)
    assert [config.window_of(layer) for layer in (0, 1, 26, 27)] == [4096, None, 4096, None]


def test_quantization() -> None:
    own = {"lm_head": False, "model.embed_tokens": {"group_size": 32, "bits": 8}, "model.norm": True}
    config = changed(quantization={"group_size": 64, "bits": 4, "mode": "affine", **own})
    assert config.quantization == QuantizationConfig(
        4, 64, {"lm_head": None, "model.embed_tokens": QuantizationConfig(8, 32)}
    )


REFUSED = [
    (
        {"model_type": "mistral"},
        r'model_type: expected one of llama, qwen2, qwen3, qwen2_moe, qwen3_moe, found "mistral"',
    ),
    ({"model_type": None}, r"model_type: expected one of llama, qwen2, qwen3, qwen2_moe, qwen3_moe, found null"),
    ({"hidden_size": None}, r"hidden_size: expected an integer from 1 to 2147483647, found null"),
    ({"hidden_size": 1024.0}, r"hidden_size: expected an integer .*, found 1024.0"),
    ({"hidden_size": True}, r"hidden_size: expected an integer .*, found true"),
    ({"hidden_size": 0}, r"hidden_size: expected an integer .*, found 0"),
    ({"vocab_size": -5}, r"vocab_size: expected an integer .*, found -5"),
    ({"vocab_size": 2**31}, r"vocab_size: expected an integer .*, found 2147483648"),
    ({"num_hidden_layers": 10**9}, r"num_hidden_layers: expected an integer from 1 to 10000, found 1000000000"),
    ({"num_key_value_heads": 3}, r"num_key_value_heads: expected a divisor of num_attention_heads \(16\), found 3"),
    ({"head_dim": None, "hidden_size": 1000}, r"num_attention_heads: expected a divisor of hidden_size \(1000\)"),
    ({"head_dim": 63}, r"head_dim: expected an even number, found 63"),
    ({"hidden_act": "gelu"}, r'hidden_act: expected one of silu, swish, found "gelu"'),
    ({"rms_norm_eps": float("nan")}, r"rms_norm_eps: expected a finite number above 0, found NaN"),
    ({"rms_norm_eps": float("inf")}, r"rms_norm_eps: expected a finite number above 0, found Infinity"),
    ({"rms_norm_eps": 0}, r"rms_norm_eps: expected a finite number above 0, found 0"),
    ({"rms_norm_eps": "1e-6"}, r'rms_norm_eps: expected a finite number above 0, found "1e-6"'),
    ({"rope_theta": 10**400}, r"rope_theta: expected a finite number above 1, found 1000000"),
    ({"tie_word_embeddings": "yes"}, r'tie_word_embeddings: expected true or false, found "yes"'),
    ({"rope_scaling": [4]}, r"rope_scaling: expected an object, found \[4\]"),
    ({"rope_scaling": {"type": "dynamic"}}, r"rope_scaling: type: expected one of default, linear, yarn, llama3, fo"),
    ({"rope_scaling": {"type": "yarn"}}, r"rope_scaling: factor: expected a finite number above 0, found nothing"),
    (
        {"rope_scaling": {"rope_type": "llama3", "factor": 2, "low_freq_factor": 4, "high_freq_factor": 4}},
        r"rope_scaling: high_freq_factor: expected a number above low_freq_factor \(4\), found 4",
    ),
    ({"use_sliding_window": True, "sliding_window": "4"}, r'sliding_window: expected an integer .*, found "4"'),
    (
        {"layer_types": ["sliding_attention", *["full_attention"] * 27]},
        r"layer_types: expected no sliding_attention without a window, found 1 such layers; set sliding_window and use",
    ),
    (
        {"use_sliding_window": True, "sliding_window": 4, "layer_types": ["full_attention"]},
        r"layer_types: expected 28 of",
    ),
    (
        {"quantization": {"bits": 5, "group_size": 64}},
        r"quantization: bits: expected one of 2, 3, 4, 6, 8, found 5",
    ),
    ({"quantization": {"bits": 4.0, "group_size": 64}}, r"quantization: bits: expected one of .*, found 4.0"),
    ({"quantization": {"bits": 4}}, r"quantization: group_size: expected one of 32, 64, 128, found nothing"),
    (
        {"quantization": {"bits": 4, "group_size": 32, "mode": "mxfp4"}},
        r'quantization: mode: expected one of affine, found "mxfp4"',
    ),
    ({"quantization": {"bits": 4, "group_size": 32, "lm_head": {"bits": 9}}}, r"quantization: lm_head: bits: expected"),
    ({"quantization_config": {"quant_method": "gptq"}}, r"quantization_config: expected MLX's .* quant_method 'gptq'"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[str(changes)[:60] for changes, _ in REFUSED])
def test_a_wrong_value_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^here/config.json: {message}") as error:
        ModelConfig.from_hf({**QWEN3, **changes}, "here/config.json")
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("data", [b"", b"[1]", b"nul", b'{"a": 1, "a": 2}', b"\xff", b"[" * 99_999, b"9" * 5000])
def test_what_is_no_json_object_is_named(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"^x.json: expected (JSON|a JSON object), found"):
        parse_object(data, "x.json")
    assert parse_object(json.dumps(QWEN3).encode(), "x.json").data == QWEN3


@pytest.mark.parametrize(
    "options",
    [
        {"ops": "slow"},
        {"dtype": "int8"},
        {"prefill_chunk": 0},
        {"prefill_chunk": None},
        {"prefill_chunk": 1.5},
        {"max_context": 0},
        {"max_context": "4k"},
    ],
    ids=str,
)
def test_a_wrong_engine_option_is_named(options: dict[str, Any]) -> None:
    name, value = next(iter(options.items()))
    with pytest.raises(ValueError, match=rf"^{name}: expected .*, found {value!r}$"):
        EngineConfig(**options)
    assert EngineConfig(max_context=5).max_context == 5


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("max_tokens", [1, 100], [0, -1, 1.0, True, "9", None]),
        ("temperature", [0, 0.0, 1, 100], [-0.1, 101, float("nan"), float("inf"), "1", True]),
        ("top_k", [0, 5], [-1, 0.5]),
        ("top_p", [0, 0.5, 1], [-0.1, 1.1, float("nan")]),
        ("min_p", [0, 1.0], [1.5]),
        ("repetition_penalty", [0.5, 1, 2], [0, -1]),
        ("presence_penalty", [-2, 2], [2.1]),
        ("frequency_penalty", [-2, 2], [-2.1]),
        ("logprobs", [None, 0, 20], [21, -1, True, 1.0]),
        ("seed", [None, 0, 2**64 - 1], [-1, 2**64, 1.5]),
        ("stop", [(), ("a", "\n")], ["a", ["a"], ("",), (1,)]),
        ("stop_token_ids", [(), (1,)], [[1], ("a",), (-1,)]),
        ("logit_bias", [{}, {3: -100.0, 4: 5}], [{3: 101}, {"3": 1}, {3: float("nan")}, {-1: 1}]),
        ("n", [1, 128], [0, 129]),
        ("beam_width", [1, 64], [0, 65]),
        ("length_penalty", [-10, 0], [11]),
    ],
)
def test_sampling_ranges(name: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        assert getattr(SamplingParams(**{name: value}), name) == value
    for value in bad:
        with pytest.raises(ValueError, match=rf"^{name}: expected"):
            SamplingParams(**{name: value})


@pytest.mark.parametrize("name", ["temperature", "top_k", "top_p", "min_p", "seed"])
def test_who_asks_for_beams_can_not_ask_for_draws(name: str) -> None:
    """They were dropped in silence. The model's own defaults are no wish of the caller's."""
    with pytest.raises(ValueError, match=f"^{name}: beam search draws nothing, leave it out; found 0"):
        SamplingParams.resolve({"beam_width": 2, name: 0})
    with pytest.raises(ValueError, match=f"^{name}: beam search draws nothing"):
        SamplingParams.resolve({name: 0}, {"beam_width": 2})
    assert SamplingParams.resolve({"beam_width": 2}, {name: 0}).beam_width == 2
    assert SamplingParams.resolve({"beam_width": 1, name: 0}).beam_width == 1


def test_as_many_answers_as_beams_at_most() -> None:
    assert SamplingParams(n=3, beam_width=3).n == 3
    with pytest.raises(ValueError, match=r"^n: expected at most beam_width \(2\), found 3"):
        SamplingParams(n=3, beam_width=2)


def test_the_first_setting_wins_and_none_is_not_set() -> None:
    request, command_line = {"temperature": 0.0, "top_k": None}, {"temperature": 0.5, "top_k": 7}
    params = SamplingParams.resolve(request, command_line, {"top_k": 9, "top_p": 0.9})
    assert (params.temperature, params.top_k, params.top_p, params.min_p) == (0.0, 7, 0.9, 0.0)


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^temprature: unknown sampling parameter; known are .*temperature"):
        SamplingParams.resolve({"temprature": 0.5})
    with pytest.raises(ValueError, match=r"^best_of: unknown"):
        SamplingParams.resolve({"best_of": None})

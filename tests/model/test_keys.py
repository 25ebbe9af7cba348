"""The table of keys: it names every key that transformers knows, and each verdict is true.

The keys are taken out of the installed transformers: its classes, signatures and source. A key that a new version adds
fails the first test until the table has a verdict for it.
"""

import dataclasses
import inspect
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    configuration_utils,
    modeling_rope_utils,
    tokenization_utils_base,
    tokenization_utils_tokenizers,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, RopeParameters, RotaryEmbeddingConfigMixin
from transformers.models.llama.tokenization_llama import LlamaTokenizer
from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

from tests.support import make_model, write_json
from tiny_llm.config import ModelConfig
from tiny_llm.config.check import check_keys, rules_of
from tiny_llm.config.fields import JsonFields
from tiny_llm.config.keys import CONFIG, GENERATION, ROPE, TABLES, TOKENIZER
from tiny_llm.config.rope import ROPE_KINDS
from tiny_llm.config.rules import HARMLESS, HONOURED, REFUSED, Rule
from tiny_llm.model.directory import load_generation_defaults
from tiny_llm.model.rope import Rope
from tiny_llm.model.tokenizer import Tokenizer

SHAPE = {
    "model_type": "qwen3",
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 320,
    "max_position_embeddings": 4096,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
AT_RUN_TIME = {"_original_object_hash", "_mask_length"}  # attributes of GenerationConfig that no file holds
POPPED = r'kwargs\.(?:pop|get)\(\s*"(\w+)"'
ODD = ("odd", 7, True, ["odd"])


def taken(code: Any, pattern: str = POPPED) -> set[str]:
    """The keys that a class's or function's source takes out of its keyword arguments."""
    return set(re.findall(pattern, inspect.getsource(code)))


def config_keys() -> set[str]:
    base = configuration_utils.PreTrainedConfig
    kinds = (LlamaConfig, Qwen2Config, Qwen3Config, Qwen2MoeConfig, Qwen3MoeConfig)
    keys = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    keys |= taken(base.__post_init__) | taken(RotaryEmbeddingConfigMixin.convert_rope_params_to_dict)
    keys |= taken(base.get_config_dict, r'"(\w+)" in config_dict')
    masks = (Path(transformers.__file__).parent / "masking_utils.py").read_text(encoding="utf-8")  # it imports torch
    keys |= set(re.findall(r'getattr\(config, "(\w+)"', masks))
    keys |= {name for name, value in inspect.getmembers(base, lambda value: isinstance(value, property))}
    keys |= {key for kind in kinds for key in kind().to_dict()}
    return keys - {"per_layer_attributes", "is_heterogeneous"}  # computed from per_layer_config


def rope_keys() -> set[str]:
    source = inspect.getsource(modeling_rope_utils)
    read = set(re.findall(r'(?:rope_parameters|rope_parameters_dict|rope_scaling)(?:\.get\(|\[)"(\w+)"', source))
    return read | set(RopeParameters.__annotations__)


def generation_keys() -> set[str]:
    kind = GenerationConfig
    called = re.search(r"generate_arguments = \((.*?)\)", inspect.getsource(kind.validate), re.DOTALL)
    arguments = set(re.findall(r'"(\w+)"', called[1]))
    return (set(kind().__dict__) | taken(kind.__init__) | arguments) - AT_RUN_TIME


def tokenizer_keys() -> set[str]:
    base, fast = tokenization_utils_base.PreTrainedTokenizerBase, tokenization_utils_tokenizers.TokenizersBackend
    keys = taken(base.__init__) | taken(fast.__init__) | set(base.SPECIAL_TOKENS_ATTRIBUTES)
    keys |= taken(base._from_pretrained, r'init_kwargs(?:\.pop\(|\.get\(|\[)"(\w+)"')
    keys |= taken(base.save_pretrained, r'tokenizer_config(?:\.pop\(|\[)"(\w+)"')
    keys |= taken(base.from_pretrained, r'"(\w+)" in tokenizer_config')
    keys |= set(re.findall(r'kwargs\.setdefault\("(\w+)"', inspect.getsource(fast.__init__)))
    for kind in (Qwen2Tokenizer, LlamaTokenizer):
        keys |= {name for name in inspect.signature(kind.__init__).parameters if name not in ("self", "kwargs")}
    return {key for key in keys if key not in ("_json_truncation", "_json_padding", "_spm_precompiled_charsmap")}


KNOWN = {CONFIG: config_keys, ROPE: rope_keys, GENERATION: generation_keys, TOKENIZER: tokenizer_keys}
REAL = {  # what directories on the Hub carry beside these
    CONFIG: (
        "rope_scaling rope_theta torch_dtype _name_or_path auto_map unsloth_fixed model_name quantization use_mrope "
        "quantization_config _attn_implementation_autoset add_cross_attention cross_attention_hidden_size is_decoder "
        "is_llama_config rope_interleaved rope_traditional "
        "decoder_start_token_id finetuning_task prefix pruned_heads sep_token_id task_specific_params tf_legacy_loss "
        "tie_encoder_decoder tokenizer_class torchscript use_bfloat16"
    ),
    ROPE: "type truncate mrope_section attn_factor finetuned",
    GENERATION: "chat_format max_window_size transformers_version",
    TOKENIZER: "added_tokens_decoder errors legacy sp_model_kwargs split_special_tokens additional_special_tokens",
}


@pytest.mark.parametrize("table", TABLES)
def test_every_key_of_transformers_has_a_verdict(table: str) -> None:
    found = KNOWN[table]() | set(REAL[table].split())
    assert len(found) > 15
    assert sorted(found - set(rules_of(table))) == []


@pytest.mark.parametrize("table", TABLES)
def test_no_key_has_two_verdicts(table: str) -> None:
    keys = [key for rule in TABLES[table] for key in rule.keys.split()]
    assert sorted(keys) == sorted(set(keys))
    assert all(rule.why for rule in TABLES[table])
    assert all(rule.verdict is REFUSED or not (rule.neutral or rule.unless) for rule in TABLES[table])


def keys_with(verdict: Any) -> list[Any]:
    return [
        pytest.param(table, key, rule, id=f"{table}: {key}")
        for table, rules in TABLES.items()
        for rule in rules
        if rule.verdict is verdict
        for key in rule.keys.split()
    ]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


def read(table: str, values: dict[str, Any], tmp_path: Path, model: Path) -> Any:
    """What this engine makes of a file with these values: something that can be compared."""
    if table == CONFIG:
        return ModelConfig.from_hf({**SHAPE, **values}, CONFIG)
    if table == ROPE:
        return ModelConfig.from_hf({**SHAPE, "rope_parameters": {**YARN, **values}}, CONFIG).rope
    if table == GENERATION:
        write_json(tmp_path / GENERATION, {"top_k": 20, **values})
        return load_generation_defaults(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((model / "tokenizer.json").read_bytes())
    write_json(tmp_path / TOKENIZER, {**json.loads((model / TOKENIZER).read_text()), **values})
    tokenizer = Tokenizer.from_dir(tmp_path)
    text = tokenizer.render([{"role": "user", "content": "the fox , it 's"}])
    tokens = tokenizer.encode(text)
    return text, tokens, tokenizer.decode(tokens), tokenizer.eos_token_ids, tokenizer.special.get("eos_token")


def said_in(warnings: pytest.WarningsRecorder) -> list[str]:
    """The texts of the warnings since the last call."""
    said = [str(warning.message) for warning in warnings.list if warning.category is UserWarning]
    warnings.clear()
    return said


@pytest.mark.parametrize(("table", "key", "rule"), keys_with(HARMLESS))
def test_a_harmless_key_changes_nothing(table: str, key: str, rule: Rule, tmp_path: Path, model: Path, recwarn) -> None:
    before = read(table, {}, tmp_path, model)
    assert all(read(table, {key: value}, tmp_path, model) == before for value in (*ODD, None))
    assert said_in(recwarn) == []


@pytest.mark.parametrize(("table", "key", "rule"), keys_with(REFUSED))
def test_a_refused_key_is_refused_by_name(table: str, key: str, rule: Rule, tmp_path: Path, model: Path) -> None:
    before = read(table, {}, tmp_path, model)
    for value in (None, *rule.neutral):
        assert read(table, {key: value}, tmp_path, model) == before
    for value in ("odd", 7, [7]):
        with pytest.raises(
            ValueError, match=rf"{key}: expected .*, found {re.escape(json.dumps(value))}; .{{10}}"
        ) as error:
            read(table, {key: value}, tmp_path, model)
        assert str(table if table != ROPE else "config.json: rope_parameters") in str(error.value)
    if rule.unless:
        assert read(table, {key: 0.5, rule.unless[0]: rule.unless[1]}, tmp_path, model)["temperature"] == 0


HONOURED_BY = {  # a value that makes a difference, or that is refused because it can't be honoured
    CONFIG: {
        "model_type": "qwen2",
        "vocab_size": 321,
        "hidden_size": 64,
        "intermediate_size": 97,
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "max_position_embeddings": 99,
        "rms_norm_eps": 1e-5,
        "hidden_act": "gelu",
        "tie_word_embeddings": True,
        "attention_bias": True,
        "mlp_bias": True,
        "use_sliding_window": "odd",
        "sliding_window": 8,
        "max_window_layers": 1,
        "layer_types": ["sliding_attention"] * 4,
        "rope_theta": 5e5,
        "rope_scaling": YARN,
        "rope_parameters": YARN,
        "original_max_position_embeddings": 512,
        "quantization": {"bits": 4, "group_size": 64},
        "quantization_config": {"bits": 4, "group_size": 64},
        "eos_token_id": 5,
        "architectures": ["Qwen3ForSequenceClassification"],
        "qkv_bias": False,
        "num_experts": 9,
        "num_local_experts": 9,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 64,
        "shared_expert_intermediate_size": 64,
        "norm_topk_prob": True,
        "decoder_sparse_step": 2,
        "mlp_only_layers": [1],
    },
    ROPE: {
        "rope_type": "dynamic",
        "type": "longrope",
        "rope_theta": 5e5,
        "factor": 8.0,
        "original_max_position_embeddings": 2048,
        "attention_factor": 1.5,
        "mscale": 0.7,
        "mscale_all_dim": 0.4,
        "beta_fast": 16,
        "beta_slow": 2,
        "truncate": False,
        "low_freq_factor": 2.0,
        "high_freq_factor": 8.0,
    },
    GENERATION: {
        "do_sample": False,
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.5,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "max_new_tokens": 99,
        "stop_strings": "END",
        "length_penalty": 2.0,
        "eos_token_id": 5,
    },
    TOKENIZER: {
        "chat_template": "no {{ eos_token }}",
        "added_tokens_decoder": {"7": {"content": "<x>"}},
        "additional_special_tokens": ["<x>"],
        "extra_special_tokens": ["<x>"],
        "add_prefix_space": True,
        **dict.fromkeys(
            "bos_token eos_token pad_token unk_token cls_token sep_token mask_token".split(), "<|im_start|>"
        ),
    },
}
OF_EXPERTS = (
    "num_experts num_local_experts num_experts_per_tok moe_intermediate_size norm_topk_prob decoder_sparse_step "
    "mlp_only_layers"
).split()
QWEN3_MOE = {"model_type": "qwen3_moe", "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
QWEN2_MOE = {**QWEN3_MOE, "model_type": "qwen2_moe", "shared_expert_intermediate_size": 32}
BESIDE = {  # what must stand beside a key before it acts
    "mlp_bias": {"model_type": "llama"},
    "qkv_bias": QWEN2_MOE,
    "shared_expert_intermediate_size": QWEN2_MOE,
    **dict.fromkeys(OF_EXPERTS, QWEN3_MOE),
    "sliding_window": {"use_sliding_window": True, "max_window_layers": 1},
    "max_window_layers": {"use_sliding_window": True, "sliding_window": 8},
    "layer_types": {"use_sliding_window": True, "sliding_window": 8},
    "original_max_position_embeddings": {"rope_scaling": {**YARN, "original_max_position_embeddings": None}},
    "mscale": {"mscale_all_dim": 1.0},
    "mscale_all_dim": {"mscale": 1.0},
    "low_freq_factor": LLAMA3,
    "high_freq_factor": LLAMA3,
}


@pytest.mark.parametrize(("table", "key", "rule"), keys_with(HONOURED))
def test_an_honoured_key_makes_a_difference(table: str, key: str, rule: Rule, tmp_path: Path, model: Path) -> None:
    if key == "eos_token_id":  # read by the tokenizer
        (tmp_path / "tokenizer.json").write_bytes((model / "tokenizer.json").read_bytes())
        write_json(tmp_path / table, {key: 5})
        assert Tokenizer.from_dir(tmp_path).eos_token_ids == {5}
        return
    beside = BESIDE.get(key, {}) if (table, key) != (ROPE, "original_max_position_embeddings") else {}
    if table == TOKENIZER and key.endswith("_token"):
        beside = {"chat_template": f"{{{{ {key} }}}}"}
    before = read(table, beside, tmp_path, model)
    try:
        assert read(table, {**beside, key: HONOURED_BY[table][key]}, tmp_path, model) != before
    except ValueError as error:
        assert f"{key}: expected" in str(error) or f"{key}: '7': expected" in str(error)


def test_an_unknown_key_is_named_once_and_goes_on(tmp_path: Path, model: Path, recwarn) -> None:
    for table in TABLES:
        before = read(table, {}, tmp_path, model)
        assert read(table, {"foo_bar": None}, tmp_path, model) == before
        assert said_in(recwarn) == []
        for _ in range(2):
            assert read(table, {"foo_bar": {"a": 1} if table != ROPE else [1], "baz": 3}, tmp_path, model) == before
        (said,) = said_in(recwarn)
        assert said.count("foo_bar") == 1 and "'baz' (3)" in said
        assert table in said


def test_a_sampling_setting_in_config_json_has_no_effect() -> None:
    """As in transformers, which reads them from generation_config.json alone."""
    settings = {"temperature": 0.3, "num_beams": 4, "max_length": 20, "bad_words_ids": [[1]]}
    assert ModelConfig.from_hf({**SHAPE, **settings}) == ModelConfig.from_hf(SHAPE)
    assert not hasattr(Qwen3Config(**settings), "temperature")


def test_true_is_not_one(tmp_path: Path, model: Path) -> None:
    with pytest.raises(ValueError, match=r"num_beams: expected 1 or nothing, found true; remove it"):
        read(GENERATION, {"num_beams": True}, tmp_path, model)
    assert read(GENERATION, {"typical_p": 1, "eta_cutoff": 0.0}, tmp_path, model) == {"top_k": 20}


class Tensor(np.ndarray):
    """As much of torch.Tensor as the functions of transformers need, which has no frequencies without torch."""

    def to(self, device: Any = None, dtype: Any = None) -> "Tensor":
        return self.astype(dtype)


class Torch:
    float = float32 = np.float32
    int64 = np.int64
    Tensor = Tensor
    where = staticmethod(np.where)
    clamp = staticmethod(np.clip)

    @staticmethod
    def arange(*limits: int, dtype: Any = np.int64) -> Tensor:
        return np.arange(*limits, dtype=dtype).view(Tensor)


SCALINGS = [
    {"type": "linear", "factor": 3.0},
    YARN,
    {**YARN, "rope_theta": 1e6},
    {**YARN, "truncate": False},
    {**YARN, "truncate": False, "beta_fast": 20, "beta_slow": 1.5},
    {**YARN, "beta_fast": 1.0, "beta_slow": 1.0, "truncate": False},
    {**YARN, "mscale": 0.7},
    {**YARN, "mscale_all_dim": 0.7},
    {**YARN, "mscale": 0.7, "mscale_all_dim": 0.4},
    {**YARN, "mscale": 0.7, "mscale_all_dim": 0},
    {**YARN, "attention_factor": 1.25},
    {**YARN, "attention_factor": None, "beta_fast": None},
    {**YARN, "factor": None},
    {**YARN, "factor": 1.0},
    {**YARN, "original_max_position_embeddings": None},
    {"rope_type": "yarn", "factor": 4.0},
    {**YARN, "original_max_position_embeddings": 8, "rope_theta": 100.0},
    {**YARN, "low_freq_factor": 9, "mrope_section": [1, 2], "short_factor": [1.0]},
    {**LLAMA3, "original_max_position_embeddings": 512},
    LLAMA3,
    {"factor": 8, "rope_type": "linear", "attention_factor": 2.0, "beta_fast": 3},
]


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
@pytest.mark.parametrize("place", ["rope_scaling", "rope_parameters"])
def test_frequencies_are_those_of_transformers(scaling: dict, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modeling_rope_utils, "torch", Torch, raising=False)
    values = {
        key: value for key, value in scaling.items() if value is not None or key != "original_max_position_embeddings"
    }
    ours = ModelConfig.from_hf({**SHAPE, place: dict(scaling)}).rope
    theirs = Qwen3Config(**SHAPE | {place: values})
    frequencies, gain = ROPE_INIT_FUNCTIONS[ours.kind](theirs)
    rope = Rope(ours, 64)
    np.testing.assert_allclose(np.array(rope.inverse), frequencies, rtol=2e-6, atol=1e-12)
    assert rope.gain == pytest.approx(gain)


def test_every_rope_type_of_transformers_is_known_or_refused() -> None:
    checked = set(re.findall(r"_validate_(\w+)_rope_parameters", inspect.getsource(RotaryEmbeddingConfigMixin)))
    kinds = set(ROPE_INIT_FUNCTIONS) | checked | {"mrope", "su", "ntk"}
    assert {"dynamic", "longrope", "proportional"} <= kinds
    for kind in sorted(kinds - set(ROPE_KINDS)):
        for name in ("type", "rope_type"):
            with pytest.raises(ValueError, match=rf'rope_scaling: {name}: expected one of .*, found "{kind}"'):
                ModelConfig.from_hf({**SHAPE, "rope_scaling": {name: kind, "factor": 2.0}})


BAD_ROPE = [
    ({"factor": 0.5}, r"rope_scaling: factor: expected a number from 1 to 1e\+06, found 0.5"),
    ({"factor": 1e299}, r"rope_scaling: factor: expected a number from 1 to 1e\+06, found 1e\+299"),
    ({"attention_factor": 0}, r"rope_scaling: attention_factor: expected a finite number above 0, found 0"),
    ({"attn_factor": 2.0}, r"rope_scaling: attn_factor: expected 1 or nothing, found 2.0; .* attention_factor"),
    ({"beta_fast": 1, "beta_slow": 2}, r"rope_scaling: beta_fast: expected at least beta_slow \(2\), found 1"),
    ({"truncate": "no"}, r'rope_scaling: truncate: expected one of true, false, found "no"'),
    ({"rope_theta": 1}, r"rope_scaling: rope_theta: expected a finite number above 1, found 1"),
    ({"type": "linear"}, r"rope_scaling: rope_type: expected what type says \('linear'\), found 'yarn'; remove"),
    ({"rope_type": None}, r"rope_scaling: factor: expected no factor with rope_type default, found 4.0; set rope_type"),
    (
        {"original_max_position_embeddings": 8192},
        r"original_max_position_embeddings: expected at most max_position_embeddings \(4096\), found 8192",
    ),
    ({"partial_rotary_factor": 0.5}, r"rope_scaling: partial_rotary_factor: expected 1 or nothing, found 0.5"),
    (
        {"full_attention": {"factor": 2}},
        r'rope_scaling: full_attention: expected settings for all layers, found {"factor": 2}; all',
    ),
    (
        {"chunked_attention": {}},
        r"rope_scaling: chunked_attention: expected settings for all layers, found {}; all layers turn",
    ),
    ({"mscale": -1}, r"rope_scaling: mscale: expected a finite number of at least 0, found -1"),
    ({"rope_type": "llama3"}, r"rope_scaling: low_freq_factor: expected a finite number above 0, found nothing"),
]


@pytest.mark.parametrize(("change", "message"), BAD_ROPE, ids=str)
def test_a_rotation_that_makes_no_sense_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_hf({**SHAPE, "rope_scaling": {**YARN, **change}})


BOTH = [
    (
        {"rope_theta": 1e6, "rope_parameters": {"rope_theta": 1e4}},
        r"rope_theta: expected one value, found 10000 beside 1e",
    ),
    (
        {"rope_scaling": YARN, "rope_parameters": {"rope_theta": 1e6}},
        r"rope_scaling: expected what rope_parameters says",
    ),
    (
        {"rope_scaling": YARN, "original_max_position_embeddings": 512},
        r"original_max_position_embeddings: expected one value, found 1024 beside 512",
    ),
]


@pytest.mark.parametrize(("values", "message"), BOTH, ids=str)
def test_two_places_that_contradict_each_other_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_hf({**SHAPE, **values})


def test_a_factor_that_falls_short_of_the_model_is_named(recwarn) -> None:
    """As transformers does, which computes with the factor all the same."""
    assert ModelConfig.from_hf({**SHAPE, "rope_scaling": {**YARN, "factor": 2.5}}).max_context == 4096
    (said,) = said_in(recwarn)
    assert "factor: 2.5 times the original 1024 positions are fewer than max_position_embeddings (4096)" in said


def test_two_places_that_agree_are_read() -> None:
    """An empty rope_parameters used to hide a filled rope_scaling."""
    yarn = ModelConfig.from_hf({**SHAPE, "rope_scaling": YARN}).rope
    for beside in ({}, YARN, {**YARN, "type": "yarn", "rope_theta": 10000}, None):
        values = {"rope_scaling": YARN, "rope_parameters": beside, "rope_theta": 10000.0}
        assert ModelConfig.from_hf({**SHAPE, **values}).rope == yarn


LAYERS = [
    {},
    {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    {"use_sliding_window": True, "max_window_layers": 3},
    {"use_sliding_window": True, "sliding_window": 8},
    {"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0},
    {"use_sliding_window": False, "sliding_window": 8, "max_window_layers": 0},
    {"use_sliding_window": True, "sliding_window": 8, "layer_types": ["sliding_attention", "attention"] * 2},
    {"layer_types": ["full_attention"] * 4},
    {"num_key_value_heads": None},
]


@pytest.mark.parametrize("values", LAYERS, ids=str)
@pytest.mark.parametrize("kind", [Qwen2Config, Qwen3Config])
def test_the_shape_is_that_of_transformers(values: dict[str, Any], kind: type) -> None:
    data = {**SHAPE, "model_type": kind.model_type, **values}
    ours, theirs = ModelConfig.from_hf(data), kind(**data)
    windows = [theirs.sliding_window if kind == "sliding_attention" else None for kind in theirs.layer_types]
    assert [ours.window_of(layer) for layer in range(4)] == windows
    same = (
        "num_key_value_heads head_dim vocab_size hidden_size rms_norm_eps tie_word_embeddings max_position_embeddings"
    )
    assert all(getattr(ours, name) == getattr(theirs, name) for name in same.split())
    assert ours.rope.theta == theirs.rope_parameters["rope_theta"]


@pytest.mark.parametrize("missing", ["head_dim", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings"])
def test_a_missing_key_has_the_value_of_transformers(missing: str) -> None:
    data = {key: value for key, value in SHAPE.items() if key != missing}
    assert getattr(ModelConfig.from_hf(data), missing) == getattr(Qwen3Config(**data), missing)


def test_a_qwen2_has_its_biases_whatever_attention_bias_says() -> None:
    """transformers reads the key for a qwen3 only; here false took the biases away."""
    for value in (True, False):
        assert ModelConfig.from_hf({**SHAPE, "model_type": "qwen2", "attention_bias": value}).qkv_bias


def test_generation_defaults_are_those_of_transformers(tmp_path: Path) -> None:
    file = {
        "do_sample": True,
        "temperature": 0.7,
        "top_k": 9,
        "top_p": 0.8,
        "min_p": 0.05,
        "repetition_penalty": 1.05,
        "length_penalty": 0.5,
        "max_new_tokens": 77,
        "stop_strings": ["END", "\n\n"],
    }
    write_json(tmp_path / GENERATION, file)
    ours, theirs = load_generation_defaults(tmp_path), GenerationConfig.from_pretrained(tmp_path)
    assert ours.pop("max_tokens") == theirs.max_new_tokens
    assert ours.pop("stop") == tuple(theirs.stop_strings)
    assert all(value == getattr(theirs, name) for name, value in ours.items()) and len(ours) == 6
    assert load_generation_defaults(tmp_path, 50)["max_tokens"] == 50


@pytest.mark.parametrize("value", ["", [""], [3], 3, {"a": 1}, []], ids=str)
def test_stop_strings_that_are_none_are_named(tmp_path: Path, value: Any) -> None:
    write_json(tmp_path / GENERATION, {"stop_strings": value})
    if value == []:
        assert load_generation_defaults(tmp_path) == {"stop": ()}
        return
    with pytest.raises(ValueError, match=r"generation_config.json: stop_strings: expected"):
        load_generation_defaults(tmp_path)


INERT = {
    "clean_up_tokenization_spaces": True,
    "add_bos_token": True,
    "add_eos_token": True,
    "padding_side": "left",
    "truncation_side": "left",
    "model_max_length": 2,
    "errors": "strict",
    "legacy": True,
    "spaces_between_special_tokens": True,
    "use_default_system_prompt": True,
    "add_prefix_space": False,
    "tokenizer_class": "PreTrainedTokenizerFast",
    "split_special_tokens": False,
}


@pytest.mark.parametrize("key", INERT)
def test_what_is_harmless_here_is_harmless_in_transformers(key: str, tmp_path: Path, model: Path) -> None:
    text, tokens, decoded, _, _ = read(TOKENIZER, {key: INERT[key]}, tmp_path, model)
    write_json(tmp_path / "config.json", json.loads((model / "config.json").read_text()))
    oracle, without = (AutoTokenizer.from_pretrained(str(path)) for path in (tmp_path, model))
    assert oracle.encode(text) == without.encode(text)
    chat = [{"role": "user", "content": "the fox , it 's"}]
    assert oracle.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == text
    assert oracle.encode(text, add_special_tokens=False) == tokens
    assert oracle.decode(tokens, skip_special_tokens=True) == decoded


DISAGREEING = [
    (
        {"added_tokens_decoder": {"7": {"content": "<|im_end|>", "special": True}}},
        "'7': expected number 313 and special tr",
    ),
    (
        {"added_tokens_decoder": {"313": {"content": "<|im_end|>"}}},
        "'313': expected number 313 and special true, as in tok",
    ),
    (
        {"added_tokens_decoder": {"320": {"content": "<new>"}}},
        "'320': expected a token of tokenizer.json, as in tokenizer",
    ),
    ({"added_tokens_decoder": {"x": [None]}}, "'x': expected a token of tokenizer.json"),
    ({"added_tokens_decoder": 3}, "expected an object, found 3"),
    ({"extra_special_tokens": ["<new>"]}, 'expected special tokens only, as in tokenizer.json, found "<new>"; correct'),
    ({"additional_special_tokens": ["<think>"]}, 'expected special tokens only, as in tokenizer.json, found "<think>"'),
    ({"additional_special_tokens": [{"content": "fox"}]}, "expected special tokens only, as in tokenizer.json"),
    (
        {"extra_special_tokens": {"image_token": "<x>"}},
        "expected a list of tokens, found .*; write a token with a name",
    ),
    ({"add_prefix_space": True}, "expected false, as in tokenizer.json, found true; correct the file that is wrong"),
]


@pytest.mark.parametrize(("values", "message"), DISAGREEING, ids=str)
def test_files_that_disagree_on_a_token_are_refused(
    values: dict[str, Any], message: str, tmp_path: Path, model: Path
) -> None:
    with pytest.raises(ValueError, match=f"{TOKENIZER}: {next(iter(values))}: {message}"):
        read(TOKENIZER, values, tmp_path, model)


def test_only_a_qwen2_tokenizer_goes_by_the_other_file(tmp_path: Path, model: Path) -> None:
    """transformers takes other classes as tokenizer.json has them, so a difference is harmless there."""
    before = read(TOKENIZER, {}, tmp_path, model)
    for values in ({"add_prefix_space": True}, {"additional_special_tokens": ["<think>"]}):
        assert read(TOKENIZER, {"tokenizer_class": "PreTrainedTokenizerFast", **values}, tmp_path, model) == before
        for kind in ("Qwen2Tokenizer", "Qwen2TokenizerFast", None):
            with pytest.raises(ValueError, match="as in tokenizer.json, found"):
                read(TOKENIZER, {"tokenizer_class": kind, **values}, tmp_path, model)


def test_files_that_agree_are_read(tmp_path: Path, model: Path) -> None:
    values = {
        "added_tokens_decoder": {"313": {"content": "<|im_end|>", "special": True, "lstrip": False}},
        "additional_special_tokens": ["<|im_start|>", {"content": "<|im_end|>"}],
        "extra_special_tokens": {},
        "add_prefix_space": False,
    }
    assert read(TOKENIZER, values, tmp_path, model) == read(TOKENIZER, {}, tmp_path, model)


@pytest.mark.parametrize("method", ["fp8", "gptq", "awq", "bitsandbytes", "compressed-tensors", "mxfp4", "torchao"])
def test_other_quantizations_are_refused(method: str) -> None:
    with pytest.raises(
        ValueError, match=rf"quantization_config: expected MLX's .* found quant_method '{method}'; take"
    ):
        ModelConfig.from_hf({**SHAPE, "quantization_config": {"quant_method": method, "bits": 4}})


def test_mlxs_quantization_is_read_under_both_names() -> None:
    """mlx-lm writes both; a file with the second alone was taken for a dense model."""
    table, other = {"bits": 4, "group_size": 64, "lm_head": False}, {"quant_method": "fp8"}
    found = ModelConfig.from_hf({**SHAPE, "quantization": table}).quantization
    assert found is not None
    assert ModelConfig.from_hf({**SHAPE, "quantization_config": table}).quantization == found
    for beside in (table, other, {}):
        values = {"quantization": table, "quantization_config": beside}
        assert ModelConfig.from_hf({**SHAPE, **values}).quantization == found
    with pytest.raises(ValueError, match=r"quantization_config: expected what quantization says, found .*; remove"):
        ModelConfig.from_hf({**SHAPE, "quantization": table, "quantization_config": {"bits": 8, "group_size": 64}})
    with pytest.raises(ValueError, match=r"quantization: rotate: expected bits, group_size, mode or a layer's own"):
        ModelConfig.from_hf({**SHAPE, "quantization": {**table, "rotate": 3}})


@pytest.mark.parametrize("names", [["Qwen3Model"], ["Qwen2ForTokenClassification"], "Qwen3ForReward", [3]], ids=str)
def test_a_model_without_a_head_for_text_is_refused(names: Any) -> None:
    with pytest.raises(ValueError, match=r"architectures: expected a model …ForCausalLM, found \["):
        ModelConfig.from_hf({**SHAPE, "architectures": names})
    for good in (["Qwen3ForCausalLM"], "Qwen3ForCausalLM", [], None):
        assert ModelConfig.from_hf({**SHAPE, "architectures": good}) == ModelConfig.from_hf(SHAPE)


def test_keys_of_directories_on_the_hub_are_read_without_a_word(tmp_path: Path, model: Path, recwarn) -> None:
    """Qwen3's, a DeepSeek distillation's and an Unsloth copy's, as they are published."""
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "initializer_range": 0.02,
        "max_window_layers": 28,
        "pad_token_id": 151654,
        "rope_scaling": None,
        "sliding_window": None,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0",
        "unsloth_fixed": True,
        "use_cache": True,
        "use_mrope": False,
        "use_sliding_window": False,
    }
    assert ModelConfig.from_hf({**SHAPE, **config}) == ModelConfig.from_hf(SHAPE)
    generation = {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "do_sample": True, "max_length": 9}
    assert read(GENERATION, generation, tmp_path, model) == {"top_k": 20}
    tokenizer = {
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "errors": "replace",
        "legacy": True,
        "model_max_length": 16384,
        "sp_model_kwargs": {},
        "split_special_tokens": False,
        "tokenizer_class": "LlamaTokenizerFast",
        "unk_token": None,
        "use_default_system_prompt": False,
    }
    assert read(TOKENIZER, tokenizer, tmp_path, model) == read(TOKENIZER, {}, tmp_path, model)
    assert said_in(recwarn) == []


def test_a_rule_is_applied_to_the_table_it_is_for() -> None:
    check_keys(JsonFields({"is_causal": True, "typical_p": 0.5}, "x"), CONFIG)
    with pytest.raises(ValueError, match=r"^x: typical_p: expected 1 or nothing, found 0.5; this engine"):
        check_keys(JsonFields({"typical_p": 0.5}, "x"), GENERATION)

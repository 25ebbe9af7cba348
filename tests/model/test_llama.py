"""The Llama family: defaults of its config.json, batches against mlx-lm, Llama 3's tokenizer and template."""

import json
from pathlib import Path
from typing import Any

import pytest
from mlx_lm import batch_generate
from mlx_lm import load as load_peer
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, LlamaConfig

from tests.model.test_tokenizer import CALL, WEATHER
from tests.support import CORPUS, FIXTURES, make_model, write_json
from tiny_llm import load
from tiny_llm.config import ModelConfig
from tiny_llm.config.model import ARCHITECTURES
from tiny_llm.engine.loading import load_tokenizer
from tiny_llm.model import tokenizer as own
from tiny_llm.model.directory import load_config
from tiny_llm.model.source import open_source

SMOLLM2 = {  # SmolLM2-135M-Instruct's config.json
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 576,
    "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pad_token_id": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.42.3",
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
    "use_cache": True,
    "vocab_size": 49152,
}
SHAPE = {  # what a config.json must say
    "model_type": "llama",
    "vocab_size": 320,
    "hidden_size": 128,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}
SPECIAL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
)
ENDS = (SPECIAL[1], SPECIAL[4], SPECIAL[5])
LLAMA3 = (  # Llama 3's own splitting rule
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHATS: dict[str, list[dict[str, Any]]] = {
    "one question": [{"role": "user", "content": " the fox\n"}],
    "system": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello there"}],
    "a call and its result": [
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "content": "sun"},
        {"role": "assistant", "content": "No <b>rain</b>."},
        {"role": "user", "content": "Thanks"},
    ],
}


def test_smollm2_is_read_without_a_word(recwarn: pytest.WarningsRecorder) -> None:
    config = ModelConfig.from_hf(SMOLLM2)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (9, 3, 64)
    assert (config.rope.theta, config.rms_norm_eps, config.max_context) == (100_000, 1e-5, 8192)
    assert not (config.qkv_bias or config.qk_norm or config.mlp_bias or config.o_bias)
    assert list(recwarn) == []


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"num_attention_heads": 32},
        {"num_key_value_heads": 2},
        {"num_key_value_heads": None},
        {"head_dim": None},
        {"head_dim": 64},
        {"attention_bias": True},
        {"mlp_bias": True},
        {"sliding_window": 8},
    ],
    ids=str,
)
def test_the_shape_and_its_defaults_are_those_of_transformers(values: dict[str, Any]) -> None:
    ours, theirs = ModelConfig.from_hf({**SHAPE, **values}), LlamaConfig(**SHAPE | values)
    same = "num_key_value_heads head_dim rms_norm_eps tie_word_embeddings max_position_embeddings mlp_bias"
    assert {name: getattr(ours, name) for name in same.split()} == {n: getattr(theirs, n) for n in same.split()}
    assert (ours.rope.theta, ours.qkv_bias) == (theirs.rope_parameters["rope_theta"], theirs.attention_bias)
    assert ours.o_bias == ours.qkv_bias
    assert ours.window_of(3) is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rope_interleaved": True}, "rope_interleaved: expected false or nothing, found true; halves of a head"),
        ({"rope_traditional": True}, "rope_traditional: expected false or nothing, found true; halves of a head"),
        ({"mlp_bias": 1}, "mlp_bias: expected true or false, found 1"),
        ({"num_attention_heads": 3}, r"num_attention_heads: expected a divisor of hidden_size \(128\)"),
        (
            {"layer_types": ["sliding_attention"] * 4, "use_sliding_window": True, "sliding_window": 8},
            "sliding_window: expected no layers with a window in a llama, found 4; remove",
        ),
    ],
    ids=str,
)
def test_what_a_llama_has_not_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^config.json: {message}"):
        ModelConfig.from_hf({**SHAPE, **values})


@pytest.mark.parametrize("kind", ["mistral", "mixtral", "gemma2", "phi3", "LLAMA"])
def test_other_families_are_refused_with_the_known_ones(kind: str) -> None:
    with pytest.raises(ValueError, match=f'model_type: expected one of {", ".join(ARCHITECTURES)}, found "{kind}"'):
        ModelConfig.from_hf({**SHAPE, "model_type": kind})


@pytest.mark.parametrize("values", [{}, {"attention_bias": True, "mlp_bias": True}], ids=["plain", "biases"])
def test_greedy_tokens_of_a_batch_are_those_of_mlx_lm(tmp_path: Path, values: dict[str, Any]) -> None:
    path = make_model(tmp_path, "llama", num_attention_heads=6, num_key_value_heads=2, hidden_size=96, **values)
    peer, tokenizer = load_peer(str(path))
    tokenizer._eos_token_ids = set()
    prompts = [[(7 * i + j) % 300 for j in range(3 + 5 * i)] for i in range(8)]
    theirs = batch_generate(peer, tokenizer, prompts, max_tokens=16, return_token_ids=True).token_ids
    ours = load(path).generate(prompts, temperature=0, max_tokens=16, ignore_eos=True)
    assert [one.tokens for one in ours] == [list(tokens) for tokens in theirs]


@pytest.fixture(scope="module")
def llama3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with a tokenizer and a template of Llama 3's kind."""
    path = make_model(tmp_path_factory.mktemp("llama3"), "llama", tie_word_embeddings=True)
    stored = Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(Regex(LLAMA3), "isolated")
    stored.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    stored.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=310, initial_alphabet=alphabet, show_progress=False)
    stored.train_from_iterator(CORPUS, trainer)
    stored.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    begin = processors.TemplateProcessing(
        single=f"{SPECIAL[0]} $A", special_tokens=[(SPECIAL[0], stored.token_to_id(SPECIAL[0]))]
    )
    stored.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), begin])
    stored.save(str(path / "tokenizer.json"))
    config = {
        "bos_token": SPECIAL[0],
        "eos_token": SPECIAL[5],
        "chat_template": (FIXTURES / "llama3.jinja").read_text(encoding="utf-8"),
        "clean_up_tokenization_spaces": True,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 131072,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    write_json(path / "tokenizer_config.json", config)
    ends = [stored.token_to_id(token) for token in ENDS]
    sampling = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
    write_json(path / "generation_config.json", {"bos_token_id": 310, "eos_token_id": ends, **sampling})
    return path


def test_all_three_end_tokens_of_llama_3_end_an_answer(llama3: Path) -> None:
    tokenizer = load_tokenizer(open_source(llama3), load_config(llama3))
    assert {tokenizer.token(token) for token in tokenizer.eos_token_ids} == set(ENDS)
    (llama3 / "generation_config.json").rename(llama3 / "away")
    try:
        config = json.loads((llama3 / "config.json").read_text())
        assert own.Tokenizer.from_dir(llama3).eos_token_ids == {config["eos_token_id"]}
    finally:
        (llama3 / "away").rename(llama3 / "generation_config.json")


@pytest.mark.parametrize("chat", CHATS.values(), ids=CHATS)
@pytest.mark.parametrize("tools", [None, [WEATHER, WEATHER]], ids=["plain", "tools"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"date_string": "1 Jan 2026"}, {"tools_in_user_message": False}, {"add_generation_prompt": False}],
    ids=str,
)
def test_prompts_and_their_ids_are_those_of_transformers(
    llama3: Path, chat: list[Any], tools: Any, settings: dict[str, Any]
) -> None:
    ours, theirs = own.Tokenizer.from_dir(llama3), AutoTokenizer.from_pretrained(str(llama3))
    text = ours.render(chat, tools, **settings)
    settings = {"add_generation_prompt": True, **settings}
    assert text == theirs.apply_chat_template(chat, tools, tokenize=False, **settings)
    expected = theirs.apply_chat_template(chat, tools, return_dict=False, **settings)
    assert ours.encode(text) == ours.encode(text, add_special_tokens=True) == expected
    assert ours.encode(text).count(ours.backend.token_to_id(SPECIAL[0])) == 1


def test_the_begin_of_text_comes_once(llama3: Path) -> None:
    """The template writes it into a prompt of messages; before a raw text the tokenizer's post-processor puts it."""
    llm = load(llama3)
    begin = llm.tokenizer.backend.token_to_id(SPECIAL[0])
    for prompt in ("the fox", f"{SPECIAL[0]}the fox", CHATS["one question"]):
        tokens = llm.encode(prompt)
        assert (tokens[0], tokens.count(begin)) == (begin, 1)
    theirs = AutoTokenizer.from_pretrained(str(llama3))
    assert llm.encode("the fox 12345 it'S") == theirs("the fox 12345 it'S").input_ids


def test_a_template_that_refuses_is_named(llama3: Path) -> None:
    calls = [{"role": "user", "content": "Rain?"}, {"role": "assistant", "tool_calls": [CALL, CALL]}]
    with pytest.raises(ValueError, match=r"refuses the messages: This model makes one call at a time"):
        own.Tokenizer.from_dir(llama3).render(calls)

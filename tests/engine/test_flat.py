"""A token's text costs the same however long the answer is already, and whatever its tokens are."""

import time
from pathlib import Path

import numpy as np
import pytest

from tests.support import make_model
from tiny_llm import LLM, load
from tiny_llm.decode.text import Token, Writer

COUNT, QUARTER = 32_000, 8_000
STOPS = ("never said", "a" * 999 + "b", "\n\n\n\n", "</answer>")


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    path: Path = tmp_path_factory.mktemp("model")
    return load(make_model(path))


def texts(llm: LLM) -> dict[str, list[int]]:
    """A piece of each kind of text, as tokens."""
    specials = [llm.encode(text)[0] for text in ("<|im_start|>", "<|endoftext|>", "<think>", "</tool_call>")]
    stray = [token for token in range(256) if llm.tokenizer.token(token) == "\ufffd"]
    return {
        "words": llm.encode("the quick brown fox jumps over the lazy dog "),
        "special tokens": specials,
        "CJK": llm.encode("语言模型一次生成一个词。日本語のテキスト。한국어 문장."),
        "emoji": llm.encode("🙂🚀👩‍👩‍👧‍👦🏳️‍🌈"),
        "stray bytes": stray[:40],
        "ids beyond the vocabulary": [10**6, 10**6 + 1],
        "the beginning of a stop string": llm.encode("a" * 40),
        "white space": llm.encode("\n \n\t"),
    }


@pytest.mark.parametrize("in_thought", [False, True])
@pytest.mark.parametrize("kind", ["all", *range(8)])
def test_the_last_quarter_costs_what_the_first_did(llm: LLM, kind: str | int, in_thought: bool) -> None:
    """Skipped special tokens and stray bytes held the window open: the time of a token grew with the answer."""
    pieces = texts(llm)
    row = [token for piece in pieces.values() for token in piece] if kind == "all" else [*pieces.values()][int(kind)]
    tokens = (row * (COUNT // len(row) + 1))[:COUNT]
    writer = Writer(llm.tokenizer, STOPS, (), COUNT + 1, in_thought=in_thought)
    times = np.zeros(COUNT // 500)
    for part in range(len(times)):
        begin = time.thread_time()
        for token in tokens[part * 500 : (part + 1) * 500]:
            writer.add(Token(token))
        times[part] = time.thread_time() - begin
    quarter = len(times) // 4
    first, last = np.median(times[:quarter]), np.median(times[-quarter:])
    assert last < 2 * first + 0.002, (first, last)

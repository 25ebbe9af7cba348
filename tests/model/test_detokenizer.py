"""Streamed text is the text of decoding all at once, for every kind of decoder, and each token costs the same."""

import time
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models

from tests.support import make_tokenizer
from tiny_llm.model.tokenizer import Tokenizer

BYTE_LEVEL = decoders.ByteLevel()
WORDS = ["▁the", "▁", "a", "b", "你", " x", "▁▁", "", "é", ".", "##ing", "c</w>", "\ufffd", "<0xZZ>", "<0x0>"]
LLAMA = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
DECODERS: dict[str, Any] = {
    "byte level": BYTE_LEVEL,
    "llama": decoders.Sequence([*LLAMA, decoders.Strip(" ", 1, 0)]),
    "gemma": decoders.Sequence(LLAMA),
    "metaspace": decoders.Metaspace(),
    "metaspace and bytes": decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()]),
    "word piece": decoders.WordPiece(),
    "end of word": decoders.BPEDecoder(),
    "none": None,
}


def make(decoder: Any) -> Tokenizer:
    """A tokenizer with this decoder. All but the byte-level one have byte tokens, pieces with spaces, and the like."""
    if decoder is BYTE_LEVEL:
        return Tokenizer(make_tokenizer(), frozenset())
    vocab = {"<unk>": 0} | {f"<0x{byte:02X}>": 1 + byte for byte in range(256)}
    vocab |= {word: 257 + place for place, word in enumerate(WORDS)}
    backend = tokenizers.Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    if decoder is not None:
        backend.decoder = decoder
    backend.add_special_tokens([AddedToken("<s>"), AddedToken("</s>")])
    backend.add_tokens([AddedToken("<think>"), AddedToken(" spaced ")])
    return Tokenizer(backend, frozenset())


@pytest.fixture(scope="module", params=DECODERS.values(), ids=DECODERS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return make(request.param)


@given(data=st.data(), keep_special=st.booleans())
@settings(derandomize=True, max_examples=300, deadline=None)
def test_the_pieces_of_any_tokens_are_the_whole_text(tokenizer: Tokenizer, data: Any, keep_special: bool) -> None:
    size = tokenizer.vocab_size
    any_id = st.integers(0, size + 3)
    rare = st.sampled_from([1 + 0xE4, 1 + 0xBD, 1 + 0xA0, 1 + 0xF0, 1 + ord("a")]) | st.integers(256, size + 3)
    tokens = data.draw(st.lists(any_id | rare, max_size=20))
    stream = tokenizer.detokenizer(keep_special=keep_special)
    pieces = [stream.add(token) for token in tokens] + [stream.finish()]
    assert "".join(pieces) == tokenizer.decode(tokens, keep_special=keep_special)


def long_stretches(tokenizer: Tokenizer) -> dict[str, list[int]]:
    """Runs of 32,000 tokens that once kept the window of undecided text open."""
    stray = next(token for token in range(256) if tokenizer.token(token) == "\ufffd")
    special = next(iter(tokenizer.backend.get_added_tokens_decoder()))
    texts = {"CJK": "你好世界", "emoji": "🙂🚀", "joined emoji": "👩‍👩‍👧‍👦"}
    runs = {name: tokenizer.encode(text) for name, text in texts.items()}
    runs |= {"special": [special], "stray bytes": [stray], "beyond": [10**6], "words": tokenizer.encode("ab")}
    runs["mixed"] = [token for run in runs.values() for token in run]
    return {name: (run * 32_000)[:32_000] for name, run in runs.items()}


@pytest.mark.parametrize("keep_special", [False, True])
@pytest.mark.parametrize("decoder", ["byte level", "llama"])
def test_a_token_costs_the_same_at_the_end_of_a_long_answer(decoder: str, keep_special: bool) -> None:
    """Skipped special tokens and stray bytes kept all tokens waiting: 4,000 of them took 16 times as long as 1,000."""
    tokenizer = make(DECODERS[decoder])
    for name, tokens in long_stretches(tokenizer).items():
        stream = tokenizer.detokenizer(keep_special=keep_special)
        quarters = []
        for begin in range(0, 32_000, 8_000):
            best = float("inf")
            for part in range(begin, begin + 8_000, 1_000):  # the fastest of eight: other work disturbs some
                start = time.thread_time()
                for token in tokens[part : part + 1_000]:
                    stream.add(token)
                best = min(best, time.thread_time() - start)
            quarters.append(best)
        assert quarters[-1] < 3 * quarters[0] + 0.002, (name, quarters)


@pytest.mark.parametrize("keep_special", [False, True])
def test_stray_bytes_and_special_tokens_do_not_hold_text_back(keep_special: bool) -> None:
    tokenizer = make(BYTE_LEVEL)
    stray = next(token for token in range(256) if tokenizer.token(token) == "\ufffd")
    stream = tokenizer.detokenizer(keep_special=keep_special)
    pieces = [stream.add(token) for token in [stray] * 50]
    assert "".join(pieces).count("\ufffd") >= 47  # at most three bytes may begin a character
    assert stream.add(312) == ("<|im_start|>" if keep_special else "")
    assert stream.add(tokenizer.encode("a")[0]) == "a"


def test_only_what_is_not_text_yet_is_kept() -> None:
    for decoder in (BYTE_LEVEL, DECODERS["llama"]):
        stream = make(decoder).detokenizer()
        for token in [65, 66, 257, 258, 259] * 1000:
            stream.add(token)
        kept = [value for value in vars(stream).values() if isinstance(value, list)]
        assert all(len(value) <= 3 for value in kept)

"""The streaming loop against the naive loop, mlx-lm and the whole decoded text."""

from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm.generate import generate_step

from tests.model.parity import ours, peer, prompt
from tests.support import make_model
from tiny_llm.cache.contiguous import ContiguousCache
from tiny_llm.cache.recompute import RecomputeCache
from tiny_llm.config import SamplingParams
from tiny_llm.decode.distribution import log_softmax_total
from tiny_llm.decode.generate import generate_naive, stream
from tiny_llm.decode.text import Delta, check_prompt
from tiny_llm.model.qwen3 import Qwen3
from tiny_llm.model.tokenizer import Tokenizer

GREEDY = {"temperature": 0.0, "ignore_eos": True}
PROMPT = prompt(11)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(path: Path) -> Qwen3:
    return ours(path)


@pytest.fixture(scope="module")
def tokenizer(path: Path) -> Tokenizer:
    return Tokenizer.from_dir(path)


def run(model: Qwen3, tokenizer: Tokenizer, tokens: list[int] = PROMPT, cache=None, options=None, **settings):
    cache = cache or ContiguousCache(model.config, model.ops, step=8)
    return list(stream(model, tokenizer, tokens, SamplingParams(**settings), cache, **(options or {})))


def ids(deltas: list[Delta], index: int = 0) -> list[int]:
    return [delta.token for delta in deltas if delta.index == index]


def test_greedy_is_the_naive_loop_and_mlx_lm(path: Path, model: Qwen3, tokenizer: Tokenizer) -> None:
    want = generate_naive(model, PROMPT, 24)
    assert ids(run(model, tokenizer, max_tokens=24, **GREEDY)) == want
    steps = generate_step(mx.array(PROMPT), peer(path), max_tokens=24)
    assert [int(token) for token, _ in steps] == want


@pytest.mark.parametrize("chunk", [1, 4, 5, 10, 11, 2048])
def test_prefill_in_chunks(model: Qwen3, tokenizer: Tokenizer, chunk: int) -> None:
    got = run(model, tokenizer, max_tokens=12, options={"prefill_chunk": chunk}, **GREEDY)
    assert ids(got) == generate_naive(model, PROMPT, 12)


def test_goes_on_from_what_a_cache_holds(model: Qwen3, tokenizer: Tokenizer) -> None:
    cache = ContiguousCache(model.config, model.ops)
    model(mx.array(PROMPT[:7]), cache)
    assert ids(run(model, tokenizer, cache=cache, max_tokens=12, **GREEDY)) == generate_naive(model, PROMPT, 12)


def test_streamed_text_is_the_whole_text(model: Qwen3, tokenizer: Tokenizer) -> None:
    """A random model writes random bytes: most tokens end in the middle of a character."""
    for seed in range(5):
        got = run(model, tokenizer, max_tokens=60, temperature=2.0, seed=seed, ignore_eos=True)
        assert "".join(delta.text for delta in got) == tokenizer.decode(ids(got))


def test_ends_at_max_tokens_without_a_wasted_step(model: Qwen3, tokenizer: Tokenizer) -> None:
    cache = ContiguousCache(model.config, model.ops)
    got = run(model, tokenizer, cache=cache, max_tokens=5, **GREEDY)
    assert [delta.finish_reason for delta in got] == [None] * 4 + ["length"]
    assert cache.offset == len(PROMPT) + 4  # the last token was never fed back


def test_ends_where_the_context_ends(model: Qwen3, tokenizer: Tokenizer) -> None:
    got = run(model, tokenizer, max_tokens=50, options={"max_context": 15}, **GREEDY)
    assert len(got) == 4 and got[-1].finish_reason == "length"


def test_ends_at_a_stop_token_and_leaves_it_out_of_the_text(model: Qwen3, tokenizer: Tokenizer) -> None:
    want = generate_naive(model, PROMPT, 12)
    stop = want[6]
    end = want.index(stop)
    got = run(model, tokenizer, max_tokens=12, stop_token_ids=(stop,), **GREEDY)
    assert ids(got) == want[: end + 1]
    assert got[-1].finish_reason == "stop"
    assert "".join(delta.text for delta in got) == tokenizer.decode(want[:end])


def test_ends_at_the_models_eos_unless_ignored(model: Qwen3, tokenizer: Tokenizer) -> None:
    """A bias makes eos certain."""
    eos = min(tokenizer.eos_token_ids)
    got = run(model, tokenizer, max_tokens=4, temperature=0.0, logit_bias={eos: 100.0})
    assert [(delta.text, delta.token, delta.finish_reason) for delta in got] == [("", eos, "stop")]
    got = run(model, tokenizer, max_tokens=4, temperature=0.0, logit_bias={eos: 100.0}, ignore_eos=True)
    assert ids(got) == [eos] * 4 and got[-1].finish_reason == "length"


def test_ends_before_a_stop_string(model: Qwen3, tokenizer: Tokenizer) -> None:
    whole = "".join(delta.text for delta in run(model, tokenizer, max_tokens=40, **GREEDY))
    stop = whole[9:13]
    got = run(model, tokenizer, max_tokens=40, stop=(stop,), **GREEDY)
    assert got[-1].finish_reason == "stop"
    assert "".join(delta.text for delta in got) == whole[: whole.index(stop)]


def test_samples_are_independent_and_reproducible(model: Qwen3, tokenizer: Tokenizer) -> None:
    """Sample i of n is the same whatever n is."""
    settings = {"max_tokens": 10, "seed": 4, "ignore_eos": True}
    three, two = run(model, tokenizer, n=3, **settings), run(model, tokenizer, n=2, **settings)
    texts = [ids(three, i) for i in range(3)]
    assert texts[0] != texts[1] != texts[2] != texts[0]
    assert [ids(two, i) for i in range(2)] == texts[:2]
    assert [ids(run(model, tokenizer, **settings))] == texts[:1]
    assert ids(run(model, tokenizer, **{**settings, "seed": 5})) != texts[0]


def test_penalties_see_the_tokens_under_way(model: Qwen3, tokenizer: Tokenizer) -> None:
    """With the largest penalty the greedy text repeats nothing, though each step starts before its token is read."""
    got = ids(run(model, tokenizer, max_tokens=60, repetition_penalty=1e6, **GREEDY))
    assert len(set(got)) == 60 and not set(got) & set(PROMPT)


def test_logprobs_are_those_of_the_text(model: Qwen3, tokenizer: Tokenizer) -> None:
    got = run(model, tokenizer, max_tokens=6, seed=1, logprobs=3, ignore_eos=True)
    tokens = ids(got)
    logits = model(mx.array(PROMPT + tokens), RecomputeCache(model.config, model.ops))[len(PROMPT) - 1 : -1]
    logprobs = logits - log_softmax_total(logits)
    for delta, row in zip(got, logprobs, strict=True):
        assert delta.logprobs.logprob == pytest.approx(row[delta.token].item(), abs=1e-4)
        order = mx.argsort(-row)[:3].tolist()
        assert [token for token, _ in delta.logprobs.top] == order
        assert [value for _, value in delta.logprobs.top] == pytest.approx(row[mx.array(order)].tolist(), abs=1e-4)


def test_refuses_prompts_that_no_step_could_run(model: Qwen3, tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        run(model, tokenizer, [])
    with pytest.raises(ValueError, match="512 tokens leave no room .* context of 512"):
        run(model, tokenizer, [1] * 512)
    for token in (-1, 320):
        with pytest.raises(ValueError, match=f"token id {token} .* vocabulary of 320"):
            check_prompt([5, token], 512, 320)

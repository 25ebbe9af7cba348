"""Texts to vectors: what a float64 forward gives, alone as in a list, beside requests as without."""

import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from tests.support import make_model
from tests.week1 import oracles
from tiny_llm import LLM, SamplingParams, load
from tiny_llm.config import EngineConfig, SchedulerConfig
from tiny_llm.config.serving import ServingConfig
from tiny_llm.engine.embed import batches_of, embed, spans_of
from tiny_llm.engine.serving import Engine
from tiny_llm.model.qwen3 import Qwen3

TEXTS = ["the quick brown fox", "a", "hello there, what is the answer?", "one and one are two " * 12]
SERVING = ServingConfig(kv_bytes=2**21, block_size=8, scheduler=SchedulerConfig(token_budget=32, max_sequences=8))
LONG = SamplingParams(temperature=0.0, max_tokens=300, ignore_eos=True)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def llm(path: Path) -> LLM:
    return load(path)


@pytest.fixture
def engine(path: Path) -> Iterator[Engine]:
    with Engine(path, serving=SERVING) as engine:
        yield engine


@pytest.fixture(scope="module")
def as_stored(path: Path) -> Qwen3:
    """The model with its matrices as its file has them."""
    return load(path, config=EngineConfig(kernels="mlx")).model


def final_states(model: Qwen3, tokens: list[int]) -> oracles.Array:
    """Hidden states after the final norm, (T, hidden), in float64 and without the engine's operations."""
    c, w = model.config, model.weights
    table = {name: oracles.f64(w[name]["weight"]) for name in ("embed_tokens", "norm")}
    x, length, dim, eps = table["embed_tokens"][tokens], len(tokens), c.head_dim, c.rms_norm_eps
    angles = oracles.angles(np.arange(length), dim, 10000.0)
    mask = np.tri(length, dtype=bool)
    heads, kv_heads = c.num_attention_heads, c.num_key_value_heads
    for layer in w["layers"]:
        m = {name: oracles.f64(weight["weight"]) for name, weight in layer.items()}
        qkv = (oracles.rms_norm(x, m["input_layernorm"], eps) @ m["qkv_proj"].T).reshape(length, -1, dim)
        q, k, v = np.split(qkv, [heads, heads + kv_heads], axis=1)
        q = oracles.turn(oracles.rms_norm(q, m["q_norm"], eps), angles)
        k = oracles.turn(oracles.rms_norm(k, m["k_norm"], eps), angles)
        k, v = np.repeat(k, heads // kv_heads, axis=1), np.repeat(v, heads // kv_heads, axis=1)
        attended = oracles.attend(*(part.swapaxes(0, 1) for part in (q, k, v)), dim**-0.5, mask)
        x = x + attended.swapaxes(0, 1).reshape(length, -1) @ m["o_proj"].T
        gate, up = np.split(oracles.rms_norm(x, m["post_attention_layernorm"], eps) @ m["gate_up_proj"].T, 2, axis=-1)
        x = x + (oracles.silu(gate) * up) @ m["down_proj"].T
    return oracles.rms_norm(x, table["norm"], eps)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_vectors_are_what_float64_gives(llm: LLM, as_stored: Qwen3, pooling: Any) -> None:
    vectors = llm.embed(TEXTS, pooling)
    assert vectors.dtype == np.float32 and vectors.shape == (4, 64)
    for text, vector in zip(TEXTS, vectors, strict=True):
        states = final_states(as_stored, llm.encode(text))
        want = states[-1] if pooling == "last" else states.mean(axis=0)
        np.testing.assert_allclose(vector, want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_vector_does_not_depend_on_the_other_texts(llm: LLM, pooling: Any) -> None:
    together = llm.embed(TEXTS, pooling)
    alone = np.concatenate([llm.embed([text], pooling) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5, rtol=0)
    turned = llm.embed(TEXTS[::-1], pooling)[::-1]
    np.testing.assert_allclose(turned, alone, atol=1e-5, rtol=0)
    small = embed(llm.model, llm.tokenizer, TEXTS, pooling, token_budget=1)
    np.testing.assert_allclose(small, alone, atol=1e-5, rtol=0)


def test_a_window_holds_within_each_text(tmp_path: Path) -> None:
    sliding = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}
    llm = load(make_model(tmp_path / "model", "qwen2", **sliding))
    together = llm.embed(TEXTS)
    for text, vector in zip(TEXTS, together, strict=True):
        np.testing.assert_allclose(llm.embed([text])[0], vector, atol=1e-5, rtol=0)


def test_only_normalized_vectors_have_length_one(llm: LLM) -> None:
    plain, unit = llm.embed(TEXTS), llm.embed(TEXTS, normalize=True)
    lengths = np.linalg.norm(plain, axis=1)
    assert (abs(lengths - 1) > 0.1).all()
    np.testing.assert_allclose(unit, plain / lengths[:, None], atol=1e-6)


def test_no_texts_give_no_vectors(llm: LLM, engine: Engine) -> None:
    assert llm.embed([]).shape == engine.embed([]).shape == (0, 64)


BAD: list[tuple[Any, str]] = [
    ("one text", "texts: expected a list of texts, found 'one text'"),
    (b"bytes", "texts: expected a list"),
    (None, "texts: expected a list of texts, found None"),
    (5, "texts: expected a list"),
    ({"a": 1}, "texts: expected a list"),
    (["a", 5], r"texts\[1\]: expected a text, found 5"),
    ([None], r"texts\[0\]: expected a text, found None"),
    (["a", "b", ""], r"texts\[2\]: expected at least one character, found none"),
    (["a", "b " * 600], r"texts\[1\]: expected at most 512 tokens \(the context\), found"),
    (["a", "x" * 10**6], r"texts\[1\]: expected at most 512 tokens"),
    (["\ud800"], r"texts\[0\]: "),
]


@pytest.mark.parametrize(("texts", "words"), BAD, ids=range(len(BAD)))
def test_what_is_no_text_is_named(llm: LLM, engine: Engine, texts: Any, words: str) -> None:
    for one in (llm, engine):
        with pytest.raises(ValueError, match=words):
            one.embed(texts)


@pytest.mark.parametrize("options", [{"pooling": "max"}, {"pooling": None}, {"pooling": ["last"]}, {"normalize": 1}])
def test_unknown_ways_to_pool_are_refused(llm: LLM, engine: Engine, options: Any) -> None:
    for one in (llm, engine):
        with pytest.raises(ValueError, match=f"{next(iter(options))}: expected"):
            one.embed(["a"], **options)


def test_a_text_may_fill_the_context(path: Path) -> None:
    short = load(path, config=EngineConfig(max_context=16))
    assert short.embed(["a" * 16]).shape == (1, 64)
    with pytest.raises(ValueError, match="at most 16 tokens"):
        short.embed(["a" * 17])


def test_states_that_are_no_numbers_are_an_error(path: Path) -> None:
    broken = load(path)
    broken.model.weights["norm"]["weight"] = broken.model.weights["norm"]["weight"] * mx.nan
    with pytest.raises(ArithmeticError, match="hidden states are not finite"):
        broken.embed(["a"])


def test_an_embedding_leaves_the_kept_cache_alone(llm: LLM) -> None:
    stream = llm.stream("the quick", replace(LONG, max_tokens=9))
    got = [next(stream)]
    llm.embed(TEXTS)
    assert [*got, *stream] == list(load(llm.path).stream("the quick", replace(LONG, max_tokens=9)))


def test_rows_are_packed_up_to_the_budget() -> None:
    rows = [[0] * length for length in (3, 2, 9, 1, 4, 1)]
    assert [[len(row) for row in batch] for batch in batches_of(rows, 5)] == [[3, 2], [9], [1, 4], [1]]
    assert list(batches_of([], 5)) == []
    assert spans_of(rows[:3]) == [(0, 3), (3, 5), (5, 14)]


def test_the_engine_embeds_between_steps(llm: LLM, engine: Engine) -> None:
    """Requests go on after each batch: 40 batches do not stand before the next token."""
    stream = engine.stream("hello", LONG)
    next(stream)
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(engine.embed(TEXTS * 40)))
    thread.start()
    rest = list(stream)
    thread.join(60)
    assert len(rest) == 299
    np.testing.assert_allclose(found[0], np.tile(llm.embed(TEXTS), (40, 1)), atol=1e-5, rtol=0)
    assert [delta.token for delta in rest] == [delta.token for delta in load(llm.path).stream("hello", LONG)][1:]


def test_a_step_runs_between_two_batches(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    step, batch = engine._loop.step, engine._worker._embed_batch

    def noted_step() -> Any:
        order.append("step")
        return step()

    def noted_batch() -> None:
        order.extend(["batch"] * bool(engine._worker._embedding))
        batch()

    monkeypatch.setattr(engine._loop, "step", noted_step)
    monkeypatch.setattr(engine._worker, "_embed_batch", noted_batch)
    stream = engine.stream("hello", LONG)
    next(stream)
    engine.embed(["the quick brown fox jumps over the lazy dog"] * 6)
    stream.close()
    assert order.count("batch") >= 6 and all(pair != ("batch", "batch") for pair in itertools.pairwise(order))


def test_many_threads_embed_at_once(llm: LLM, engine: Engine) -> None:
    want, found = llm.embed(TEXTS), []
    threads = [threading.Thread(target=lambda: found.append(engine.embed(TEXTS))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(found) == 6
    for vectors in found:
        np.testing.assert_allclose(vectors, want, atol=1e-5, rtol=0)


def test_an_error_of_a_batch_reaches_its_caller_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = engine.stream("hello", LONG)
    monkeypatch.setattr("tiny_llm.engine.embed.pooled", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        engine.embed(["a"])
    monkeypatch.undo()
    assert engine.embed(["a"]).shape == (1, 64) and len(list(stream)) == 300


def test_a_closed_engine_answers_those_that_wait(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, found = Engine(path, serving=SERVING), list[BaseException]()
    begun = threading.Event()

    def slow(*_: Any) -> Any:
        begun.set()
        time.sleep(0.05)
        return mx.zeros((1, 64))

    monkeypatch.setattr("tiny_llm.engine.embed.pooled", slow)

    def ask() -> None:
        try:
            engine.embed(["the quick brown fox jumps over the lazy dog"] * 100)
        except RuntimeError as error:
            found.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    begun.wait(10)
    engine.close()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads) and len(found) == 3
    assert all("closed" in str(error) for error in found)
    with pytest.raises(RuntimeError, match="the engine is closed"):
        engine.embed(["a"])


def test_a_caller_that_was_interrupted_is_not_computed_for(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    result = Future.result

    def interrupted(self: Any, *args: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Future, "result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.embed(TEXTS * 100)
    monkeypatch.setattr(Future, "result", result)
    assert engine.embed(["a"]).shape == (1, 64) and not engine._worker._embedding

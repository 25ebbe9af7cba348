"""The loop: whatever runs beside a request, it gets what it would have got alone."""

import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm import batch_generate
from mlx_lm import load as load_peer

from tests.support import make_model
from tiny_llm import LLM, SamplingParams, load
from tiny_llm.cache.recompute import RecomputeCache
from tiny_llm.config import EngineConfig, SchedulerConfig
from tiny_llm.config.serving import ServingConfig
from tiny_llm.decode.text import Delta
from tiny_llm.engine.loop import Loop, Output
from tiny_llm.engine.recovery import GOOD_STEPS
from tiny_llm.engine.request import Request, SequenceId

GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
SAMPLED = SamplingParams(max_tokens=12, ignore_eos=True, seed=5)
SEARCH = SamplingParams(max_tokens=12, beam_width=4, n=3, length_penalty=0.7)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def llm(path: Path) -> LLM:
    return load(path)


def make_loop(llm: LLM, blocks: int = 200, block_size: int = 4, prefix_cache: bool = True, emit=None, **limits) -> Loop:
    slot = 2 * llm.config.num_hidden_layers * llm.config.num_key_value_heads * llm.config.head_dim * 4
    scheduler = SchedulerConfig(**{"token_budget": 40, "max_sequences": 8, **limits})
    config = ServingConfig(blocks * block_size * slot, block_size, prefix_cache=prefix_cache, scheduler=scheduler)
    return Loop(llm.model, llm.tokenizer, config, emit)


def packed(bits: int | None) -> EngineConfig:
    """Settings with keys and values in this many bits; None for all of them."""
    return EngineConfig() if bits is None else EngineConfig(cache="quantized", kv_bits=bits)


def request(llm: LLM, name: str, tokens: Iterable[int], params: SamplingParams = GREEDY) -> Request:
    stops = frozenset() if params.ignore_eos else llm.tokenizer.eos_token_ids
    return Request(name, tuple(tokens), params, stop_tokens=stops | frozenset(params.stop_token_ids))


def run(loop: Loop, requests: Iterable[Request] = (), steps: int = 3000) -> dict[str, dict[int, list[Delta]]]:
    """Every answer, by request and number; the integrity of scheduler and pool is checked after each step."""
    got: dict[str, dict[int, list[Delta]]] = {}
    for one in requests:
        loop.add(one)
    for _ in range(steps):
        if not loop.has_work:
            return got
        for output in loop.step():
            if output.error:
                raise output.error
            got.setdefault(output.request_id, {}).setdefault(output.delta.index, []).append(output.delta)
        loop.scheduler.check()
    raise AssertionError("the loop does not end")


def summary(deltas: list[Delta]) -> tuple[list[int], str, str | None]:
    return [d.token for d in deltas], "".join(d.text for d in deltas), deltas[-1].finish_reason


def alone(llm: LLM, one: Request) -> dict[int, list[Delta]]:
    got: dict[int, list[Delta]] = {}
    for delta in llm.stream(list(one.tokens), one.params):
        got.setdefault(delta.index, []).append(delta)
    return got


def assert_same(llm: LLM, one: Request, index: int, got: list[Delta], want: list[Delta]) -> None:
    """Equal answers, or a first difference where the model itself can't decide: its top two logits within 1e-4."""
    if summary(got) != summary(want):
        assert_same_tokens(llm, one, [d.token for d in got], [d.token for d in want], f".{index}")


def assert_same_tokens(llm: LLM, one: Request, mine: list[int], theirs: list[int], index: str = "") -> None:
    at = next((i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), None)
    if at is None:
        assert mine == theirs, f"{one.id}{index} ends otherwise"
        return
    logits = np.array(llm.model(mx.array([*one.tokens, *theirs[:at]]), RecomputeCache(llm.config, llm.model.ops)))[-1]
    second, first = np.sort(logits)[-2:]
    assert first - second < 1e-4, f"{one.id}{index} differs at token {at}: {mine} and {theirs}"


def mixed_requests(llm: LLM, count: int, seed: int) -> list[Request]:
    """Prompts that often begin alike, all kinds of settings."""
    rng = random.Random(seed)
    beginnings = [[rng.randrange(300) for _ in range(30)] for _ in range(3)]
    found = []
    for i in range(count):
        tokens = [
            *rng.choice(beginnings)[: rng.randint(0, 30)],
            *(rng.randrange(300) for _ in range(rng.randint(1, 30))),
        ]
        params = SamplingParams(
            max_tokens=rng.randint(1, 30),
            temperature=rng.choice([0.0, 0.7, 1.0]),
            top_k=rng.choice([0, 1, 20]),
            top_p=rng.choice([1.0, 0.9]),
            min_p=rng.choice([0.0, 0.05]),
            repetition_penalty=rng.choice([1.0, 1.2]),
            frequency_penalty=rng.choice([0.0, 0.5]),
            logit_bias=rng.choice([{}, {5: 3.0}]),
            logprobs=rng.choice([None, 0, 3]),
            stop=rng.choice([(), ("e", "the")]),
            stop_token_ids=rng.choice([(), (7, 9)]),
            n=rng.choice([1, 1, 3]),
            seed=rng.randrange(2**32),
        )
        found.append(request(llm, f"r{i}", tokens, params))
    return found


@pytest.mark.parametrize(
    ("blocks", "block_size", "prefix_cache", "limits"),
    [
        (400, 4, True, {}),
        (400, 4, False, {}),
        (40, 4, True, {}),  # full all the time: preemption and eviction
        (40, 4, False, {"token_budget": 16}),
        (100, 1, True, {"token_budget": 8, "max_sequences": 4}),
        (12, 16, True, {"token_budget": 512, "max_sequences": 32}),
    ],
)
def test_every_answer_is_the_one_of_a_solo_run(
    llm: LLM, blocks: int, block_size: int, prefix_cache: bool, limits: dict
) -> None:
    events = []
    requests = mixed_requests(llm, 16, seed=blocks)
    loop = make_loop(llm, blocks, block_size, prefix_cache, events.append, **limits)
    got = run(loop, requests)
    for one in requests:
        want = alone(llm, one)
        assert got[one.id].keys() == want.keys() == set(range(one.params.n))
        for index in want:
            assert_same(llm, one, index, got[one.id][index], want[index])
    kinds = {event.kind for event in events}
    assert {"arrival", "admit", "chunk", "token", "finish"} <= kinds
    assert blocks != 40 or "preempt" in kinds
    assert prefix_cache or not kinds & {"share", "keep", "evict"}
    assert any(event.kind == "copy" for event in events) or block_size == 1


@pytest.mark.parametrize(
    ("blocks", "block_size", "prefix_cache", "limits"),
    [
        (200, 4, True, {}),
        (200, 4, False, {}),
        (46, 4, True, {}),
        (46, 4, False, {"token_budget": 9}),
        (12, 16, True, {}),
    ],
)
def test_beams_beside_others_find_what_they_find_alone(
    llm: LLM, blocks: int, block_size: int, prefix_cache: bool, limits: dict
) -> None:
    events = []
    requests = [replace(one, params=replace(one.params, n=1)) for one in mixed_requests(llm, 6, seed=2)]
    asked = [SEARCH, replace(SEARCH, beam_width=2, n=2), replace(SEARCH, stop_token_ids=(7, 9, 11), max_tokens=30)]
    searches = [request(llm, f"s{i}", range(i, i + 11), params) for i, params in enumerate(asked)]
    got = run(make_loop(llm, blocks, block_size, prefix_cache, events.append, **limits), [*requests, *searches])
    for one in [*requests, *searches]:
        want = alone(llm, one)
        assert got[one.id].keys() == want.keys() == set(range(one.params.n))
        for index in want:
            assert_same(llm, one, index, got[one.id][index], want[index])
    assert {"branch", "copy"} <= {event.kind for event in events}


def test_logprobs_are_those_of_a_solo_run(llm: LLM) -> None:
    asked = replace(SAMPLED, logprobs=3)
    one, other = request(llm, "one", range(20), asked), request(llm, "other", range(9), replace(GREEDY, logprobs=0))
    got = run(make_loop(llm), [one, other, request(llm, "none", range(7))])
    for mine, theirs in zip(got["one"][0], alone(llm, one)[0], strict=True):
        assert mine.logprobs.logprob == pytest.approx(theirs.logprobs.logprob, abs=1e-4)
        assert [token for token, _ in mine.logprobs.top] == [token for token, _ in theirs.logprobs.top]
    assert all(delta.logprobs.top == () for delta in got["other"][0])
    assert all(delta.logprobs is None for delta in got["none"][0])


def test_the_same_seed_gives_the_same_text_whoever_else_runs(llm: LLM) -> None:
    texts = []
    for neighbours in (0, 3, 7):
        loop = make_loop(llm, token_budget=16 + neighbours)
        others = [request(llm, f"n{i}", range(i, i + 25), replace(SAMPLED, seed=i)) for i in range(neighbours)]
        texts.append(summary(run(loop, [*others, request(llm, "mine", range(40, 70), SAMPLED)])["mine"][0]))
    assert texts[0] == texts[1] == texts[2]


def test_without_a_seed_two_answers_differ(llm: LLM) -> None:
    free = replace(SAMPLED, seed=None)
    got = run(make_loop(llm), [request(llm, name, range(9), free) for name in "ab"])
    assert summary(got["a"][0]) != summary(got["b"][0])


def test_a_late_request_joins_those_that_run(llm: LLM) -> None:
    loop = make_loop(llm)
    first, late = request(llm, "first", range(9)), request(llm, "late", range(30, 50))
    loop.add(first)
    early = [output for _ in range(5) for output in loop.step()]
    rest = run(loop, [late])
    deltas = [output.delta for output in early] + rest["first"][0]
    assert_same(llm, first, 0, deltas, alone(llm, first)[0])
    assert_same(llm, late, 0, rest["late"][0], alone(llm, late)[0])


def test_cancelled_requests_leave_nothing_behind(llm: LLM) -> None:
    loop = make_loop(llm, max_sequences=2)
    for name in "abc":  # c waits
        loop.add(request(llm, name, range(9)))
    for _ in range(3):
        loop.step()
    assert loop.cancel("a") and loop.cancel("c") and not loop.cancel("nobody")
    loop.scheduler.check()
    got = run(loop)
    assert list(got) == ["b"]
    assert loop.store.num_blocks == loop.scheduler.blocks.num_available


@pytest.mark.parametrize(
    ("tokens", "params", "words"),
    [
        (range(100), replace(GREEDY, max_tokens=200), "needs 75 blocks of 4 tokens, the pool has 50"),
        (range(300), replace(GREEDY, max_tokens=300), "600 tokens are more than the context of 512"),
        ([], GREEDY, "at least one token"),
        ([1, 999], GREEDY, "999 is outside"),
        ([1], SamplingParams(beam_width=9, max_tokens=9), r"beam_width: expected at most max_sequences \(8\), found 9"),
        ([1], replace(SEARCH, max_tokens=50), "max_tokens 50 and beam_width 4: needs 52 blocks of 4 tokens.* has 50"),
        ([1], SamplingParams(n=9, max_tokens=9), r"at most max_sequences \(8\), found 9"),
    ],
)
def test_what_can_never_run_is_refused(llm: LLM, tokens, params: SamplingParams, words: str) -> None:
    loop = make_loop(llm, blocks=50)
    with pytest.raises(ValueError, match=words):
        loop.add(request(llm, "bad", tokens, params))
    assert not loop.has_work and run(loop, [request(llm, "good", range(5))])


def outputs_of(loop: Loop) -> list[Output]:
    found = []
    while loop.has_work:
        found += loop.step()
        loop.scheduler.check()
    return found


def deltas(outputs: Iterable[Output], name: str, index: int) -> list[Delta]:
    return [o.delta for o in outputs if o.request_id == name and o.delta and o.delta.index == index]


def test_a_text_that_fails_fails_alone(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = make_loop(llm)
    for name in "abc":
        loop.add(request(llm, name, range(9), replace(GREEDY, n=2) if name == "b" else GREEDY))
    writer = loop._answers[SequenceId("b", 0)].writer
    add, count = writer.add, iter(range(100))

    def broken(token):
        if next(count) == 2:
            raise ZeroDivisionError("no text")
        return add(token)

    monkeypatch.setattr(writer, "add", broken)
    outputs = outputs_of(loop)
    assert [(o.request_id, type(o.error)) for o in outputs if o.error] == [("b", ZeroDivisionError)]
    for name in "ac":
        assert len([o for o in outputs if o.request_id == name]) == 12
    assert loop.scheduler.blocks.num_available == loop.store.num_blocks


@pytest.mark.parametrize("where", [1, 7, 20])
def test_out_of_memory_loses_nothing(llm: LLM, monkeypatch: pytest.MonkeyPatch, where: int) -> None:
    """The allocator refuses twice, with a step half built; the batch shrinks, and grows again."""
    loop, count = make_loop(llm), iter(range(10**9))
    requests = mixed_requests(llm, 8, seed=3)
    hidden_states, sizes = llm.model.hidden_states, []

    def scarce(tokens: mx.array, cache):
        sizes.append(len(cache.lengths))
        if where <= next(count) < where + 2:
            cache.pool.write(0, cache._blocks, cache._slots, *([mx.ones((len(tokens), 2, 32))] * 2))
            raise RuntimeError("[malloc] Unable to allocate 99999999999 bytes.")
        return hidden_states(tokens, cache)

    monkeypatch.setattr(llm.model, "hidden_states", scarce)
    for one in requests:
        loop.add(one)
    outputs = outputs_of(loop)
    monkeypatch.undo()
    assert not any(output.error for output in outputs)
    for one in requests:
        for index, want in alone(llm, one).items():
            got = [o.delta for o in outputs if o.request_id == one.id and o.delta.index == index]
            assert_same(llm, one, index, got, want)
    assert min(sizes[where + 1 : where + 3]) < max(sizes)


def test_out_of_memory_parts_no_beams(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The allocator refuses twice; a search is given up only where it can't run even alone."""
    hidden_states, count = llm.model.hidden_states, iter(range(10**9))

    def run_with(fails, requests: list[Request]) -> list[Output]:
        def scarce(tokens: mx.array, cache):
            if fails(next(count), len(tokens), cache):
                raise MemoryError("full")
            return hidden_states(tokens, cache)

        with monkeypatch.context() as patch:
            patch.setattr(llm.model, "hidden_states", scarce)
            loop = make_loop(llm, emit=events.append)
            for one in requests:
                loop.add(one)
            return outputs_of(loop)

    events = []
    search, other = request(llm, "s", range(11), SEARCH), request(llm, "o", range(20, 29))
    outputs = run_with(lambda i, *_: i in (3, 4), [search, other])
    for one in (search, other):
        for index, want in alone(llm, one).items():
            assert_same(llm, one, index, deltas(outputs, one.id, index), want)
    assert {e.sequence for e in events if (e.kind, e.request) == ("preempt", "s")} == {0, 1, 2, 3}
    outputs = run_with(lambda i, length, cache: length > 20 or length in (4, 5), [search, other])
    assert [(o.request_id, type(o.error)) for o in outputs if o.error] == [("s", MemoryError)]
    assert_same(llm, other, 0, deltas(outputs, "o", 0), alone(llm, other)[0])


def test_answers_that_need_more_slots_than_are_left_still_run(llm: LLM) -> None:
    """After a failure that lost the pool three answers waited for ever for three slots of a batch that had shrunk."""
    loop = make_loop(llm)
    loop.add(request(llm, "three", range(9), replace(SAMPLED, n=3)))
    loop.scheduler.config = replace(loop.scheduler.configured, max_sequences=1)
    assert run(loop, steps=100)["three"].keys() == {0, 1, 2}


def test_a_request_that_breaks_every_step_is_given_up_alone(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, hidden_states = make_loop(llm), llm.model.hidden_states
    requests = [request(llm, name, [i, 5, 6, 7] * 6) for i, name in enumerate("abcdef")]

    def poisoned(tokens: mx.array, cache):
        tables = [s.block_table for s in loop.scheduler.running if s.request.id == "d"]
        if any(table[:1] == cache.tables[i][:1] for table in tables for i in range(len(cache.tables))):
            raise RuntimeError("a fault")
        return hidden_states(tokens, cache)

    monkeypatch.setattr(llm.model, "hidden_states", poisoned)
    for one in requests:
        loop.add(one)
    outputs = outputs_of(loop)
    monkeypatch.undo()
    assert [(o.request_id, str(o.error)) for o in outputs if o.error] == [("d", "a fault")]
    for one in requests:
        if one.id != "d":
            assert_same(llm, one, 0, [o.delta for o in outputs if o.request_id == one.id], alone(llm, one)[0])


def test_the_batch_grows_back_after_a_failure(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, failures = make_loop(llm), iter([True, True])
    real = loop.runner._build

    def once(*args):
        if next(failures, False):
            raise MemoryError("full")
        return real(*args)

    monkeypatch.setattr(loop.runner, "_build", once)
    for i in range(8):
        loop.add(request(llm, f"r{i}", range(i, i + 9), replace(GREEDY, max_tokens=40)))
    sizes = []
    while loop.has_work:
        loop.step()
        sizes.append(loop.scheduler.config.max_sequences)
    assert min(sizes) <= 2 and sizes[-1] == 8 and loop.scheduler.config == loop.scheduler.configured
    assert len(sizes) > 2 * GOOD_STEPS


def test_a_pool_that_cannot_be_mended_is_computed_again(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, requests = make_loop(llm), mixed_requests(llm, 6, seed=4)
    for one in requests:
        loop.add(one)
    outputs = [output for _ in range(6) for output in loop.step()]
    step = loop._running.step
    with monkeypatch.context() as patch:
        patch.setattr(mx, "eval", lambda *_: (_ for _ in ()).throw(RuntimeError("[malloc] Unable to allocate")))
        patch.setattr(loop.store, "_clear", lambda: None)
        outputs += loop._after_failure(step, MemoryError("full"))
    loop._running = None
    loop.store._clear()
    loop.scheduler.check()
    assert not loop.scheduler.running and not loop.scheduler.ledger.tree.nodes
    outputs += outputs_of(loop)
    for one in requests:
        for index, want in alone(llm, one).items():
            got = [o.delta for o in outputs if o.request_id == one.id and o.delta.index == index]
            assert_same(llm, one, index, got, want)


def test_greedy_tokens_are_those_of_mlx_lm(path: Path, llm: LLM) -> None:
    peer, tokenizer = load_peer(str(path))
    tokenizer._eos_token_ids = set()
    rng = random.Random(1)
    prompts = [[rng.randrange(300) for _ in range(rng.randint(1, 60))] for _ in range(12)]
    counts = [rng.randint(1, 30) for _ in prompts]
    theirs = batch_generate(peer, tokenizer, prompts, max_tokens=counts, return_token_ids=True).token_ids
    requests = [
        request(llm, str(i), tokens, replace(GREEDY, max_tokens=count))
        for i, (tokens, count) in enumerate(zip(prompts, counts, strict=True))
    ]
    got = run(make_loop(llm), requests)
    for one, want in zip(requests, theirs, strict=True):
        assert_same(
            llm,
            one,
            0,
            got[one.id][0],
            [*map(replace, got[one.id][0])]
            if [d.token for d in got[one.id][0]] == list(want)
            else [Delta("", t) for t in want],
        )

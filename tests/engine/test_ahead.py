"""The next step, built before the tokens that it runs on are read: the same answers, and dropped where it won't do."""

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest

from tests.engine.test_loop import (
    GREEDY,
    SAMPLED,
    alone,
    assert_same,
    make_loop,
    mixed_requests,
    packed,
    request,
    run,
    summary,
)
from tests.support import make_model
from tiny_llm import LLM, load
from tiny_llm.config import SchedulerConfig
from tiny_llm.config.serving import ServingConfig
from tiny_llm.engine import loop as loop_module
from tiny_llm.engine.loop import Loop
from tiny_llm.engine.runner import Runner


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def llm(path: Path) -> LLM:
    return load(path)


@pytest.mark.parametrize(("blocks", "prefix_cache"), [(400, True), (40, True), (40, False)])
def test_tokens_are_the_same_with_and_without(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, blocks: int, prefix_cache: bool
) -> None:
    """Penalties, stops, logprobs, n > 1, a full pool: whatever the guess, the answers are equal to the last bit."""
    requests, got = mixed_requests(llm, 16, seed=7), []
    prepared = 0
    prepare = Runner.prepare

    def counted(self: Runner, *args) -> None:
        nonlocal prepared
        prepare(self, *args)
        prepared += self._prepared is not None

    monkeypatch.setattr(Runner, "prepare", counted)
    for ahead in (True, False):
        if not ahead:
            monkeypatch.setattr(loop_module, "foresee", lambda *_: None)
        loop = make_loop(llm, blocks, prefix_cache=prefix_cache)
        got.append(run(loop, requests))
        assert bool(loop.runner.ready) == ahead
        if ahead:
            assert loop.runner.ready < prepared, "no guess was wrong"
    for one in requests:
        for index in range(one.params.n):
            mine, without = (found[one.id][index] for found in got)
            assert summary(mine) == summary(without)
            assert [delta.logprobs for delta in mine] == [delta.logprobs for delta in without]


def test_those_who_decode_side_by_side_find_each_step_ready(llm: LLM) -> None:
    """Also where they take new blocks, and with penalties, which count tokens that are not read yet."""
    loop = make_loop(llm, block_size=4)
    asked = replace(SAMPLED, max_tokens=20, repetition_penalty=1.3)
    requests = [request(llm, f"r{i}", range(i, i + 4), replace(asked, seed=i)) for i in range(6)]
    got = run(loop, requests)
    assert loop.runner.ready == 19  # all but the prompts' step
    for one in requests:
        assert_same(llm, one, 0, got[one.id][0], alone(llm, one)[0])


def test_who_comes_proves_the_guess_wrong_and_who_goes_does_not(llm: LLM) -> None:
    """The guess is made when a step is waited for; who was cancelled before is not in it, a newcomer never."""
    loop, answers = make_loop(llm), replace(GREEDY, max_tokens=30)
    late = request(llm, "late", range(5), answers)
    for name in "ab":
        loop.add(request(llm, name, range(9), answers))
    for _ in range(4):
        loop.step()
    for change, more in ((lambda: None, 1), (lambda: loop.cancel("a"), 1), (lambda: loop.add(late), 0)):
        ready = loop.runner.ready
        change()
        loop.step()
        assert loop.runner.ready == ready + more
    assert_same(llm, late, 0, run(loop)["late"][0], alone(llm, late)[0])


def test_a_stop_token_ends_its_answer_though_a_step_is_built_on_it(llm: LLM) -> None:
    loop = make_loop(llm)
    free = request(llm, "free", range(20), replace(GREEDY, max_tokens=20))
    tokens = [delta.token for delta in alone(llm, free)[0]]
    at = next(i for i, token in enumerate(tokens) if i > 3 and token not in tokens[:i])
    stopped = request(llm, "stopped", range(20), replace(GREEDY, max_tokens=20, stop_token_ids=(tokens[at],)))
    got = run(loop, [stopped, free])
    assert summary(got["stopped"][0])[0] == tokens[: at + 1] and got["stopped"][0][-1].finish_reason == "stop"
    assert summary(got["free"][0])[0] == tokens


@pytest.mark.parametrize("bits", [None, 8])
def test_the_pool_is_never_copied(llm: LLM, bits: int | None) -> None:
    """Neither by a step that was ready, nor where one is dropped and blocks are copied or others come in."""
    scheduler = SchedulerConfig(token_budget=64, max_sequences=8)
    loop = Loop(llm.model, llm.tokenizer, ServingConfig(1 << 27, 16, scheduler=scheduler), engine=packed(bits))
    params = replace(SAMPLED, max_tokens=40)
    for i in range(3):
        loop.add(request(llm, f"r{i}", range(i, i + 20), replace(params, seed=i)))
    for _ in range(3):
        loop.step()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    for number in range(30):
        if number in (5, 17):
            loop.add(request(llm, f"n{number}", range(number, number + 20), replace(params, n=2, seed=number)))
        if number == 11:
            loop.cancel("r1")
        loop.step()
    assert 15 < loop.runner.ready < 30
    assert mx.get_peak_memory() - before < min(buffer.nbytes for buffer in loop.store.state if buffer.nbytes > 1 << 20)


def test_a_step_that_fails_takes_what_was_built_on_it_along(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device refuses while the next step is ready: both are forgotten, and no answer changes."""
    loop, read = make_loop(llm), Runner.read
    requests = [request(llm, f"r{i}", range(i, i + 9), replace(SAMPLED, seed=i)) for i in range(4)]
    counts = iter(range(1000))

    def refused(self: Runner, running):
        if next(counts) == 5:
            assert self._prepared is not None
            raise RuntimeError("[malloc] Unable to allocate 99999999999 bytes.")
        return read(self, running)

    monkeypatch.setattr(Runner, "read", refused)
    got = run(loop, requests)
    assert loop.runner.ready
    for one in requests:
        assert_same(llm, one, 0, got[one.id][0], alone(llm, one)[0])


def test_what_can_not_be_prepared_harms_nobody(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone a request would be given up if its step failed; here the step is fine, and so is the sampler's count."""
    loop, build = make_loop(llm), Runner._build
    counts = iter(range(1000))

    def scarce(self: Runner, step, pool, before=None):
        built = build(self, step, pool, before)
        if before is not None and next(counts) % 3:
            raise MemoryError("full")
        return built

    monkeypatch.setattr(Runner, "_build", scarce)
    one = request(llm, "one", range(9), replace(SAMPLED, repetition_penalty=1.5, frequency_penalty=1.0))
    got = run(loop, [one])
    assert 0 < loop.runner.ready < 8 and loop.scheduler.config == loop.scheduler.configured
    assert_same(llm, one, 0, got["one"][0], alone(llm, one)[0])

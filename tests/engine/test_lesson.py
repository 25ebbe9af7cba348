"""`load(…, lesson=True)`: week 1's loop answers single prompts, and what it does not know the engine's loop answers."""

import threading
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest

from tests.support import make_model
from tiny_llm import LLM, SamplingParams, load
from tiny_llm.config import EngineConfig, Structured

GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
SEEDED = SamplingParams(temperature=0.8, max_tokens=12, ignore_eos=True, seed=5)
PROMPT = list(range(20, 50))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def lesson(path: Path) -> LLM:
    return load(path, lesson=True)


def count_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes each answer of the lesson's loop."""
    from tiny_llm.engine import lesson as module

    real, calls = module.generate.stream, []

    def noted(*args, **options):
        calls.append("stream")
        return real(*args, **options)

    monkeypatch.setattr(module.generate, "stream", noted)
    return calls


@pytest.mark.parametrize("params", [GREEDY, SEEDED, replace(SEEDED, n=3), replace(SEEDED, logprobs=2)])
def test_the_lesson_s_loop_gives_the_engine_s_answers(
    path: Path, lesson: LLM, monkeypatch: pytest.MonkeyPatch, params: SamplingParams
) -> None:
    calls = count_calls(monkeypatch)
    mine, theirs = lesson.generate(PROMPT, params), load(path).generate(PROMPT, params)
    assert calls == ["stream"]
    if params.n == 1:
        mine, theirs = [mine], [theirs]
    assert [(one.tokens, one.text, one.finish_reason) for one in mine] == [
        (one.tokens, one.text, one.finish_reason) for one in theirs
    ]


def test_searches_forms_and_lists_are_the_engine_s(lesson: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llguidance")
    calls = count_calls(monkeypatch)
    beams = lesson.generate(PROMPT, SamplingParams(beam_width=3, n=2, max_tokens=5))
    form = lesson.generate(PROMPT, SamplingParams(max_tokens=9, structured=Structured("regex", "[ab]{3}")))
    several = lesson.generate([PROMPT, PROMPT[:9]], GREEDY)
    assert (len(beams), len(form.text), len(several)) == (2, 3, 2)
    assert calls == []


@pytest.mark.parametrize("config", [EngineConfig(), EngineConfig(cache="rotating", window=24, sinks=2)])
def test_the_next_turn_computes_only_what_is_new(path: Path, config: EngineConfig) -> None:
    lesson = load(path, config=config, lesson=True)
    first = lesson.generate(PROMPT, GREEDY)
    longer = [*PROMPT, *first.tokens, 5]
    second = lesson.generate(longer, GREEDY)
    assert second.stats.cached_tokens == len(longer) - 2
    assert second.tokens == load(path, config=config).generate(longer, GREEDY).tokens
    assert lesson.generate(PROMPT[:9], GREEDY).tokens == load(path, config=config).generate(PROMPT[:9], GREEDY).tokens


@pytest.mark.parametrize("steps", [1, 4])
def test_an_abandoned_answer_leaves_a_right_cache(path: Path, lesson: LLM, steps: int) -> None:
    stream = lesson.stream(PROMPT, GREEDY)
    for _ in range(steps):
        next(stream)
    stream.close()
    longer = [*PROMPT, 7, 8]
    assert lesson.generate(longer, GREEDY).tokens == load(path).generate(longer, GREEDY).tokens


def test_a_step_that_fails_is_told_and_leaves_no_trace(
    path: Path, lesson: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A learner's mistake must show as it is: nothing is tried again."""
    hidden_states, count = lesson.model.hidden_states, iter(range(100))

    def failing(tokens: mx.array, cache):
        if next(count) == 3:
            raise ZeroDivisionError("my mistake")
        return hidden_states(tokens, cache)

    with monkeypatch.context() as patch:
        patch.setattr(lesson.model, "hidden_states", failing)
        with pytest.raises(ZeroDivisionError, match="my mistake"):
            lesson.generate(PROMPT, GREEDY)
    assert lesson.generate(PROMPT, GREEDY).tokens == load(path).generate(PROMPT, GREEDY).tokens


def test_a_cache_file_holds_the_lesson_s_cache(path: Path, lesson: LLM, tmp_path: Path) -> None:
    """It was that of the engine's loop, which is empty, and nothing was found in the file."""
    file = tmp_path / "prompt.safetensors"
    first = lesson.generate(PROMPT, GREEDY)
    lesson.save_cache(file)
    longer = [*PROMPT, *first.tokens, 5]
    want = load(path).generate(longer, GREEDY).tokens
    for other in (load(path, lesson=True), load(path)):
        assert other.load_cache(file) == len(longer) - 2
        answer = other.generate(longer, GREEDY)
        assert answer.stats.cached_tokens == len(longer) - 2
        assert answer.tokens == want


def test_threads_that_ask_at_once_get_an_error_and_no_crash(path: Path) -> None:
    """Arrays of one thread were computed in another: the process crashed."""
    llm = load(path, lesson=True)
    want = load(path).generate([1] * 60, GREEDY).tokens
    found: list[object] = []

    def once() -> object:
        try:
            return llm.generate([1] * 60, GREEDY).tokens
        except RuntimeError as error:
            return str(error)

    def ask() -> None:
        found.extend(once() for _ in range(4))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(one == want or "thread" in str(one) or "cancelled" in str(one) for one in found)
    assert llm.generate([1] * 60, GREEDY).tokens == want


def test_forgetting_drops_the_lessons_cache_and_ends_its_stream(path: Path) -> None:
    llm = load(path, lesson=True)
    stream = llm.stream([1] * 30, GREEDY)
    next(stream)
    llm.forget()
    with pytest.raises(RuntimeError, match="this stream was cancelled"):
        next(stream)
    assert llm.generate([1] * 30, GREEDY).stats.cached_tokens == 0

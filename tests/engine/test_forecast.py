"""An engine says how many requests run and wait, when a new one would begin, and why a prefix was not found."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support import make_model
from tiny_llm import LLM, SamplingParams, load
from tiny_llm.config import SchedulerConfig
from tiny_llm.config.serving import ServingConfig
from tiny_llm.engine.answers import Stats
from tiny_llm.engine.request import PrefixMiss
from tiny_llm.engine.serving import Engine
from tiny_llm.engine.worker import Forecast, ServiceTime

SERVING = ServingConfig(block_size=4, scheduler=SchedulerConfig(max_sequences=2))
GREEDY = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
LONG = replace(GREEDY, max_tokens=400)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def engine(path: Path) -> Iterator[Engine]:
    with Engine(path, serving=SERVING) as engine:
        yield engine


def test_an_idle_engine_begins_at_once(engine: Engine) -> None:
    assert engine.forecast() == Forecast(0, 0, 0.0)
    engine.generate(["hello"], GREEDY)
    assert engine.forecast() == Forecast(0, 0, 0.0)


def test_a_free_slot_is_taken_at_once(engine: Engine) -> None:
    stream = engine.stream("hello", LONG)
    next(stream)
    assert engine.forecast() == Forecast(1, 0, 0.0)
    stream.close()


def test_the_wait_grows_with_the_line_and_comes_true(engine: Engine) -> None:
    engine.generate(["hello"] * 4, LONG)
    streams = [engine.stream("hello", LONG) for _ in range(6)]
    next(streams[1])
    first = engine.forecast()
    assert (first.running, first.waiting) == (2, 4)
    more = engine.stream("hello", LONG)
    second = engine.forecast()
    assert second.seconds > first.seconds > 0
    begin = time.monotonic()
    next(more)
    assert (time.monotonic() - begin) / 8 < first.seconds < (time.monotonic() - begin) * 8
    for stream in [*streams, more]:
        stream.close()


def test_before_any_request_has_ended_the_time_so_far_counts(engine: Engine) -> None:
    streams = [engine.stream("hello", LONG) for _ in range(3)]
    next(streams[1])
    begin = engine.forecast().seconds
    time.sleep(0.02)
    assert engine.forecast().seconds > begin > 0
    for stream in streams:
        stream.close()


def test_any_thread_may_ask_while_requests_come_and_go(engine: Engine) -> None:
    found: list[Forecast] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            found.append(engine.forecast())

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    engine.generate(["hello", "the quick", "one and"] * 6, GREEDY)
    done.set()
    for thread in threads:
        thread.join()
    assert found and all(f.running >= 0 and f.waiting >= 0 and f.seconds >= 0 for f in found)
    assert engine.forecast() == Forecast(0, 0, 0.0)


def test_the_mean_follows_a_change() -> None:
    times = ServiceTime()
    for seconds in [1.0] * 9 + [3.0] * 60:
        times.note(seconds)
    assert times.mean == pytest.approx(3.0, abs=0.01)
    first = ServiceTime()
    first.note(2.0)
    first.note(4.0)
    assert first.mean == pytest.approx(3.0)


def stats(engine: Engine, tokens: list[int]) -> Stats:
    (answer,) = engine.generate([tokens], GREEDY)[0]
    return answer.stats


def test_a_miss_names_the_first_differing_text(engine: Engine) -> None:
    tokenizer = engine.llm.tokenizer
    before = tokenizer.encode("the quick brown fox jumps over the lazy dog")
    first = stats(engine, before)
    assert first.prefix_miss == PrefixMiss(0, "first request", tokenizer.decode(before[:16]))
    changed = [*before[:10], *tokenizer.encode("system hello there"), *before[10:]]
    second = stats(engine, changed)
    assert second.cached_tokens == 8
    assert second.prefix_miss == PrefixMiss(10, "diverged at token 10", tokenizer.decode(changed[10:26]))
    again = stats(engine, changed)
    assert again.prefix_miss is None and again.cached_tokens == (len(changed) - 1) // 4 * 4


def test_a_changed_system_prompt_is_named(path: Path) -> None:
    def chat(system: str) -> list[dict[str, str]]:
        return [{"role": "system", "content": system}, {"role": "user", "content": "hi"}]

    with Engine(path, serving=SERVING) as engine:
        engine.generate([chat("the fox jumps over the dog")], GREEDY)
        (answer,) = engine.generate([chat("the fox jumps under the dog")], GREEDY)[0]
    miss = answer.stats.prefix_miss
    assert miss is not None
    assert miss.reason.startswith(
        f"different system prompt, tools or template settings: diverged at token {miss.position}"
    )
    assert miss.text.lstrip().startswith("under")


def test_each_request_of_a_batch_and_a_single_prompt_tell_their_miss(path: Path) -> None:
    llm: LLM = load(path)
    llm.generate("the quick brown fox", GREEDY)
    miss = llm.generate("the quick red fox", GREEDY).stats.prefix_miss
    assert miss is not None and miss.reason == f"diverged at token {miss.position}"
    assert llm.tokenizer.encode("the quick red fox")[miss.position :] == llm.tokenizer.encode(miss.text)
    two = llm.generate(["the quick brown fox jumps over"], replace(GREEDY, n=2))
    assert all(answer.stats.prefix_miss is not None for answer in two)


def test_without_kept_prefixes_nothing_is_missed(path: Path) -> None:
    with Engine(path, serving=replace(SERVING, prefix_cache=False)) as engine:
        assert stats(engine, [1, 2, 3, 4, 5, 6]).prefix_miss is None

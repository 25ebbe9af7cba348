"""A served engine is bounded: unfinished requests, unread tokens, and the time that an event loop is kept."""

import asyncio
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support import make_model
from tiny_llm import SamplingParams
from tiny_llm.config import SchedulerConfig
from tiny_llm.config.serving import ServingConfig
from tiny_llm.decode.text import Delta
from tiny_llm.engine.answers import AsyncStream, Box, Collected, Stream, UnreadError, completions_of
from tiny_llm.engine.events import Event
from tiny_llm.engine.llm import LLM, load
from tiny_llm.engine.loop import Output
from tiny_llm.engine.prompt import RequestBuilder
from tiny_llm.engine.serving import Engine, FullError

GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
LONG = replace(GREEDY, max_tokens=400)
SERVING = ServingConfig(kv_bytes=2**21, block_size=8, scheduler=SchedulerConfig(token_budget=64, max_sequences=8))
CHAT = [{"role": "user", "content": "the quick brown fox jumps over " * 3300}]  # 100 kB


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def engine(path: Path) -> Iterator[Engine]:
    with Engine(path, serving=replace(SERVING, max_requests=2)) as engine:
        yield engine


def until(condition: Any) -> None:
    """Wait until the engine's thread has done what makes this true."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def piece(token: int, finish_reason: Any = None) -> Output:
    return Output("a", Delta("x", token, 0, finish_reason), ended=finish_reason is not None)


async def longest_gap(work: Any) -> float:
    """The longest time in seconds between two turns of a task that ticks while `work` runs."""
    task, longest, last = asyncio.ensure_future(work), 0.0, time.perf_counter()
    while not task.done():
        await asyncio.sleep(0)
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    await asyncio.gather(task, return_exceptions=True)
    return longest


@pytest.mark.parametrize("name", ["max_requests", "max_unread"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "many", None])
def test_bounds_are_positive_integers(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected an integer of at least 1, found"):
        ServingConfig(**{name: value})


def test_one_request_too_many_is_refused_in_the_call_and_changes_nothing(engine: Engine) -> None:
    running = [engine.stream("hello", LONG), engine.astream("the quick", LONG)]
    next(running[0])
    for call in (engine.stream, engine.astream, lambda *some: engine.generate([some[0]], some[1])):
        with pytest.raises(FullError, match=r"2 unfinished requests, and max_requests allows 2: ask again"):
            call("what is", GREEDY)
    assert sorted(engine._worker.recipients) == sorted(one.request_id for one in running)
    running[1]._close()
    assert len(list(running[0])) == 399
    until(lambda: not engine._worker.recipients)
    assert len(list(engine.stream("what is", GREEDY))) == 12


def test_a_refused_prompt_leaves_its_place(engine: Engine) -> None:
    for _ in range(5):
        with pytest.raises(ValueError, match="prompt"):
            engine.stream([], GREEDY)
        with pytest.raises(ValueError, match="prompt"):
            asyncio.run(engine.agenerate([], GREEDY))
    assert not engine._worker.recipients


def test_a_list_longer_than_max_requests_is_handed_in_bit_by_bit(path: Path, engine: Engine) -> None:
    prompts = [[1 + i, 2, 3] for i in range(9)]
    most, events = 0, []
    enter = engine._worker.enter

    def counted(*args: Any) -> None:
        nonlocal most
        enter(*args)
        most = max(most, len(engine._worker.recipients))

    engine._worker.enter = counted  # type: ignore[method-assign]
    served = engine.generate(prompts, GREEDY, progress=True)
    assert most == 2
    with Engine(path, serving=SERVING, emit=events.append) as wide:
        assert [c.tokens for (c,) in served] == [c.tokens for (c,) in wide.generate(prompts, GREEDY)]


def test_a_list_goes_on_beside_other_callers(engine: Engine) -> None:
    other = engine.stream("hello", LONG)
    next(other)
    assert len(engine.generate([[i + 1] for i in range(4)], GREEDY)) == 4
    assert len(list(other)) == 399


def test_a_list_of_which_one_prompt_is_bad_leaves_nothing(engine: Engine) -> None:
    with pytest.raises(ValueError, match="leave no room"):
        engine.generate([[1], [2], [3], [4] * 600, [5]], GREEDY)
    until(lambda: not engine._loop.has_work)
    assert not engine._worker.recipients


def test_a_reader_that_leaves_too_much_unread_loses_its_request_alone(path: Path) -> None:
    with Engine(path, serving=replace(SERVING, max_unread=200)) as engine:
        slow, quick = engine.stream("hello", LONG), engine.stream("the quick", LONG)
        aslow = engine.astream("hello", LONG)
        assert sum(1 for _ in quick) == 400
        until(lambda: not engine._worker.recipients and not engine._loop.has_work)
        for _ in range(2):
            with pytest.raises(UnreadError, match="left more than 200 tokens unread"):
                next(slow)
        assert slow.finish_reason == "error" and not slow._box._outputs

        async def read() -> None:
            await anext(aslow)

        with pytest.raises(UnreadError, match="raise max_unread"):
            asyncio.run(read())
        [[answer]] = engine.generate(["hello"], LONG)  # it reads at once, however many
        assert len(answer.tokens) == 400


def test_the_last_piece_beyond_the_bound_is_refused_too() -> None:
    left: list[str] = []
    box = Box(2, lambda: left.append("a"))
    box.put(piece(1))
    box.put(piece(2))
    assert box.get() == piece(1)
    box.put(piece(3))
    box.put(piece(4, "stop"))
    box.put(piece(5))
    assert left == ["a"] and isinstance(box.get().error, UnreadError) and box.ended  # type: ignore[union-attr]


def test_abort_ends_a_request_for_its_reader(engine: Engine) -> None:
    stream = engine.stream("hello", LONG)
    first = [next(stream) for _ in range(3)]
    assert engine.abort(stream.request_id) and not engine.abort(stream.request_id)
    rest = list(stream)
    assert list(stream) == [] and stream.finish_reason == "cancelled" and stream.collected.done
    until(lambda: not engine._loop.has_work)
    [answer] = completions_of(stream.collected)
    assert answer.finish_reason == "cancelled"
    assert answer.tokens == [delta.token for delta in first + rest] and len(answer.tokens) < 400
    assert not engine.abort("r999") and not engine.abort("")


def test_abort_of_a_finished_request_changes_nothing(engine: Engine) -> None:
    stream = engine.stream("hello", GREEDY)
    until(lambda: not engine._worker.recipients)
    assert not engine.abort(stream.request_id)
    assert len(list(stream)) == 12 and stream.finish_reason == "length"


def test_of_many_threads_that_abort_one_is_told_that_it_did(engine: Engine) -> None:
    for _ in range(20):
        stream, told = engine.stream("hello", LONG), []
        threads = [threading.Thread(target=lambda: told.append(engine.abort(stream.request_id))) for _ in range(4)]  # noqa: B023
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert sorted(told) == [False, False, False, True]
        list(stream)
        assert stream.finish_reason == "cancelled"


def test_abort_wakes_an_event_loop(engine: Engine) -> None:
    async def ask() -> tuple[list[Any], int]:
        stream = engine.astream("hello", replace(LONG, n=2))
        await anext(stream)
        whole = asyncio.create_task(engine.agenerate("the quick", LONG))
        await asyncio.sleep(0.01)
        assert all(engine.abort(name) for name in list(engine._worker.recipients))
        rest = [delta async for delta in stream]
        assert stream.finish_reason == "cancelled"
        return [answer.finish_reason for answer in await whole], len(rest)

    reasons, rest = asyncio.run(asyncio.wait_for(ask(), 20))
    assert reasons == ["cancelled"] and rest < 800


def test_abort_within_a_list_gives_what_there_is(path: Path) -> None:
    aborted: list[bool] = []

    def emit(event: Event) -> None:
        if event.kind == "token" and event.request == "r1" and not aborted:
            aborted.append(engine.abort("r1"))

    with Engine(path, serving=SERVING, emit=emit) as engine:
        answers = [answer for (answer,) in engine.generate(["hello", "the quick", "what is"], GREEDY)]
    assert [answer.finish_reason for answer in answers] == ["length", "cancelled", "length"] and aborted == [True]
    assert len(answers[1].tokens) < 12


def test_a_request_aborted_while_its_prompt_is_encoded_never_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served, encoding, go_on = RequestBuilder.served, threading.Event(), threading.Event()

    def slow(self: RequestBuilder, *args: Any) -> Any:
        encoding.set()
        go_on.wait(10)
        return served(self, *args)

    events: list[Event] = []
    with Engine(path, serving=SERVING, emit=events.append) as engine:
        monkeypatch.setattr(RequestBuilder, "served", slow)
        stream = engine.astream("hello", LONG)
        encoding.wait(10)
        assert engine.abort(stream.request_id)
        go_on.set()
        monkeypatch.undo()
        engine.generate(["the quick"], GREEDY)
    assert [event.note for event in events if event.kind == "finish"] == ["length"]


def test_a_slow_prompt_does_not_keep_the_event_loop(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    served = RequestBuilder.served

    def slow(self: RequestBuilder, *args: Any) -> Any:
        time.sleep(0.3)
        return served(self, *args)

    monkeypatch.setattr(RequestBuilder, "served", slow)

    async def measure() -> float:
        return await longest_gap(engine.agenerate("hello", GREEDY))

    assert asyncio.run(measure()) < 0.1


def test_a_long_chat_does_not_keep_the_event_loop(tmp_path: Path) -> None:
    """100 kB of chat took the event loop 70 ms of rendering and tokenizing."""
    directory = make_model(tmp_path / "model", max_position_embeddings=200_000)
    with Engine(directory, serving=SERVING) as engine:

        async def measure() -> float:
            return await longest_gap(engine.agenerate(CHAT, GREEDY))

        with pytest.raises(ValueError, match="the pool has"):
            asyncio.run(engine.agenerate(CHAT, GREEDY))
        assert min(asyncio.run(measure()) for _ in range(5)) < 0.03


def test_cheap_checks_of_astream_are_made_in_the_call(engine: Engine) -> None:
    for options in ({"priority": 11}, {"tenant": 5}, {"deadline": "soon"}, {"template": 3}, {"top_k": 1.5}):
        with pytest.raises(ValueError, match=next(iter(options))):
            engine.astream("hello", **options)
    with pytest.raises(ValueError, match="logit_bias"):
        engine.astream("hello", logit_bias={10**6: 1.0})
    stream = engine.astream([], GREEDY)

    async def read() -> None:
        await anext(stream)

    for _ in range(2):
        with pytest.raises(ValueError, match="at least one token"):
            asyncio.run(read())
    assert stream.finish_reason == "error"


def test_times_are_told_while_a_stream_runs_and_after(engine: Engine) -> None:
    busy = engine.stream("hello", replace(LONG, n=8))
    next(busy)
    stream = engine.stream("the quick", GREEDY)
    assert stream.stats.time_to_first_token == 0 and stream.stats.prompt_tokens > 0
    time.sleep(0.02)
    busy.close()
    next(stream)
    early = stream.stats
    assert 0.015 < early.queue_time < early.time_to_first_token and early.generated_tokens == 1
    list(stream)
    late = stream.stats
    assert (late.queue_time, late.time_to_first_token) == (early.queue_time, early.time_to_first_token)
    assert 0 < late.inter_token_time <= late.longest_gap <= late.decode_time
    assert late.inter_token_time == pytest.approx(late.decode_time / 11)
    again = engine.stream("the quick", GREEDY, template=None)
    list(again)
    assert again.stats.cached_tokens == 0 or again.stats.cached_tokens % 8 == 0


def test_a_slow_reader_does_not_change_the_times(engine: Engine) -> None:
    """They were taken where the answer is read."""
    stream = engine.stream("hello", GREEDY)
    until(lambda: not engine._worker.recipients)
    before = stream.stats
    for _ in stream:
        time.sleep(0.01)
    after = stream.stats
    assert (before.decode_time, before.longest_gap) == (after.decode_time, after.longest_gap)


def test_lists_of_an_llm_have_the_times_too(path: Path) -> None:
    llm: LLM = load(path)
    for answer in llm.generate(["hello", "the quick"], GREEDY):
        stats = answer.stats
        assert 0 <= stats.queue_time < stats.time_to_first_token and 0 < stats.inter_token_time <= stats.longest_gap


def test_gaps_are_those_within_an_answer() -> None:
    collected = Collected("a", 2, begin=0.0)
    for index, now in ((0, 1.0), (1, 1.5), (0, 2.0), (1, 4.0)):
        collected.note(Output("a", Delta("x", 1, index), admitted=0.25), now)
    assert (collected.gaps, collected.sum_of_gaps, collected.longest_gap) == (2, 3.5, 2.5)
    assert (collected.first, collected.last, collected.admitted) == (1.0, 4.0, 0.25)


def test_dropped_readers_of_ended_requests_order_nothing() -> None:
    orders: queue.SimpleQueue[str] = queue.SimpleQueue()
    for reader in (Stream, AsyncStream):
        ended, open_ = (reader(Collected(name, 1), orders.put, 8) for name in ("ended", "open"))
        ended.deliver(piece(1, "stop"))
        del ended, open_
        assert orders.get_nowait() == "open" and orders.empty()


def test_the_engine_ends_its_threads(path: Path) -> None:
    before = set(threading.enumerate())
    with Engine(path, serving=SERVING) as engine:
        asyncio.run(engine.agenerate("hello", GREEDY))
        started = set(threading.enumerate()) - before
    assert len(started) >= 2  # the engine's own and one for prompts, which `close` does not wait for
    for thread in started:
        thread.join(timeout=10)
        assert not thread.is_alive(), thread.name

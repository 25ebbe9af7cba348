"""One request's fault is its own: it is refused or ended, and every other answer is what a solo run gives."""

import asyncio
import contextlib
import gc
import itertools
import json
import os
import random
import subprocess
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from tests.support import make_model, write_json
from tiny_llm import LLM, SamplingParams, load
from tiny_llm.config import SchedulerConfig, Structured
from tiny_llm.config.serving import ServingConfig
from tiny_llm.decode.text import Delta
from tiny_llm.engine.events import Event
from tiny_llm.engine.loop import Loop
from tiny_llm.engine.prompt import RequestBuilder
from tiny_llm.engine.serving import Engine

GREEDY = SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True)
SERVING = ServingConfig(kv_bytes=2**21, block_size=8, scheduler=SchedulerConfig(token_budget=64, max_sequences=8))
DIGITS = Structured("regex", "[0-9]{40}")


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


def aread(engine: Engine, *args: Any, **options: Any) -> Any:
    """The answers for an event loop: what is wrong with a prompt is raised where they are awaited."""
    return asyncio.run(engine.agenerate(*args, **options))


ODD: list[tuple[str, Any]] = [
    ("tenant", []),
    ("tenant", None),
    ("tenant", ""),
    ("tenant", "t" * 10_000),
    ("tenant", {"a": 1}),
    ("tenant", 5),
    ("priority", "high"),
    ("priority", 1.5),
    ("priority", True),
    ("priority", 10**400),
    ("priority", None),
    ("priority", -11),
    ("deadline", "soon"),
    ("deadline", 10**400),
    ("deadline", 10**5000),
    ("deadline", float("inf")),
    ("deadline", [1]),
    ("deadline", True),
    ("template", "chat"),
    ("template", [1]),
    ("max_tokens", 0),
    ("max_tokens", "5"),
    ("max_tokens", 10**400),
    ("temperature", float("nan")),
    ("temperature", 10**400),
    ("temperature", "hot"),
    ("top_k", 1.5),
    ("logprobs", 21),
    ("seed", -1),
    ("seed", 2**64),
    ("seed", "lucky"),
    ("stop", "a"),
    ("stop", ("",)),
    ("stop", (5,)),
    ("stop", ("a" * 1001,)),
    ("stop", tuple(map(str, range(65)))),
    ("stop_token_ids", (320,)),
    ("stop_token_ids", (-1,)),
    ("stop_token_ids", 5),
    ("logit_bias", {320: 1.0}),
    ("logit_bias", {-1: 1.0}),
    ("logit_bias", {5: 101}),
    ("logit_bias", {5: float("nan")}),
    ("logit_bias", {5: 10**400}),
    ("logit_bias", {"5": 1.0}),
    ("logit_bias", [5]),
    ("ignore_eos", "no"),
    ("n", 9),
    ("n", 10**400),
    ("beam_width", 9),
    ("structured", "json"),
    ("structured", Structured("regex", "(")),
]


@pytest.mark.parametrize(("name", "value"), ODD, ids=[f"{name}-{i}" for i, (name, _) in enumerate(ODD)])
def test_an_odd_field_is_refused_in_the_callers_own_call(engine: Engine, name: str, value: Any) -> None:
    """A list as tenant ended the engine's thread, and with it all requests; an odd deadline was an OverflowError."""
    running = engine.stream("the quick", GREEDY)
    for call in (engine.stream, partial(aread, engine)):
        with pytest.raises(ValueError, match=name):
            call("hello", **{name: value})
    assert len(list(running)) == 30


@pytest.mark.parametrize("prompt", [None, 5, b"text", "", [], [True], [1.5], [{}], ["a", 1], [[1], 2], [10**400], {}])
def test_what_is_no_prompt_is_refused_in_the_call(engine: Engine, llm: LLM, prompt: Any) -> None:
    for call in (engine.stream, partial(aread, engine), llm.stream):
        with pytest.raises(ValueError, match=r"prompt|messages"):
            call(prompt, GREEDY)


@pytest.mark.parametrize("params", [5, "greedy", {"max_tokens": 3}])
def test_settings_of_another_kind_are_refused(engine: Engine, llm: LLM, params: Any) -> None:
    for call in (engine.stream, engine.astream, llm.stream):
        with pytest.raises(ValueError, match="params: expected SamplingParams"):
            call("hello", params)


def test_settings_that_the_caller_changes_later_stay_what_they_were() -> None:
    biases = {5: 1.0}
    params = SamplingParams(logit_bias=biases)
    biases[10**9] = 500.0
    assert params.logit_bias == {5: 1.0}


def test_whatever_admission_raises_fails_its_own_request(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    add = Loop.add

    def faulty(self: Loop, request: Any) -> None:
        add(self, request)
        if request.tenant == "bad":
            raise ZeroDivisionError("a fault of admission")

    monkeypatch.setattr(Loop, "add", faulty)
    running = engine.stream("the quick", GREEDY)
    with pytest.raises(ZeroDivisionError):
        list(engine.stream("hello", GREEDY, tenant="bad"))
    assert len(list(running)) == 30
    assert not engine._loop.scheduler.sequences.requests and not engine._loop.has_work


def test_requests_are_checked_against_the_limits_that_were_set(llm: LLM) -> None:
    """While the batch had shrunk after a failure, valid requests were refused by the lowered limits."""
    loop = Loop(llm.model, llm.tokenizer, SERVING)
    loop.scheduler.config = replace(loop.scheduler.configured, max_sequences=1, token_budget=1)
    loop.add(llm.builder.request("four", "hello", replace(GREEDY, n=4)))
    found = [output for _ in range(200) if loop.has_work for output in loop.step()]
    assert {output.delta.index for output in found} == {0, 1, 2, 3}


def solo(llm: LLM, prompt: str, params: SamplingParams) -> list[Delta]:
    return list(llm.stream(prompt, params))


def test_a_callback_that_raises_is_a_warning_and_harms_nobody(path: Path, llm: LLM) -> None:
    """It ended the engine."""
    calls = itertools.count()

    def emit(event: Event) -> None:
        if next(calls) % 3:
            raise KeyError("a fault of the caller's")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Engine(path, serving=SERVING, emit=emit) as engine:
            streams = [engine.stream(text, GREEDY) for text in ("the quick", "hello")]
            assert [list(stream) for stream in streams] == [solo(llm, text, GREEDY) for text in ("the quick", "hello")]
    assert len([one for one in caught if "emit" in str(one.message)]) == 1
    with pytest.raises(ValueError, match="emit: expected a function"):
        Engine(path, emit="print")


class Weather:
    """Faults that come by chance: allocation errors while a step is built, read or evaluated."""

    def __init__(self, seed: int, chance: float):
        self.random, self.chance, self.count = random.Random(seed), chance, 0

    def strike(self) -> None:
        if self.random.random() < self.chance:
            self.count += 1
            raise self.random.choice((MemoryError("full"), RuntimeError("[malloc] Unable to allocate 9 bytes.")))


@pytest.mark.parametrize("seed", range(3))
def test_every_other_answer_is_its_solo_run_whatever_strikes(
    path: Path, llm: LLM, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Allocation errors, faulty grammars and callbacks, dropped readers, all at once beside running requests."""
    weather, rng = Weather(seed, 0.05), random.Random(seed)
    hidden_states, texts = llm.model.hidden_states, ["the quick brown", "hello there", "what is", "one and two", "fox"]
    want = {}
    for i in range(20):
        params = replace(GREEDY, temperature=rng.choice((0.0, 1.0)), seed=i, n=rng.choice((1, 1, 2)), max_tokens=20)
        want[i] = texts[i % 5], params, solo(llm, texts[i % 5], params)
    bits = {"strikes": 0}

    def emit(event: Event) -> None:
        if event.kind == "token" and event.start % 7 == 0:
            raise OSError("the log is full")

    warnings.simplefilter("ignore")
    with Engine(path, serving=SERVING, emit=emit) as engine:
        model, forms = engine.llm.model, engine._loop.runner.draw.forms

        def scarce(tokens: mx.array, cache: Any) -> mx.array:
            weather.strike()
            return type(model).hidden_states(model, tokens, cache)

        def faulty_bits(matchers: Any) -> Any:
            if threading.current_thread().name != "tiny-llm engine":
                return find_bits(matchers)
            bits["strikes"] += 1
            raise RuntimeError("a fault of the grammar")

        find_bits = forms.grammars.bits
        monkeypatch.setattr(model, "hidden_states", scarce)
        monkeypatch.setattr(forms.grammars, "bits", faulty_bits)
        streams = {}
        for i, (text, params, _) in want.items():
            streams[i] = engine.stream(text, params)
            if i % 4 == 0:
                formed = engine.stream("hello", replace(GREEDY, ignore_eos=False, structured=DIGITS))
                with pytest.raises((RuntimeError, MemoryError)):
                    list(formed)
            if i % 5 == 0:
                dropped = engine.stream("the lazy dog", replace(GREEDY, max_tokens=400))
                next(dropped)
                del dropped
        for i, (_, _, deltas) in want.items():
            got = list(streams[i])
            assert sorted(map(repr, got)) == sorted(map(repr, deltas)), i
        engine._loop.scheduler.check()
    assert weather.count and bits["strikes"] and hidden_states


@pytest.mark.parametrize("fault", ["bits", "consume_token", "empty"])
def test_a_form_at_fault_ends_its_own_request(llm: LLM, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    loop = Loop(llm.model, llm.tokenizer, SERVING)
    loop.add(llm.builder.request("bad", "hello", replace(GREEDY, ignore_eos=False, structured=DIGITS)))
    loop.add(llm.builder.request("formed", "hello", replace(GREEDY, ignore_eos=False, seed=1, structured=DIGITS)))
    loop.add(llm.builder.request("plain", "the quick", GREEDY))
    outputs = [output for _ in range(3) for output in loop.step()]
    form = loop.runner.draw.forms.rules["bad", 0]
    if fault == "bits":
        monkeypatch.setattr(form, "bits", lambda: 1 / 0)
    elif fault == "empty":
        form.matcher.consume_token(llm.encode("x")[0])
    else:
        monkeypatch.setattr(form, "follow", lambda token: 1 / 0)
    while loop.has_work:
        outputs += loop.step()
        loop.scheduler.check()
    (error,) = [output for output in outputs if output.error]
    assert error.request_id == "bad" and error.ended
    plain = [output.delta for output in outputs if output.request_id == "plain"]
    assert plain == solo(llm, "the quick", GREEDY)
    text = "".join(output.delta.text for output in outputs if output.request_id == "formed")
    assert text.isdigit() and len(loop.runner.draw.forms.rules) == 0


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "seed": 1}, {"beam_width": 3}, {"logprobs": 2}])
def test_logits_that_are_not_finite_end_their_request_alone(
    path: Path, llm: LLM, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    """The model wrote token 0 for ever, and its log-probabilities were NaN."""
    params = SamplingParams(**{"temperature": 0.0, "max_tokens": 12, **settings})
    loop, logits = Loop(llm.model, llm.tokenizer, SERVING), llm.model.logits
    poisoned: list[int] = []

    def overflown(hidden: mx.array) -> mx.array:
        rows = logits(hidden)
        if loop._running is None and poisoned:  # only while a step of "bad" alone is built
            return rows * mx.nan
        return rows

    monkeypatch.setattr(llm.model, "logits", overflown)
    poisoned.append(1)
    loop.add(llm.builder.request("bad", "hello", params))
    outputs = loop.step()
    poisoned.clear()
    loop.add(llm.builder.request("good", "the quick", GREEDY))
    while loop.has_work:
        outputs += loop.step()
    monkeypatch.undo()
    (error,) = [output for output in outputs if output.error]
    assert error.request_id == "bad" and isinstance(error.error, ArithmeticError)
    assert "--dtype bfloat16 or float32" in str(error.error)
    assert [output.delta for output in outputs if output.request_id == "good"] == solo(llm, "the quick", GREEDY)
    broken = load(path)
    broken.model.weights["norm"]["weight"] = broken.model.weights["norm"]["weight"] * mx.nan
    with pytest.raises(ArithmeticError, match="--dtype"):
        broken.generate("hello", params)


def test_a_second_stream_of_an_llm_ends_the_first(llm: LLM) -> None:
    """Both wrote into the one cache that is kept: wrong tokens without a word."""
    first, second = llm.stream("the quick", GREEDY), llm.stream("hello", GREEDY)
    next(first)
    got = [next(second)]
    with pytest.raises(RuntimeError, match="this stream was cancelled"):
        next(first)
    assert [*got, *second] == solo(llm, "hello", GREEDY)
    third = llm.stream("hello", GREEDY)
    next(third)
    third.close()
    assert solo(llm, "the quick", GREEDY) == solo(load(llm.path), "the quick", GREEDY)


def test_lists_do_not_disturb_a_stream(llm: LLM) -> None:
    want, stream = solo(llm, "the quick", GREEDY), llm.stream("the quick", GREEDY)
    got = [next(stream)]
    llm.generate(["hello", "what is"], max_tokens=3)
    assert [*got, *stream] == want


def test_a_reader_that_is_dropped_or_never_read_cancels_its_request(path: Path) -> None:
    events: list[Event] = []
    long = replace(GREEDY, max_tokens=480)
    with Engine(path, serving=SERVING, emit=events.append) as engine:
        never_read = engine.stream("hello", long)
        unread_async = engine.astream("hello", long)
        half_read = engine.stream("hello", long)
        next(half_read)
        del never_read, unread_async, half_read
        gc.collect()
        assert len(list(engine.stream("the quick", GREEDY))) == 30
        assert not engine._worker.recipients and not engine._loop.scheduler.sequences.requests
    *dropped, last = [event.note for event in events if event.kind == "finish"]
    assert last == "length" and set(dropped) == {"cancelled"}  # one dropped while its prompt is encoded never begins


def test_a_reader_that_is_slow_delays_nobody(engine: Engine) -> None:
    slow = engine.stream("hello", replace(GREEDY, max_tokens=200))
    next(slow)
    assert len(list(engine.stream("the quick", GREEDY))) == 30
    assert len(list(slow)) == 199


def test_closing_while_a_prompt_is_encoded_refuses_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request was put into the inbox of a thread that had ended, and waited for ever."""
    engine = Engine(path, serving=SERVING)
    encoding, closed = threading.Event(), threading.Event()
    prepare = RequestBuilder.request

    def slow(self: RequestBuilder, *args: Any) -> Any:
        request = prepare(self, *args)
        encoding.set()
        closed.wait(10)
        return request

    monkeypatch.setattr(RequestBuilder, "request", slow)
    found: list[BaseException] = []

    def ask() -> None:
        try:
            list(engine.stream("hello", GREEDY))
        except RuntimeError as error:
            found.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    encoding.wait(10)
    engine.close()
    closed.set()
    thread.join(10)
    assert not thread.is_alive() and "engine is closed" in str(found[0])


def test_those_behind_a_dying_thread_are_answered(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They hung: what stood in the inbox behind the fault was never looked at."""
    engine, reached, go_on = Engine(path, serving=SERVING), threading.Event(), threading.Event()

    def dying(self: Loop) -> Any:
        reached.set()
        go_on.wait(10)
        raise SystemError("the thread dies")

    monkeypatch.setattr(Loop, "step", dying)
    first = engine.stream("hello", GREEDY)
    reached.wait(10)
    behind = [engine.stream("hello", GREEDY), engine.stream("the quick", GREEDY)]
    go_on.set()
    for stream in [first, *behind]:
        with pytest.raises(RuntimeError, match="closed before the answer") as caught:
            list(stream)
        assert isinstance(caught.value.__cause__, SystemError)
    with pytest.raises(RuntimeError, match="the engine is closed after SystemError"):
        engine.stream("hello", GREEDY)
    engine.close()


def test_the_engine_may_be_closed_from_everywhere_at_once(path: Path) -> None:
    closing: list[Engine] = []
    engine = Engine(path, serving=SERVING, emit=lambda event: closing and closing[0].close())
    stream = engine.stream("hello", replace(GREEDY, max_tokens=400))
    next(stream)
    closing.append(engine)
    threads = [threading.Thread(target=engine.close) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads) and not engine._worker.thread.is_alive()
    with pytest.raises(RuntimeError, match="closed"):
        list(stream)


def test_an_event_loop_that_ends_leaves_nothing(engine: Engine) -> None:
    """600 calls of asyncio.run left 600 event loops alive, each held by a listener of the engine's."""

    async def ask(steps: int) -> weakref.ref:
        stream = engine.astream("hello", GREEDY)
        for _ in range(steps):
            await anext(stream)
        return weakref.ref(asyncio.get_running_loop())

    loops = [asyncio.run(ask(steps)) for steps in (0, 1, 5, 30) * 5]
    assert len(list(engine.stream("the quick", GREEDY))) == 30
    gc.collect()
    assert not [one for one in loops if one() is not None] and not engine._worker.recipients


def test_a_cancelled_task_cancels_its_request(engine: Engine) -> None:
    async def ask() -> None:
        task = asyncio.create_task(engine.agenerate("hello", replace(GREEDY, max_tokens=480)))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(ask())
    gc.collect()
    assert len(list(engine.stream("the quick", GREEDY))) == 30
    assert not engine._worker.recipients and not engine._loop.scheduler.sequences.requests


PROGRAMS = {
    "an engine, closed": "with Engine(PATH) as engine: engine.generate(['hello'], max_tokens=3)",
    "an engine, not closed": "engine = Engine(PATH); engine.generate(['hello'], max_tokens=3)",
    "an engine at work": "engine = Engine(PATH); next(engine.stream('hello', max_tokens=400, ignore_eos=True))",
    "a thread that loads": "run(lambda: load(PATH).generate('hello', max_tokens=3))",
    "a thread that asks": "llm = load(PATH); run(lambda: llm.generate('hello', max_tokens=3))",
    "a thread with a list": "llm = load(PATH); run(lambda: llm.generate(['hello', 'a'], max_tokens=3))",
}
HEAD = """
import sys, threading
from tiny_llm import load
from tiny_llm.engine.serving import Engine
PATH = sys.argv[1]
def run(work):
    threads = [threading.Thread(target=work)]
    [(thread.start(), thread.join()) for thread in threads]
"""


@pytest.mark.parametrize("what", PROGRAMS)
def test_a_program_ends_as_it_should(path: Path, what: str) -> None:
    """MLX aborted the process at exit: in about half of the runs, where a thread that had computed had ended."""
    command = [sys.executable, "-c", HEAD + PROGRAMS[what], str(path)]
    programs = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(3)]
    ended = [(program.communicate(timeout=60)[1], program.returncode) for program in programs]
    assert ended == [(b"", 0)] * 3


def test_an_llm_may_be_used_by_one_thread_after_another(llm: LLM) -> None:
    """What the kept cache still waited for had gone with the first thread: "There is no Stream(cpu, 1)"."""
    first = solo(llm, "the quick", replace(GREEDY, max_tokens=9))
    stop = replace(GREEDY, stop_token_ids=(first[4].token,))
    prompt, want = llm.encode("the quick"), []

    def ask(tokens: list[int]) -> None:
        want.append([delta.token for delta in llm.stream(tokens, stop)])

    for _ in range(3):
        thread = threading.Thread(target=ask, args=(prompt,))
        thread.start()
        thread.join()
        prompt = [*prompt, *want[-1], 5]
        ask(prompt)
        prompt = [*prompt, *want[-1], 7]
    fresh, again = load(llm.path), load(llm.path).encode("the quick")
    for tokens, tail in zip(want, (5, 7) * 3, strict=True):
        assert [delta.token for delta in fresh.stream(again, stop)] == tokens
        again = [*again, *tokens, tail]


def test_an_llm_computes_for_one_thread_at_a_time(llm: LLM) -> None:
    """Four threads on one LLM crashed the process."""
    found: list[BaseException] = []

    def ask_once(number: int) -> None:
        try:
            llm.generate(["a", "b"] if number % 2 else "hello", GREEDY)
        except RuntimeError as error:
            found.append(error)

    def ask(number: int) -> None:
        for _ in range(5):
            ask_once(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found and all("another" in str(error) for error in found), found
    assert solo(llm, "the quick", GREEDY) == solo(load(llm.path), "the quick", GREEDY)


@pytest.mark.parametrize("read", [0, 1])
def test_a_closed_stream_ends(engine: Engine, read: int) -> None:
    """Reading on waited for ever."""
    stream = engine.stream("hello", replace(GREEDY, max_tokens=400))
    for _ in range(read):
        next(stream)
    stream.close()
    assert len(list(stream)) < 400 and list(stream) == []

    async def ask() -> None:
        stream = engine.astream("hello", replace(GREEDY, max_tokens=400))
        for _ in range(read):
            await anext(stream)
        await stream.aclose()
        assert len([delta async for delta in stream]) < 400
        assert [delta async for delta in stream] == []

    asyncio.run(asyncio.wait_for(ask(), 20))


def test_all_readers_of_a_stream_meet_its_end(engine: Engine) -> None:
    """The second reader waited for ever once the first had seen the end."""
    stream, counts = engine.stream("hello", GREEDY), []
    threads = [threading.Thread(target=lambda: counts.append(len(list(stream)))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads) and sum(counts) == 30

    async def ask() -> list[int]:
        stream = engine.astream("hello", GREEDY)

        async def read() -> int:
            return len([delta async for delta in stream])

        return await asyncio.wait_for(asyncio.gather(read(), read(), read()), 20)

    assert sum(asyncio.run(ask())) == 30


def test_a_callback_that_asks_its_own_engine_is_refused(path: Path) -> None:
    """The engine's thread waited for itself, and so did everybody else."""
    engines: list[Engine] = []
    found: list[BaseException] = []

    def emit(event: Event) -> None:
        if event.kind == "finish" and engines:
            try:
                engines[0].generate(["hello"], GREEDY)
            except RuntimeError as error:
                found.append(error)

    with Engine(path, serving=SERVING, emit=emit) as engine:
        engines.append(engine)
        assert len(list(engine.stream("the quick", GREEDY))) == 30
    assert "emit can't ask the engine that calls it" in str(found[0])


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_a_callback_that_wants_to_exit_does_not(path: Path, error: BaseException) -> None:
    def emit(event: Event) -> None:
        if event.kind == "token":
            raise error

    with pytest.warns(RuntimeWarning, match="emit"), Engine(path, serving=SERVING, emit=emit) as engine:
        assert len(list(engine.stream("the quick", GREEDY))) == 30


class OddText(str):
    """A caller's own class of texts, which fails when it is compared."""

    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("not comparable")


class OddNumber(int):
    __hash__ = int.__hash__

    def __lt__(self, other: object) -> bool:
        raise RuntimeError("not comparable")

    def __mul__(self, other: object) -> int:
        raise RuntimeError("not to be multiplied")

    __rmul__ = __mul__


def test_values_of_a_callers_own_classes_become_plain(engine: Engine) -> None:
    """A tenant whose comparison raises ended the engine."""
    params = replace(GREEDY, max_tokens=4)
    answer = list(engine.stream("hello", params, tenant=OddText("default"), priority=OddNumber(3)))
    assert len(answer) == 4
    terms = engine._terms(params, {"tenant": OddText("a"), "priority": OddNumber(1)})
    request = engine._builder.served("odd", "hello", terms)
    assert type(request.tenant) is str and type(request.priority) is int


@pytest.mark.parametrize("top_p", [1e-46, 1e-300, 5e-324, 0.0])
def test_the_smallest_share_keeps_the_likeliest_token(llm: LLM, top_p: float) -> None:
    """It was 0 in float32, kept no token, and was taken for a fault of the model."""
    params = replace(GREEDY, temperature=1.0, top_p=top_p, seed=1)
    assert solo(llm, "the quick", params)[0].token == solo(llm, "the quick", GREEDY)[0].token


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("json_schema", '{"$ref": "#"}'),
        ("regex", r"[^\s\S]"),
        ("lark", "start: start"),
        ("json_schema", "false"),
        ("json_schema", "[]"),
        ("json_schema", "1"),
        ("json_schema", "NaN"),
        ("json_schema", "[" * 100_000),
        ("json_schema", '{"allOf": [' * 500 + "{}" + "]}" * 500),
        ("regex", "\ud800"),
    ],
)
def test_a_form_that_no_text_has_is_refused(engine: Engine, llm: LLM, kind: str, text: str) -> None:
    """The answer was empty, and its reason "stop"; or the error was the library's own."""
    for call in (engine.stream, partial(aread, engine), llm.stream):
        with pytest.raises(ValueError, match="structured: "):
            call("hello", SamplingParams(max_tokens=9, structured=Structured(kind, text)))


def test_true_is_a_schema_that_every_value_fits(llm: LLM) -> None:
    answer = llm.generate("hello", SamplingParams(max_tokens=200, seed=2, structured=Structured("json_schema", "true")))
    assert answer.finish_reason == "length" or json.loads(answer.text) is not ...


@pytest.mark.parametrize("call", [lambda p, x: load(p, config=x), lambda p, x: Engine(p, config=x)])
@pytest.mark.parametrize("config", ["x", {}, {"max_context": 3}, 5])
def test_a_config_of_another_kind_is_refused(path: Path, call: Any, config: Any) -> None:
    with pytest.raises(ValueError, match="config: expected EngineConfig, found"):
        call(path, config)
    with pytest.raises(ValueError, match="serving: expected ServingConfig, found"):
        Engine(path, serving=config)


def test_a_template_for_what_is_no_chat_is_refused(engine: Engine, llm: LLM) -> None:
    """It was ignored in silence."""
    for prompt in ("hello", [1, 2]):
        for call in (engine.stream, llm.stream):
            with pytest.raises(ValueError, match="template: only chat messages"):
                call(prompt, GREEDY, template={"tools": []})
    with pytest.raises(ValueError, match="template: expected the chat template's settings"):
        engine.stream([{"role": "user", "content": "a"}], GREEDY, template={1: 2})


def test_more_messages_than_the_context_has_tokens_are_refused_at_once(engine: Engine) -> None:
    chat = [{"role": "user", "content": "a"}] * 300_000
    begin = time.perf_counter()
    with pytest.raises(ValueError, match="at least 300000 tokens leave no room"):
        engine.stream(chat, GREEDY)
    assert time.perf_counter() - begin < 1


def test_an_end_beyond_the_vocabulary_is_refused(tmp_path: Path) -> None:
    """No answer could ever have ended there."""
    directory = make_model(tmp_path / "model")
    write_json(directory / "generation_config.json", {"eos_token_id": [314, 99999]})
    with pytest.raises(ValueError, match=r"eos_token_id: expected ids below vocab_size \(320\), found \[99999\]"):
        load(directory)


def test_a_forked_process_is_told_that_the_engine_is_not_its_own(engine: Engine) -> None:
    """It waited for a thread that it does not have."""
    child = os.fork()
    if child == 0:
        try:
            engine.stream("hello", GREEDY)
        except RuntimeError as error:
            os._exit(0 if "another process" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("folder", ["missing", "/proc"])
def test_without_a_folder_for_temporary_files_it_answers(path: Path, folder: str) -> None:
    """MLX's compiler of loops failed with an internal error."""
    folder = str(path / folder)  # /proc stays what it is
    program = HEAD + "print(load(PATH).generate('hello', max_tokens=3, temperature=0).tokens)"
    environment = {**os.environ, "TMPDIR": folder}
    command = [sys.executable, "-c", program, str(path)]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert ended.returncode == 0 and ended.stdout.count(",") == 2
    assert f"TMPDIR={folder}: no temporary files can be written there" in ended.stderr


def test_a_cache_is_saved_and_loaded_between_steps_only(llm: LLM, tmp_path: Path) -> None:
    """Saving while another thread computed crashed the process; loading changed the cache under an open stream."""
    file, found, going = tmp_path / "cache.safetensors", [], threading.Event()
    llm.generate("the quick", GREEDY)
    llm.save_cache(file)

    def save() -> None:
        while not going.is_set():
            try:
                llm.save_cache(file)
            except RuntimeError as error:
                found.append(error)
            time.sleep(0.001)

    thread = threading.Thread(target=save)
    thread.start()
    for i in range(20):
        with contextlib.suppress(RuntimeError):
            llm.generate(("hello", "the quick", "what is")[i % 3], replace(GREEDY, max_tokens=60))
    going.set()
    thread.join()
    assert found and all("another thread" in str(error) for error in found)
    assert file.stat().st_size > 10_000, "a cache was written over by an empty one"
    stream = llm.stream("the quick", GREEDY)
    next(stream)
    llm.load_cache(file)
    with pytest.raises(RuntimeError, match="this stream was cancelled"):
        list(stream)
    assert solo(llm, "the quick", GREEDY) == solo(load(llm.path), "the quick", GREEDY)


def test_all_readers_learn_that_the_engine_was_closed(path: Path) -> None:
    """One did, and the others met what looked like the end of the answer."""
    engine, found = Engine(path, serving=SERVING), []
    stream = engine.stream("hello", replace(GREEDY, max_tokens=400))
    next(stream)

    def read() -> None:
        try:
            list(stream)
        except RuntimeError as error:
            found.append(str(error))

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    engine.close()
    for thread in threads:
        thread.join(20)
    assert found == ["the engine was closed before the answer was complete"] * 3


def test_a_cancelled_task_cancels_its_request_though_its_error_is_kept(engine: Engine) -> None:
    async def ask() -> list[Any]:
        task = asyncio.create_task(engine.agenerate("hello", replace(GREEDY, max_tokens=480)))
        await asyncio.sleep(0.05)
        task.cancel()
        return await asyncio.gather(task, return_exceptions=True)

    kept = asyncio.run(ask())
    assert len(list(engine.stream("the quick", GREEDY))) == 30
    assert kept and not engine._worker.recipients

"""The engine's thread, and `LLM.generate` for many prompts: what callers see from outside."""

import asyncio
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support import make_model
from tiny_llm import LLM, SamplingParams, load
from tiny_llm.config import EngineConfig, SchedulerConfig
from tiny_llm.config.serving import ServingConfig
from tiny_llm.engine.events import Event
from tiny_llm.engine.serving import Engine

GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
LONG = replace(GREEDY, max_tokens=400)
CHAT = [{"role": "user", "content": "hello there"}]
PROMPTS = ["the quick", "the lazy dog", CHAT, [5, 6, 7]]
SERVING = ServingConfig(kv_bytes=2**20, block_size=8, scheduler=SchedulerConfig(token_budget=64, max_sequences=8))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def llm(path: Path) -> LLM:
    return load(path)


@pytest.fixture(scope="module")
def engine(path: Path):
    with Engine(path, serving=SERVING) as engine:
        yield engine


def test_many_prompts_at_once(llm: LLM, engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    alone = [llm.generate(prompt, GREEDY) for prompt in PROMPTS]
    together = llm.generate(PROMPTS, GREEDY, progress=True)
    assert [c.tokens for c in together] == [c.tokens for c in alone]
    assert [c.text for c in together] == [c.text for c in alone]
    assert "4/4 · 48 tokens" in capsys.readouterr().err
    served = engine.generate(PROMPTS, GREEDY, progress=True)
    assert [c.text for (c,) in served] == [c.text for c in alone]
    assert "4/4" in capsys.readouterr().err
    stats = together[2].stats
    assert (stats.prompt_tokens, stats.generated_tokens) == (len(llm.encode(CHAT)), 12)
    assert stats.time_to_first_token > 0 and stats.decode_time > 0


def test_when_one_of_many_fails_the_others_are_cancelled(path: Path) -> None:
    """They were computed to their end though nobody could read them any more."""
    events: list[Event] = []
    with Engine(path, serving=replace(SERVING, kv_bytes=2**18), emit=events.append) as engine:
        for bad, words in (([1] * 600, "leave no room"), ([1] * 300, "the pool has 32")):
            with pytest.raises(ValueError, match=words):
                engine.generate(["the quick", bad, "the lazy dog"], replace(LONG, max_tokens=200))
        [[answer]] = engine.generate(["the quick"], GREEDY)
    assert answer.finish_reason == "length"
    ended = [(e.note, e.tokens) for e in events if e.kind == "finish"]
    assert ended[-1] == ("length", 12) and {note for note, _ in ended[:-1]} <= {"cancelled"}


@pytest.mark.parametrize("prompt", ["hello", CHAT, [1, 2, 3]])
def test_one_prompt_is_not_taken_for_many(engine: Engine, prompt) -> None:
    with pytest.raises(ValueError, match="expected a list of prompts, found one"):
        engine.generate(prompt, GREEDY)
    assert engine.generate([], GREEDY) == []


def test_max_tokens_beyond_the_context_mean_the_same_everywhere(path: Path, llm: LLM) -> None:
    """They were cut to the context for one prompt and refused for a list of one."""
    settings = {"max_tokens": 9999, "ignore_eos": True, "seed": 1}
    alone = llm.generate("the quick", **settings)
    assert len(alone.tokens) == 512 - len(llm.encode("the quick")) and alone.finish_reason == "length"
    assert [one.tokens for one in llm.generate(["the quick"], **settings)] == [alone.tokens]
    with Engine(path) as engine:
        [[served]] = engine.generate(["the quick"], **settings)
    assert served.tokens == alone.tokens


def test_a_miss_within_the_template_is_told(path: Path) -> None:
    """A prefix ends where the tools begin to differ, and the event log says so; one in the user's words is another."""
    tools = [{"type": "function", "function": {"name": name, "parameters": {}}} for name in ("first", "second")]
    system = {"role": "system", "content": "the quick brown fox jumps over the lazy dog"}
    asks = [[system, {"role": "user", "content": text}] for text in ("hello there", "hello you")]
    events: list[Event] = []
    with Engine(path, serving=SERVING, emit=events.append) as engine:
        for chat, offered in ((asks[0], None), (asks[1], None), (asks[0], tools[:1]), (asks[0], tools[1:])):
            engine.generate([chat], GREEDY, template={"tools": offered} if offered else {})
        tokens = [engine.llm.encode(chat) for chat in asks]
    shared = next(i for i, (a, b) in enumerate(zip(*tokens, strict=False)) if a != b)
    first, words, other, again = [e.note for e in events if e.kind == "admit"]
    assert first == "first request" and words == f"diverged at token {shared}"
    assert other.startswith(
        "different system prompt, tools or template settings: diverged at token "
    ) and again.startswith(other[:24])


def test_n_answers_to_each_prompt_lie_flat(llm: LLM) -> None:
    params = SamplingParams(n=2, max_tokens=5, seed=3)
    assert [c.index for c in llm.generate(PROMPTS[:2], params)] == [0, 1, 0, 1]
    beams = SamplingParams(beam_width=2, n=2, max_tokens=5)
    assert len(llm.generate(PROMPTS[:2], beams)) == 4
    assert len(llm.generate(PROMPTS[:2], replace(params, n=40, max_tokens=2))) == 80  # more than usual at once


def test_many_prompts_keep_to_the_context_and_the_cache(path: Path) -> None:
    short = load(path, config=EngineConfig(max_context=16))
    assert [len(c.tokens) for c in short.generate([[1] * 10, [2] * 15], GREEDY)] == [6, 1]
    with pytest.raises(ValueError, match="leave no room"):
        short.generate([[1], [2] * 16], GREEDY)


def test_streams_from_several_threads(llm: LLM, engine: Engine) -> None:
    texts: dict[int, str] = {}

    def ask(number: int) -> None:
        params = SamplingParams(max_tokens=10, ignore_eos=True, seed=number)
        texts[number] = "".join(delta.text for delta in engine.stream("the quick", params, tenant=f"t{number % 2}"))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for number, text in texts.items():
        assert text == llm.generate("the quick", SamplingParams(max_tokens=10, ignore_eos=True, seed=number)).text
    assert len(texts) == 6


def test_a_deadline_counts_from_the_call(path: Path) -> None:
    """A deadline beyond `patience` changes nothing: the request that came first goes first."""
    events: list[Event] = []
    limits = SchedulerConfig(token_budget=64, max_sequences=1, patience=2.0)
    with Engine(path, serving=replace(SERVING, scheduler=limits), emit=events.append) as engine:
        busy = engine.stream("the quick", replace(LONG, max_tokens=100))
        next(busy)
        waiting = [engine.stream("hello", GREEDY), engine.stream("hello", GREEDY, deadline=3.0)]
        assert [len(list(stream)) for stream in [*waiting, busy]] == [12, 12, 99]
    names = [event.request for event in events if event.kind == "admit"]
    assert names == sorted(names)


def test_the_async_form(llm: LLM, engine: Engine) -> None:
    async def one(prompt) -> str:
        return "".join([delta.text async for delta in engine.astream(prompt, GREEDY)])

    async def ask() -> tuple[list[str], list]:
        return await asyncio.gather(*map(one, PROMPTS)), await engine.agenerate("the quick", GREEDY, priority=3)

    texts, whole = asyncio.run(ask())
    assert texts == [llm.generate(prompt, GREEDY).text for prompt in PROMPTS]
    assert [completion.text for completion in whole] == texts[:1]


def test_leaving_a_stream_frees_its_blocks(path: Path) -> None:
    events: list[Event] = []
    with Engine(path, serving=SERVING, emit=events.append) as engine:
        stream = engine.stream("the quick", LONG)
        next(stream)
        stream.close()

        async def leave() -> None:
            async for _ in engine.astream("the lazy", LONG):
                break

        asyncio.run(leave())
        assert engine.generate(["the dog"], GREEDY)
    assert [event.note for event in events if event.kind == "finish"] == ["cancelled", "cancelled", "length"]


def test_refusals_reach_the_caller_and_nobody_else(engine: Engine) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        engine.stream([])
    with pytest.raises(ValueError, match="temprature: unknown"):
        engine.stream("a", temprature=1)
    with pytest.raises(ValueError, match="deadline"):
        next(engine.stream("a", GREEDY, deadline=float("nan")))
    with pytest.raises(ValueError, match=r"at most max_sequences \(8\)"):
        next(engine.stream("a", replace(GREEDY, n=9)))
    assert engine.generate(["a"], max_tokens=3, ignore_eos=True)[0][0].finish_reason == "length"


def test_what_fails_in_loading_is_raised(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere"):
        Engine(tmp_path / "nowhere")


def test_a_closed_engine_says_so(path: Path) -> None:
    engine = Engine(path, serving=SERVING)
    stream = engine.stream("a", LONG)
    next(stream)
    engine.close()
    engine.close()
    with pytest.raises(RuntimeError, match="closed before the answer"):
        list(stream)
    with pytest.raises(RuntimeError, match="the engine is closed"):
        engine.stream("a", GREEDY)


def test_a_fault_of_the_thread_reaches_who_waits(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(path, serving=SERVING)
    stream = engine.stream("a", LONG)
    next(stream)
    monkeypatch.setattr("tiny_llm.engine.loop.Loop.step", lambda _: 1 / 0)
    with pytest.raises(RuntimeError, match="closed before") as caught:
        list(stream)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        engine.stream("a", GREEDY)


def test_a_search_is_not_what_a_reader_left_unread(path: Path) -> None:
    """All its tokens come at once: the request failed, however fast the reader was."""
    with Engine(path, serving=ServingConfig(max_unread=5)) as engine:
        params = SamplingParams(beam_width=2, max_tokens=20, ignore_eos=True)
        stream = engine.stream("hello", params)
        assert sum(delta.token is not None for delta in stream) == 20
        assert stream.stats.decode_tps == stream.stats.longest_gap == 0


def test_an_error_names_the_prompt_of_a_list(llm: LLM, engine: Engine) -> None:
    for ask in (llm.generate, engine.generate):
        with pytest.raises(ValueError, match=r"^prompts\[1\]: prompt: expected at least one token"):
            ask(["hello", ""])
    assert engine.generate(()) == []

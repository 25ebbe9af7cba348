"""One path from prompt to text: whatever cache holds K and V and whoever asks, an answer is that of `decode.generate`.

The oracle is the plain loop on a fresh cache of the same kind.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from tests.support import make_model
from tiny_llm import LLM, SamplingParams, load
from tiny_llm.cache.choose import new_cache
from tiny_llm.cache.whole import WholeCaches
from tiny_llm.config import EngineConfig, SchedulerConfig, Structured
from tiny_llm.config.serving import ServingConfig
from tiny_llm.decode import generate
from tiny_llm.decode.beam import beam_search, deltas_of_beams
from tiny_llm.decode.generate import LAST
from tiny_llm.decode.text import Delta, stop_tokens
from tiny_llm.engine.answers import Completion
from tiny_llm.engine.llm import OvertakenError
from tiny_llm.engine.loop import Loop, Output
from tiny_llm.engine.request import Request
from tiny_llm.engine.serving import Engine

KINDS = {
    "contiguous": EngineConfig(),
    "rotating": EngineConfig(cache="rotating", window=24, sinks=2),
    "8 bits": EngineConfig(cache="quantized"),
    "4 bits": EngineConfig(cache="quantized", kv_bits=4),
    "rotating, 8 bits": EngineConfig(cache="rotating", window=24, sinks=2, kv_bits=8),
}
PACKED = [kind for kind in KINDS if "bits" in kind]
GREEDY = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
SEEDED = SamplingParams(temperature=0.8, top_p=0.9, max_tokens=20, ignore_eos=True, seed=5)
FORM = re.compile(r"[a-f]{3,6}-\d\d")
ASKS = {
    "greedy": GREEDY,
    "seeded": SEEDED,
    "n": replace(SEEDED, n=3),
    "beams": SamplingParams(beam_width=3, n=2, max_tokens=12, length_penalty=0.7),
    "logprobs": replace(SEEDED, logprobs=3),
    "penalties": replace(SEEDED, repetition_penalty=1.2, frequency_penalty=0.5, presence_penalty=0.3),
    "stop string": replace(SEEDED, max_tokens=60, stop=("e", "th", "qu")),
    "stop token": replace(SEEDED, max_tokens=60, stop_token_ids=tuple(range(40))),
    "one token": replace(GREEDY, max_tokens=1),
}
PROMPTS = [
    [(7 * i) % 250 for i in range(5)],
    [(11 * i + 3) % 250 for i in range(40)],
    [(11 * i + 3) % 250 for i in range(33)] + [(5 * i) % 250 for i in range(40)],  # begins like the one before
]
LONG = [(13 * i) % 250 for i in range(300)]  # beyond a ring's window and its spare slots
CHAT = [{"role": "user", "content": "hello there"}]
SERVING = ServingConfig(scheduler=SchedulerConfig(token_budget=48, max_sequences=6))


@dataclass(frozen=True)
class House:
    """A model under one kind of cache, as both façades run it."""

    kind: str
    llm: LLM
    engine: Engine

    def ask(self, facade: str, params: SamplingParams) -> list[list[Completion]]:
        """The answers to each of PROMPTS."""
        if facade == "engine":
            return self.engine.generate(PROMPTS, params)
        if facade == "list":
            flat = self.llm.generate(PROMPTS, params)
            assert isinstance(flat, list)
            return [flat[i : i + params.n] for i in range(0, len(flat), params.n)]
        found = [self.llm.generate(prompt, params) for prompt in PROMPTS]
        return [one if isinstance(one, list) else [one] for one in found]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module", params=KINDS)
def house(path: Path, request: pytest.FixtureRequest) -> Iterator[House]:
    config = KINDS[request.param]
    with Engine(path, config=config, serving=SERVING) as engine:
        yield House(request.param, load(path, config=config), engine)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def oracle(llm: LLM, tokens: list[int], params: SamplingParams) -> dict[int, list[Delta]]:
    """Each answer of the plain loop, on a fresh cache."""
    cache = new_cache(llm.config, llm.model.ops, llm.engine_config)
    if params.beam_width > 1:
        beams = beam_search(
            llm.model,
            tokens,
            cache,
            width=params.beam_width,
            limit=params.max_tokens,
            stops=stop_tokens(llm.tokenizer, params),
            length_penalty=params.length_penalty,
        )
        deltas = deltas_of_beams(beams[: params.n], llm.tokenizer)
    else:
        deltas = generate.stream(llm.model, llm.tokenizer, tokens, params, cache)
    found: dict[int, list[Delta]] = {}
    for delta in deltas:
        found.setdefault(delta.index, []).append(delta)
    return found


def margin(llm: LLM, tokens: list[int]) -> float:
    """How far apart the two best logits after these tokens are, on a fresh cache of the same kind."""
    cache = new_cache(llm.config, llm.model.ops, llm.engine_config)
    logits = np.array(llm.model(mx.array(tokens), cache, LAST))[0]
    second, first = np.sort(logits)[-2:]
    return float(first - second)


def assert_same(llm: LLM, prompt: list[int], mine: Completion, want: list[Delta]) -> None:
    """Equal tokens, text and end; or a first difference where the two best logits lie within rounding.

    Packed numbers jump by a whole step where a sum in another order rounds the other way.
    """
    tokens = [delta.token for delta in want]
    if mine.tokens == tokens:
        assert mine.text == "".join(delta.text for delta in want)
        assert mine.finish_reason == want[-1].finish_reason
        return
    at = next((i for i, (a, b) in enumerate(zip(mine.tokens, tokens, strict=False)) if a != b), None)
    assert at is not None, f"one ends earlier: {mine.tokens} and {tokens}"
    close = 0.05 if llm.engine_config.packed_bits else 1e-4
    found = margin(llm, [*prompt, *tokens[:at]])
    assert found < close, f"differs at token {at} by a margin of {found}: {mine.tokens} and {tokens}"


@pytest.mark.parametrize("facade", ["single", "list", "engine"])
@pytest.mark.parametrize("ask", ASKS)
def test_every_answer_is_that_of_the_plain_loop(house: House, ask: str, facade: str) -> None:
    params = ASKS[ask]
    answers = house.ask(facade, params)
    assert len(answers) == len(PROMPTS)
    for prompt, mine in zip(PROMPTS, answers, strict=True):
        want = oracle(house.llm, prompt, params)
        assert [answer.index for answer in mine] == sorted(want) == list(range(params.n))
        for answer in mine:
            assert_same(house.llm, prompt, answer, want[answer.index])


@pytest.mark.parametrize("facade", ["single", "list", "engine"])
def test_log_probabilities_are_those_of_the_plain_loop(house: House, facade: str) -> None:
    params = replace(GREEDY, logprobs=3)
    close = 0.05 if house.kind in PACKED else 1e-4
    compared = 0
    for prompt, (mine,) in zip(PROMPTS, house.ask(facade, params), strict=True):
        want = oracle(house.llm, prompt, params)[0]
        if mine.tokens != [delta.token for delta in want]:
            continue  # by rounding, as the matrix above allows
        for got, delta in zip(mine.logprobs, want, strict=True):
            assert got.logprob == pytest.approx(delta.logprobs.logprob, abs=close)
            assert len(got.top) == 3
            assert got.top[0][1] == pytest.approx(delta.logprobs.top[0][1], abs=close)
            compared += 1
    assert compared >= 12


def test_structured_answers_have_their_form_and_agree(house: House) -> None:
    pytest.importorskip("llguidance")
    params = SamplingParams(temperature=0.8, max_tokens=40, seed=3, structured=Structured("regex", FORM.pattern))
    single, *others = (house.ask(facade, params) for facade in ("single", "list", "engine"))
    for (answer,) in single:
        assert FORM.fullmatch(answer.text), answer.text
        assert answer.finish_reason == "stop"
    for answers in others:
        assert all(FORM.fullmatch(answer.text) for (answer,) in answers)
        if house.kind not in PACKED:
            assert [answer.tokens for (answer,) in answers] == [answer.tokens for (answer,) in single]


def test_a_text_beyond_the_window_is_that_of_the_plain_loop(house: House) -> None:
    """The prompt fills a ring more than once; then the answer is gone on from, and a short beginning asked for."""
    single = house.llm.generate(LONG, GREEDY)
    longer = [*LONG, *single.tokens, 5]
    for prompt in (LONG, longer, LONG[:40], longer):
        want = oracle(house.llm, prompt, GREEDY)[0]
        (together,) = house.llm.generate([prompt], GREEDY)
        ((served,),) = house.engine.generate([prompt], GREEDY)
        for answer in (house.llm.generate(prompt, GREEDY), together, served):
            assert_same(house.llm, prompt, answer, want)


def test_the_second_turn_of_a_chat_finds_its_prefix(path: Path, kind: str) -> None:
    llm = load(path, config=KINDS[kind])
    with Engine(path, config=KINDS[kind], serving=replace(SERVING, block_size=BLOCK_SIZES[kind])) as engine:
        first = llm.generate(CHAT, GREEDY)
        ((served,),) = engine.generate([CHAT], GREEDY)
        turns = [*CHAT, {"role": "assistant", "content": first.text}, {"role": "user", "content": "the fox"}]
        second = llm.generate(turns, GREEDY)
        ((again,),) = engine.generate([turns], GREEDY)
    head = first.stats.prompt_tokens - 4  # up to where the template ends a turn
    assert served.stats.cached_tokens == 0
    assert second.stats.cached_tokens >= head
    assert again.stats.cached_tokens >= head - BLOCK_SIZES[kind] + 1  # a pool shares whole blocks
    for answer in (second, again):
        assert_same(llm, llm.encode(turns), answer, oracle(llm, llm.encode(turns), GREEDY)[0])


BLOCK_SIZES = {kind: 32 if KINDS[kind].cache == "rotating" else 4 for kind in KINDS}


def test_a_ring_that_has_moved_on_is_computed_anew(path: Path) -> None:
    """What stood at its beginning is gone; the answer is right all the same, and nothing counts as cached."""
    llm = load(path, config=KINDS["rotating"])
    llm.generate(LONG, GREEDY)
    answer = llm.generate(LONG[:20], GREEDY)
    assert answer.stats.cached_tokens == 0
    assert_same(llm, LONG[:20], answer, oracle(llm, LONG[:20], GREEDY)[0])


@pytest.mark.parametrize("ask", ["n", "beams"])
def test_several_answers_after_a_chat_keep_its_prefix(path: Path, kind: str, ask: str) -> None:
    llm = load(path, config=KINDS[kind])
    prompt = PROMPTS[1]
    first = llm.generate(prompt, GREEDY)
    longer = [*prompt, *first.tokens, 5]
    several = llm.generate(longer, ASKS[ask])
    assert {answer.stats.cached_tokens for answer in several} == {len(longer) - 2}
    want = oracle(llm, longer, ASKS[ask])
    for answer in several:
        assert_same(llm, longer, answer, want[answer.index])
    once_more = llm.generate(longer, GREEDY)
    assert once_more.stats.cached_tokens == len(longer) - 1
    assert_same(llm, longer, once_more, oracle(llm, longer, GREEDY)[0])


def test_a_cache_file_is_found_by_another_run(path: Path, kind: str, tmp_path: Path) -> None:
    llm, other = load(path, config=KINDS[kind]), load(path, config=KINDS[kind])
    first = llm.generate(LONG, GREEDY)
    llm.save_cache(tmp_path / "prompt.safetensors")
    other.load_cache(tmp_path / "prompt.safetensors")
    longer = [*LONG, *first.tokens, 5]
    answer = other.generate(longer, GREEDY)
    assert answer.stats.cached_tokens == len(longer) - 2
    assert_same(llm, longer, answer, oracle(llm, longer, GREEDY)[0])


def test_saving_ends_an_open_stream(path: Path, kind: str, tmp_path: Path) -> None:
    """Its request was cancelled, and the stream waited for a token for ever."""
    llm, other = load(path, config=KINDS[kind]), load(path, config=KINDS[kind])
    stream = llm.stream(PROMPTS[2], GREEDY)
    for _ in range(4):
        next(stream)
    llm.save_cache(tmp_path / "prompt.safetensors")
    with pytest.raises(OvertakenError, match="this stream was cancelled"):
        next(stream)
    other.load_cache(tmp_path / "prompt.safetensors")
    want = oracle(llm, PROMPTS[2], GREEDY)[0]
    for one in (llm, other):
        answer = one.generate(PROMPTS[2], GREEDY)
        assert answer.stats.cached_tokens >= len(PROMPTS[2]) - 1
        assert_same(llm, PROMPTS[2], answer, want)


def test_two_models_answer_in_turns(path: Path, kind: str) -> None:
    one, other = load(path, config=KINDS[kind]), load(path, config=KINDS[kind])
    pairs = zip(one.stream(PROMPTS[1], GREEDY), other.stream(PROMPTS[2], SEEDED), strict=True)
    mine, theirs = zip(*pairs, strict=True)
    assert [d.token for d in mine] == one.generate(PROMPTS[1], GREEDY).tokens
    assert [d.token for d in theirs] == other.generate(PROMPTS[2], SEEDED).tokens
    assert [d.token for d in mine] == [d.token for d in oracle(one, PROMPTS[1], GREEDY)[0]]


# Preemption, cancelled requests and steps that fail, on whole caches.


def make_loop(llm: LLM, num_caches: int, emit=None, **limits: int) -> Loop:
    """A loop on so many whole caches: fewer than the sequences would like."""
    store = WholeCaches(
        lambda: new_cache(llm.config, llm.model.ops, llm.engine_config), num_caches, llm.max_context, kept=1
    )
    scheduler = SchedulerConfig(**{"token_budget": 48, "max_sequences": 6, **limits})
    return Loop(
        llm.model, llm.tokenizer, ServingConfig(scheduler=scheduler), emit, engine=llm.engine_config, store=store
    )


def requests_of(llm: LLM, *asks: str) -> list[Request]:
    """A request for each ask, with the prompts in turn."""
    found = []
    for i, ask in enumerate(asks):
        stops = stop_tokens(llm.tokenizer, ASKS[ask])
        found.append(Request(f"{i}", tuple(PROMPTS[i % 3]), ASKS[ask], stop_tokens=stops))
    return found


def run(loop: Loop) -> list[Output]:
    """Everything that the loop gives; its bookkeeping is checked after each step."""
    outputs: list[Output] = []
    for _ in range(2000):
        if not loop.has_work:
            return outputs
        outputs += loop.step()
        loop.scheduler.check()
        held = [block for block in loop.store.caches if loop.scheduler.blocks.in_use(block)]
        assert len(held) <= loop.store.num_blocks
    raise AssertionError("the loop does not end")


def assert_answers(llm: LLM, one: Request, outputs: list[Output]) -> None:
    want = oracle(llm, list(one.tokens), one.params)
    for index, deltas in want.items():
        mine = [o.delta for o in outputs if o.request_id == one.id and o.delta and o.delta.index == index]
        text = "".join(delta.text for delta in mine)
        assert mine, f"{one.id}.{index} has no answer"
        got = Completion(text, [delta.token for delta in mine], mine[-1].finish_reason, index, None, None)
        assert_same(llm, list(one.tokens), got, deltas)


def test_preempted_sequences_answer_the_same(path: Path, kind: str) -> None:
    llm, events = load(path, config=KINDS[kind]), []
    loop = make_loop(llm, num_caches=2, emit=events.append)
    asked = requests_of(llm, "n", "greedy", "n", "seeded", "n")
    for one in asked:
        loop.add(one)
    outputs = run(loop)
    for one in asked:
        assert_answers(llm, one, outputs)
    kinds = {event.kind for event in events}
    assert {"copy", "preempt"} <= kinds
    assert loop.scheduler.blocks.num_available == 2


def test_searches_on_few_caches_answer_the_same(path: Path, kind: str) -> None:
    llm, events = load(path, config=KINDS[kind]), []
    loop = make_loop(llm, num_caches=7, emit=events.append)
    asked = requests_of(llm, "beams", "n", "beams", "greedy")
    for one in asked:
        loop.add(one)
    outputs = run(loop)
    for one in asked:
        assert_answers(llm, one, outputs)
    assert {"branch", "copy"} <= {event.kind for event in events}


def test_cancelled_requests_leave_the_others_as_they_are(path: Path, kind: str) -> None:
    llm = load(path, config=KINDS[kind])
    loop = make_loop(llm, num_caches=13)
    asked = requests_of(llm, "n", "greedy", "beams", "seeded")
    for one in asked:
        loop.add(one)
    outputs = [output for _ in range(5) for output in loop.step()]
    assert loop.cancel("0") and loop.cancel("2")
    loop.scheduler.check()
    outputs += run(loop)
    for one in (asked[1], asked[3]):
        assert_answers(llm, one, outputs)
    again = replace(asked[0], id="again")  # goes on from what was kept, whatever that is
    loop.add(again)
    assert_answers(llm, again, run(loop))
    assert loop.scheduler.blocks.num_available == 13


@pytest.mark.parametrize("where", [0, 1, 4, 9])
def test_a_step_that_fails_once_loses_nothing(
    path: Path, kind: str, where: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of a step is written when it fails: every cache is dropped and computed again."""
    llm, count = load(path, config=KINDS[kind]), iter(range(10**6))
    loop = make_loop(llm, num_caches=13)
    hidden_states = llm.model.hidden_states

    def failing(tokens: mx.array, cache):
        number = next(count)
        if where <= number < where + 2:  # where a step is prepared first, its second building counts
            cache.begin(len(tokens))
            raise RuntimeError("a fault")
        return hidden_states(tokens, cache)

    monkeypatch.setattr(llm.model, "hidden_states", failing)
    asked = requests_of(llm, "n", "greedy", "beams", "seeded")
    for one in asked:
        loop.add(one)
    outputs = run(loop)
    monkeypatch.undo()
    assert not any(output.error for output in outputs)
    assert next(count) > where + 2
    for one in asked:
        assert_answers(llm, one, outputs)


def test_a_single_prompt_survives_a_step_that_fails_once(
    path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm, count = load(path, config=KINDS[kind]), iter(range(10**6))
    hidden_states = llm.model.hidden_states

    def failing(tokens: mx.array, cache):
        if next(count) in (6, 7):
            raise MemoryError("full")
        return hidden_states(tokens, cache)

    with monkeypatch.context() as patch:
        patch.setattr(llm.model, "hidden_states", failing)
        answer = llm.generate(PROMPTS[1], GREEDY)
    assert_same(llm, PROMPTS[1], answer, oracle(llm, PROMPTS[1], GREEDY)[0])
    longer = [*PROMPTS[1], *answer.tokens, 5]
    after = llm.generate(longer, GREEDY)
    assert after.stats.cached_tokens == len(longer) - 2
    assert_same(llm, longer, after, oracle(llm, longer, GREEDY)[0])


# Settings that a store can't honour are refused by name.


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kv_bytes": 2**20}, "kv_bytes: rotating caches have no pool of pages, found 1048576"),
        ({"disk_folder": "somewhere"}, "disk_folder: rotating caches have no pool of pages, found 'somewhere'"),
        ({"block_size": 16}, "block_size: rotating caches have no pool of pages, found 16"),
    ],
)
def test_rotating_caches_refuse_the_settings_of_a_pool(path: Path, settings: dict, words: str) -> None:
    for kind in ("rotating", "rotating, 8 bits"):
        with pytest.raises(ValueError, match=words):
            Engine(path, config=KINDS[kind], serving=ServingConfig(**settings))


def test_a_pool_too_small_for_a_block_is_refused(path: Path) -> None:
    for kind in ("contiguous", "8 bits"):
        with pytest.raises(ValueError, match="KV budget: expected at least"):
            Engine(path, config=KINDS[kind], serving=ServingConfig(kv_bytes=100))


@pytest.mark.parametrize("kind", ["contiguous", "rotating", "8 bits"])
def test_without_a_prefix_cache_nothing_is_found_again(path: Path, kind: str) -> None:
    serving = ServingConfig(prefix_cache=False, scheduler=SchedulerConfig(token_budget=48, max_sequences=6))
    with Engine(path, config=KINDS[kind], serving=serving) as engine:
        answers = [engine.generate([LONG], GREEDY)[0][0] for _ in range(2)]
    assert [answer.stats.cached_tokens for answer in answers] == [0, 0]
    assert answers[0].tokens == answers[1].tokens


@pytest.mark.parametrize("kind", ["contiguous", "rotating", "8 bits"])
def test_the_context_of_the_engine_config_holds_everywhere(path: Path, kind: str) -> None:
    config = replace(KINDS[kind], max_context=64)
    llm = load(path, config=config)
    with Engine(path, config=config) as engine:
        asks = (llm.generate, lambda prompt: llm.generate([prompt]), lambda prompt: engine.generate([prompt]))
        for ask in asks:
            with pytest.raises(ValueError, match="leave no room .* context of 64"):
                ask(LONG)
        endless = replace(GREEDY, max_tokens=999)
        single = llm.generate(PROMPTS[1], endless)
        assert len(single.tokens) == 64 - len(PROMPTS[1])
        assert engine.generate([PROMPTS[1]], endless)[0][0].tokens == single.tokens

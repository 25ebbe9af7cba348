"""Speculation: whatever is guessed, every answer is the one without guesses, and right guesses save steps."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from tests.engine.test_loop import (
    GREEDY,
    SAMPLED,
    SEARCH,
    alone,
    assert_same,
    make_loop,
    mixed_requests,
    request,
    run,
    summary,
)
from tests.support import make_model
from tiny_llm import LLM, SamplingParams, load
from tiny_llm.cache.contiguous import ContiguousCache
from tiny_llm.cache.recompute import RecomputeCache
from tiny_llm.config import EngineConfig, SchedulerConfig, Structured
from tiny_llm.config.serving import ServingConfig
from tiny_llm.config.speculation import SpeculationConfig
from tiny_llm.decode.acceptance import DraftTree
from tiny_llm.engine.events import Event
from tiny_llm.engine.loop import Loop
from tiny_llm.engine.request import Request, SequenceId
from tiny_llm.engine.request import Sequence as Running
from tiny_llm.engine.speculation import Speculation, SpeculationCounts, pruned, room
from tiny_llm.engine.store import whole_store


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    path: Path = make_model(tmp_path_factory.mktemp("model"))
    return load(path)


class Scripted:
    """Guesses by a function of the sequence and the number of guesses that are asked for."""

    def __init__(self, guess: Callable[[Running, int], Sequence[int]]):
        self.guess = guess

    def propose(self, sequences: Sequence[Running], limits: Sequence[int]) -> list[DraftTree]:
        return [self.draft(sequence, limit) for sequence, limit in zip(sequences, limits, strict=True)]

    def draft(self, sequence: Running, limit: int) -> DraftTree:
        return DraftTree.chain(self.guess(sequence, limit))

    def forget(self, ended: Sequence[SequenceId]) -> None:
        pass


class Trees(Scripted):
    """Guesses the tokens that follow among others, at every level of a tree."""

    def draft(self, sequence: Running, limit: int) -> DraftTree:
        rng = random.Random(len(sequence.tokens))
        line = list(self.guess(sequence, rng.randint(0, limit)))
        lines = []
        for at in range(len(line) + 1):
            lines += [[*line[:at], rng.randrange(300), rng.randrange(300)] for _ in range(rng.randint(0, 2))]
        lines.insert(rng.randint(0, len(lines)), line)
        return DraftTree.merged(lines)


def guessing(llm: LLM, drafter, max_draft: int = 5, **settings) -> Loop:
    """A loop with this drafter."""
    loop = make_loop(llm, **settings)
    loop.speculation = Speculation(SpeculationConfig("suffix", max_draft), drafter, SpeculationCounts())
    return loop


Answers = dict[SequenceId, list[int]]


def answers_of(llm: LLM, requests: Sequence[Request]) -> Answers:
    """What each request is answered without guesses."""
    found = {}
    for one in requests:
        for index, deltas in alone(llm, one).items():
            found[SequenceId(one.id, index)] = [delta.token for delta in deltas]
    return found


def following(answers: Answers, sequence: Running, limit: int) -> list[int]:
    """The tokens that will follow."""
    begin = len(sequence.output)
    return answers[sequence.id][begin : begin + limit]


def oracle(answers: Answers) -> Scripted:
    return Scripted(lambda sequence, limit: following(answers, sequence, limit))


def wrong(answers: Answers) -> Scripted:
    return Scripted(lambda sequence, limit: [(token + 1) % 300 for token in following(answers, sequence, limit)])


def mixed(answers: Answers, seed: int = 0) -> Scripted:
    """Right for a while, then wrong; of any length."""
    rng = random.Random(seed)

    def guess(sequence: Running, limit: int) -> list[int]:
        tokens = following(answers, sequence, rng.randint(0, limit))
        right = rng.randint(0, len(tokens))
        return tokens[:right] + [rng.randrange(300) for _ in tokens[right:]]

    return Scripted(guess)


def trees(answers: Answers) -> Scripted:
    return Trees(lambda sequence, limit: following(answers, sequence, limit))


DRAFTERS = {"oracle": oracle, "wrong": wrong, "mixed": mixed, "trees": trees}


def prompt(seed: int, length: int = 20) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(300) for _ in range(length)]


def check(llm: LLM, requests: Sequence[Request], loop: Loop) -> None:
    got = run(loop, requests)
    for one in requests:
        want = alone(llm, one)
        assert got[one.id].keys() == want.keys()
        for index, deltas in want.items():
            assert_same(llm, one, index, got[one.id][index], deltas)


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_right_guesses_give_a_token_more_each_and_wrong_ones_none(llm: LLM, params: SamplingParams) -> None:
    one = request(llm, "one", prompt(1), replace(params, max_tokens=25))
    answers = answers_of(llm, [one])
    steps = {}
    for name in ("oracle", "wrong"):
        loop = guessing(llm, DRAFTERS[name](answers), max_draft=5)
        loop.add(one)
        tokens, count = [], 0
        while loop.has_work:
            tokens += [output.delta.token for output in loop.step()]
            count += 1
            loop.scheduler.check()
        assert tokens == answers[SequenceId("one", 0)]
        steps[name] = loop.scheduler.steps
        counts = loop.speculation.counts
        assert counts.acceptance_rate == (1.0 if name == "oracle" else 0.0)
        assert counts.tokens_per_draft == pytest.approx(1 + counts.accepted / counts.drafts)
    assert steps["oracle"] == 1 + 4  # the prompt gives a token, and four steps six each
    assert steps["wrong"] == 25


@pytest.mark.parametrize("drafter", DRAFTERS)
@pytest.mark.parametrize("blocks", [200, 45], ids=["room", "preemption"])
@pytest.mark.parametrize("seed", range(3))
def test_every_request_gets_what_it_gets_alone(llm: LLM, drafter: str, blocks: int, seed: int) -> None:
    """Batches with prompts, all sampling settings, penalties, log-probabilities, stop strings, end tokens."""
    requests = mixed_requests(llm, 12, seed)
    loop = guessing(llm, DRAFTERS[drafter](answers_of(llm, requests)), blocks=blocks)
    check(llm, requests, loop)
    assert loop.speculation.fault is None
    assert loop.speculation.counts.drafts > 0
    assert (loop.speculation.counts.accepted > 0) == (drafter != "wrong")


@pytest.mark.parametrize("penalty", ["repetition_penalty", "frequency_penalty", "presence_penalty"])
def test_penalties_count_the_path(llm: LLM, penalty: str) -> None:
    """Each row of a draft has its own counts: once for each token before it, rejected ones not at all."""
    params = SamplingParams(max_tokens=40, temperature=0.9, seed=3, ignore_eos=True, **{penalty: 1.9})
    requests = [request(llm, f"{i}", prompt(i, 8), params) for i in range(3)]
    for drafter in DRAFTERS.values():
        check(llm, requests, guessing(llm, drafter(answers_of(llm, requests))))


def test_several_answers_and_searches(llm: LLM) -> None:
    """Beams are not drafted."""
    several = request(llm, "several", prompt(4), SamplingParams(n=3, max_tokens=20, seed=1, ignore_eos=True))
    search = request(llm, "search", prompt(5), SEARCH)
    answers = answers_of(llm, [several])
    for drafter in DRAFTERS.values():
        loop = guessing(llm, drafter(answers))
        with pytest.warns(RuntimeWarning, match="beam_width: a beam search runs without drafts"):
            got = run(loop, [several, search])
        for one in (several, search):
            want = alone(llm, one)
            assert {i: summary(deltas) for i, deltas in got[one.id].items()} == {
                i: summary(deltas) for i, deltas in want.items()
            }


FORMS = [
    Structured("regex", "[a-z]{2,4}( [0-9]{1,3}){3}"),
    Structured("json_schema", '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}'),
]


@pytest.mark.parametrize("form", FORMS, ids=["regex", "schema"])
@pytest.mark.parametrize("thinks", [False, True])
def test_grammars_hold_behind_every_guess(llm: LLM, form: Structured, thinks: bool) -> None:
    """A row of a draft has the grammar's mask behind its path; a guess that is forbidden is never accepted."""
    for seed in range(3):
        params = SamplingParams(max_tokens=40, temperature=1.0, seed=seed, structured=form)
        one = replace(request(llm, "one", prompt(seed), params), in_thought=thinks)
        want = summary(run(make_loop(llm), [one])["one"][0])
        answers = {SequenceId("one", 0): want[0]}
        for drafter in DRAFTERS.values():
            loop = guessing(llm, drafter(answers))
            assert summary(run(loop, [one])["one"][0]) == want
            assert loop.speculation.fault is None


def test_an_answer_ends_where_it_would_inside_a_draft(llm: LLM) -> None:
    """By a stop token, a stop string or its length, with right guesses beyond that place."""
    one = request(llm, "one", prompt(6), replace(GREEDY, max_tokens=30))
    answers = answers_of(llm, [one])
    tokens = answers[SequenceId("one", 0)]
    text = llm.tokenizer.decode(tokens)
    for params in (
        replace(GREEDY, max_tokens=30, stop_token_ids=(tokens[8],)),
        replace(GREEDY, max_tokens=30, stop=(text[9:12],)),
        replace(GREEDY, max_tokens=9),
    ):
        cut = request(llm, "one", one.tokens, params)
        for size in (1, 2, 5, 8):
            check(llm, [cut], guessing(llm, oracle(answers), max_draft=size))


def test_no_guess_goes_beyond_the_answer(llm: LLM) -> None:
    one = request(llm, "one", prompt(6), replace(GREEDY, max_tokens=4))
    asked: list[int] = []

    def guess(sequence: Running, limit: int) -> list[int]:
        asked.append(limit)
        return [1] * 40

    loop = guessing(llm, Scripted(guess), max_draft=6)
    run(loop, [one])
    assert asked == [2, 1] and loop.speculation.counts.drafted == 3
    sequence = Running(one)
    assert room(sequence, 22) == 1 and room(sequence, 1000) == 3


def test_a_drafter_that_raises_is_switched_off(llm: LLM) -> None:
    requests = mixed_requests(llm, 4, 1)

    def fail(sequence: Running, limit: int) -> list[int]:
        raise KeyError("no idea")

    loop = guessing(llm, Scripted(fail))
    with pytest.warns(RuntimeWarning, match="drafter suffix: KeyError.*goes on without drafts"):
        check(llm, requests, loop)
    assert isinstance(loop.speculation.fault, KeyError) and loop.speculation.drafter is None


@pytest.mark.parametrize("drafter", ["mixed", "trees"])
def test_kept_keys_and_values_are_those_of_a_prefill(llm: LLM, drafter: str) -> None:
    """Rejected guesses have written into the slots of later tokens; those of a tree's path lie scattered."""
    one = request(llm, "one", prompt(7), replace(GREEDY, max_tokens=60))
    answers = answers_of(llm, [one])
    loop = guessing(llm, DRAFTERS[drafter](answers), max_draft=7)
    loop.add(one)
    for _ in range(12):
        loop.step()
    (sequence,) = loop.scheduler.running
    count = sequence.computed
    assert count > 30 and loop.speculation.counts.drafted > loop.speculation.counts.accepted > 0
    fresh = make_loop(llm)
    fresh.add(request(llm, "fresh", sequence.tokens[:count], replace(GREEDY, max_tokens=2)))
    fresh.step()
    (other,) = fresh.scheduler.running
    fresh.step()
    for layer in range(llm.config.num_hidden_layers):
        mine = loop.store.sequence(layer, sequence.block_table, count)
        theirs = fresh.store.sequence(layer, other.block_table, count)
        for a, b in zip(mine, theirs, strict=True):
            np.testing.assert_allclose(np.array(a), np.array(b), atol=1e-5)


def test_a_later_request_finds_only_verified_blocks(llm: LLM) -> None:
    first = request(llm, "first", prompt(8), replace(GREEDY, max_tokens=30))
    answers = answers_of(llm, [first])
    loop = guessing(llm, wrong(answers))
    run(loop, [first])
    second = request(llm, "second", [*first.tokens, *answers[SequenceId("first", 0)]], GREEDY)
    answers |= answers_of(llm, [second])
    loop.speculation = Speculation(SpeculationConfig("suffix", 5), mixed(answers), SpeculationCounts())
    check(llm, [second], loop)


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_blocks_on_disk(llm: LLM, params: SamplingParams, tmp_path: Path) -> None:
    """Texts whose blocks were evicted to files and loaded again, beside others, with drafts all the while."""
    slot = 2 * llm.config.num_hidden_layers * llm.config.num_key_value_heads * llm.config.head_dim * 4
    scheduler = SchedulerConfig(token_budget=40, max_sequences=4)
    serving = ServingConfig(30 * 4 * slot, 4, disk_folder=tmp_path, scheduler=scheduler)
    requests = [request(llm, f"{i}", prompt(i % 5, 24), replace(params, max_tokens=12)) for i in range(15)]
    events: list[Event] = []
    loop = Loop(llm.model, llm.tokenizer, serving, events.append)
    loop.speculation = Speculation(
        SpeculationConfig("suffix", 5), trees(answers_of(llm, requests)), SpeculationCounts()
    )
    check(llm, requests, loop)
    assert {"evict", "load", "verify"} <= {event.kind for event in events}
    assert loop.speculation.fault is None and loop.speculation.counts.accepted > 20


def test_the_token_budget_bounds_drafts(llm: LLM) -> None:
    requests = [request(llm, f"{i}", prompt(i), replace(GREEDY, max_tokens=20)) for i in range(6)]
    loop = guessing(llm, oracle(answers_of(llm, requests)), max_draft=30, token_budget=16)
    sizes = []
    launch = loop.runner.launch
    loop.runner.launch = lambda step: (sizes.append(step.num_tokens), launch(step))[1]
    check(llm, requests, loop)
    assert max(sizes) == 16


@pytest.mark.parametrize("cache", ["contiguous", "quantized"])
@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_whole_caches_forget_rejected_tokens(llm: LLM, cache: str, params: SamplingParams) -> None:
    path = llm.path
    plain = load(path, config=EngineConfig(cache=cache, kernels="mlx"))
    fast = load(path, config=EngineConfig(cache=cache, kernels="mlx", speculation=SpeculationConfig("suffix", 4)))
    tokens = [5, 6, 7, 8] * 6
    params = replace(params, max_tokens=40)
    want = plain.generate(tokens, params).tokens
    assert fast.generate(tokens, params).tokens == want
    assert fast.generate([*tokens, *want], params).tokens == plain.generate([*tokens, *want], params).tokens


@pytest.mark.parametrize("kernels", ["mlx", None])
@pytest.mark.parametrize("cache", ["contiguous", "quantized"])
def test_trees_in_whole_caches(llm: LLM, cache: str, kernels: str | None) -> None:
    """Of one sequence, and of several side by side; K and V of the kept path are those of a prefill."""
    config = EngineConfig(cache=cache, kernels=kernels)
    plain = load(llm.path, config=config)
    store = whole_store(plain.model, config, 4, plain.max_context, kept=1)
    asked = [replace(GREEDY, max_tokens=40), replace(SAMPLED, max_tokens=40, n=3)]
    requests = [request(llm, f"{i}", prompt(i), params) for i, params in enumerate(asked)]
    answers = answers_of(plain, requests)
    for one in requests:
        loop = Loop(plain.model, plain.tokenizer, engine=config, store=store)
        loop.speculation = Speculation(SpeculationConfig("suffix", 6), trees(answers), SpeculationCounts())
        for index, deltas in run(loop, [one])[one.id].items():
            assert summary(deltas)[0] == answers[SequenceId(one.id, index)]
        assert loop.speculation.counts.accepted > 20


def test_the_kept_path_of_a_tree_lies_in_order(llm: LLM) -> None:
    one = request(llm, "one", prompt(7), replace(GREEDY, max_tokens=60))
    answers = answers_of(llm, [one])
    store = whole_store(llm.model, EngineConfig(), 4, llm.max_context, kept=1)
    loop = Loop(llm.model, llm.tokenizer, store=store)
    loop.speculation = Speculation(SpeculationConfig("suffix", 7), trees(answers), SpeculationCounts())
    loop.add(one)
    for _ in range(12):
        loop.step()
    (sequence,) = loop.scheduler.running
    count = sequence.computed
    assert count > 30
    mine = store.caches[sequence.block_table[0]]
    fresh = ContiguousCache(llm.config, llm.model.ops)
    llm.model.hidden_states(mx.array(sequence.tokens[:count]), fresh)
    for buffer, other in zip(mine.state, fresh.state, strict=True):
        np.testing.assert_allclose(np.array(buffer[:, :count]), np.array(other[:, :count]), atol=1e-5)


def test_lines_with_one_beginning_become_a_tree() -> None:
    assert DraftTree.merged([[4, 5, 7], [9, 6], [4, 8]]) == DraftTree((4, 5, 7, 9, 6, 8), (-1, 0, 1, -1, 3, 0))


@pytest.mark.parametrize("bits", [8, 4])
def test_trees_in_a_packed_pool(llm: LLM, bits: int) -> None:
    """Packed K and V are moved as they are."""
    config = EngineConfig(cache="quantized", kv_bits=bits, kernels="mlx")
    plain = load(llm.path, config=config)
    requests = [request(llm, f"{i}", prompt(i), replace(GREEDY, max_tokens=20)) for i in range(3)]
    answers = {}
    for one in requests:
        answers[SequenceId(one.id, 0)] = plain.generate([list(one.tokens)], one.params)[0].tokens
    loop = Loop(plain.model, plain.tokenizer, engine=config)
    loop.speculation = Speculation(SpeculationConfig("suffix", 6), trees(answers), SpeculationCounts())
    got = run(loop, requests)
    same = sum(summary(got[one.id][0])[0] == answers[SequenceId(one.id, 0)] for one in requests)
    assert same >= 2 and loop.speculation.counts.accepted > 10  # rounding may part one


def test_a_draft_is_pruned_at_end_tokens() -> None:
    tree = DraftTree((4, 9, 5, 6, 7), (-1, -1, 0, 1, 2))
    assert pruned(tree, frozenset({9}), 10) == DraftTree((4, 5, 7), (-1, 0, 1))
    assert pruned(tree, frozenset({5}), 10) == DraftTree((4, 9, 6), (-1, -1, 1))
    assert pruned(tree, frozenset(), 2) == DraftTree((4, 9), (-1, -1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"drafter": "oracle"},
            "drafter: expected one of none, suffix, draft, lookahead, medusa, eagle, found 'oracle'",
        ),
        ({"max_draft": 0}, "max_draft: expected an integer from 1 to 63, found 0"),
        ({"max_draft": 64}, "max_draft: expected an integer from 1 to 63, found 64"),
        ({"p_min": 1.5}, "p_min: expected a probability from 0 to 1, found 1.5"),
    ],
)
def test_odd_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SpeculationConfig(**settings)


def test_the_log_and_the_pieces_say_what_became_of_guesses(llm: LLM) -> None:
    """A verification is an event with tree and kept nodes; every piece of an answer names its token's origin."""
    one = request(llm, "one", prompt(1), replace(GREEDY, max_tokens=30))
    answers = answers_of(llm, [one])
    events: list[Event] = []
    loop = make_loop(llm, emit=events.append)
    loop.speculation = Speculation(SpeculationConfig("suffix", 5), trees(answers), SpeculationCounts())
    (deltas,) = run(loop, [one])["one"].values()
    verified = [event for event in events if event.kind == "verify"]
    counts = loop.speculation.counts
    assert len(verified) == counts.drafts and sum(event.tokens for event in verified) == counts.drafted
    tokens = answers[SequenceId("one", 0)]
    origins = [delta.origin for delta in deltas]
    assert origins.count("accepted") == counts.accepted and origins[0] is None
    for event in verified:
        guesses, parents = json.loads(event.note)
        begin = event.start - len(one.tokens)
        assert [guesses[node] for node in event.blocks] == tokens[begin : begin + len(event.blocks)]
        last = event.blocks[-1] if event.blocks else -1
        end = begin + len(event.blocks)
        assert origins[begin:end] == ["accepted"] * len(event.blocks)
        assert origins[end] == ("corrected" if last in parents else "bonus")


def nucleus(logits: np.ndarray, temperature: float, top_p: float) -> np.ndarray:
    """The distribution of the next token: softmax, then the likeliest tokens until their sum reaches top_p."""
    p = np.exp((logits - logits.max()) / temperature)
    p /= p.sum()
    order = np.argsort(-p)
    inside = order[: int((np.cumsum(p[order]) < top_p).sum()) + 1]
    kept = np.zeros_like(p)
    kept[inside] = p[inside]
    return kept / kept.sum()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.5])
def test_drawn_tokens_have_the_models_distribution(llm: LLM, temperature: float) -> None:
    """The second token of many seeded answers, by a chi-square test; the drafts guess a few of the likely tokens."""
    tokens = prompt(9, 6)
    biases = dict.fromkeys((17, 40, 99, 150, 220, 301), 5.0)
    bias = np.array([biases.get(token, 0.0) for token in range(llm.config.vocab_size)])

    def behind(text: list[int]) -> np.ndarray:
        logits = llm.model(mx.array(text), RecomputeCache(llm.config, llm.model.ops))[-1]
        return nucleus(np.array(logits, np.float64) + bias, temperature, 0.9)

    first = int(behind(tokens).argmax())
    want = behind([*tokens, first])
    likely = np.argsort(-want)[:4].tolist()
    rng = random.Random(1)
    loop = guessing(llm, Trees(lambda sequence, limit: [rng.choice(likely)]), max_draft=5, max_sequences=16)
    params = SamplingParams(temperature=temperature, top_p=0.9, max_tokens=4, ignore_eos=True, logit_bias=biases)
    requests = [request(llm, f"{i}", tokens, replace(params, seed=i)) for i in range(1200)]
    got = [deltas[0] for deltas in run(loop, requests).values()]
    assert loop.speculation.counts.accepted > 100
    drawn = [deltas[1].token for deltas in got if deltas[0].token == first]
    check_distribution(np.bincount(drawn, minlength=len(want)), want)


def check_distribution(counts: np.ndarray, want: np.ndarray) -> None:
    """Chi-square over tokens that are expected five times, the others together; the statistic within six sigma."""
    total = counts.sum()
    assert total > 30 and counts[want == 0].sum() == 0
    often = want * total >= 5
    seen = np.append(counts[often], counts[~often].sum())
    expected = np.append(want[often], want[~often].sum()) * total
    expected, seen = expected[expected > 0], seen[expected > 0]
    degrees = max(1, len(seen) - 1)
    statistic = ((seen - expected) ** 2 / expected).sum()
    assert statistic < degrees + 6 * np.sqrt(2 * degrees) + 6, (statistic, degrees)

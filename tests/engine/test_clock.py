"""Latency and fairness on a simulated clock: bounds that hold for every arrival pattern tried."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tiny_llm.config import SamplingParams, SchedulerConfig
from tiny_llm.engine.blocks import BlockPool
from tiny_llm.engine.radix import RadixTree
from tiny_llm.engine.request import Request
from tiny_llm.engine.scheduler import Scheduler
from tiny_llm.engine.simulate import Cost, SimulatedAnswer, simulate

COST = Cost()
ASKED = st.tuples(
    st.floats(0, 1), st.integers(1, 300), st.integers(1, 30), st.integers(-2, 2), st.none() | st.floats(-5, 5),
    st.sampled_from("abc"),
)  # fmt: skip
LOADS = st.lists(ASKED, min_size=1, max_size=20)


def request(i: int, arrival: float, length: int, output: int, *more: Any, same: bool = False) -> Request:
    priority, deadline, tenant = more or (0, None, "a")
    tokens = tuple(range(length)) if same else tuple(range(1000 * i, 1000 * i + length))
    return Request(str(i), tokens, SamplingParams(max_tokens=output), priority, deadline, tenant, arrival)


def scheduler(num_blocks: int = 4000, tree: bool = False, **settings: Any) -> Scheduler:
    pool = BlockPool(num_blocks, 16)
    config = SchedulerConfig(**{"token_budget": 64, "max_sequences": 8, **settings})
    return Scheduler(config, pool, RadixTree(pool) if tree else None)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(load=LOADS, long=st.integers(1, 20_000), tree=st.booleans())
def test_a_prompt_of_any_length_delays_a_next_token_by_at_most_one_budget(
    load: list[Any], long: int, tree: bool
) -> None:
    """Between two tokens of a sequence lies one step, and no step costs more than a full budget."""
    requests = [request(i, *asked) for i, asked in enumerate(load)] + [request(99, 0.5, long, 4)]
    answers = simulate(scheduler(tree=tree), requests, COST)
    bound = COST.most(64, long + 330)
    assert all(gap <= bound for answer in answers for gap in answer.gaps)
    assert all(answer.finished is not None for answer in answers)


def test_the_bound_is_nearly_reached_and_an_unchunked_prompt_breaks_it() -> None:
    """The test above can fail: with a budget as long as the prompt, the neighbour waits for all of it."""
    requests = [request(0, 0.0, 8, 60), request(1, 0.05, 4000, 4)]
    chunked, whole = (max(simulate(scheduler(token_budget=b), requests, COST)[0].gaps) for b in (64, 5000))
    assert 0.9 * COST.most(64, 4100) < chunked <= COST.most(64, 4100) < whole / 20


@settings(max_examples=80, deadline=None, derandomize=True)
@given(load=LOADS, num_blocks=st.integers(21, 60), tree=st.booleans())
def test_nobody_starves_on_a_small_pool(load: list[Any], num_blocks: int, tree: bool) -> None:
    """Everyone finishes, within the time that all take one after the other, twice over for what is computed again."""
    requests = [request(i, *asked) for i, asked in enumerate(load)]
    answers = simulate(scheduler(num_blocks, tree), requests, COST)
    alone = [Cost.most(COST, len(r.tokens), 330) + r.params.max_tokens * COST.most(1, 330) for r in requests]
    last = max(r.arrival for r in requests)
    assert all(a.finished is not None and a.finished <= last + 2 * sum(alone) for a in answers)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(load=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 300), st.integers(1, 30)), min_size=1, max_size=20))
def test_no_newcomer_takes_blocks_from_who_came_before(load: list[Any]) -> None:
    """Of those that run, only who is due last is preempted: the first of all never is."""
    requests = [request(i, *asked) for i, asked in enumerate(load)]
    engine = scheduler(21)
    first = min(requests, key=lambda r: r.arrival)
    answers = simulate(engine, requests, COST)
    assert next(a for a in answers if a.sequence.request is first).preempted == 0


def test_an_old_request_is_not_passed_for_ever_by_urgent_ones() -> None:
    """Urgent requests come without end, more than can be served. Ageing bounds how long the patient one is passed."""
    patient = request(0, 0.1, 200, 5, -1, None, "a")
    urgent = [request(i, 0.02 * i, 200, 5, 1, 0.0, "a") for i in range(1, 300)]
    engine = scheduler(max_sequences=2, patience=0.5, priority_seconds=1.0)
    answers = simulate(engine, [patient, *urgent], COST)
    (served,) = [a for a in answers if a.sequence.request is patient]
    passed_by = [a.sequence.request.arrival for a in answers if a.times[0] < served.times[0]]
    assert 2.5 < max(passed_by) <= patient.arrival + 0.5 + 2 * 1.0  # patience and two levels of priority
    assert max(r.arrival for r in urgent) > 2 * max(passed_by)


def test_priorities_and_deadlines_go_first() -> None:
    requests = [request(i, 0.001 * i, 100, 3) for i in range(6)]
    requests += [request(6, 0.01, 100, 3, 2, None, "a"), request(7, 0.01, 100, 3, 0, 0.5, "a")]
    answers = simulate(scheduler(max_sequences=1, token_budget=64), requests, COST)
    order = [a.sequence.request.id for a in sorted(answers, key=lambda a: a.times[0])]
    assert order == ["0", "6", "7", "1", "2", "3", "4", "5"]


def tokens_by(answers: list[SimulatedAnswer], tenant: str, until: float) -> int:
    """Prompt tokens admitted and tokens generated for a tenant."""
    mine = [a for a in answers if a.sequence.request.tenant == tenant]
    prompts = sum(len(a.sequence.request.tokens) for a in mine if (a.sequence.admitted or 0) <= until)
    return prompts + sum(time <= until for a in mine for time in a.times)


def test_tenants_share_by_weight() -> None:
    """One floods, one asks for as much as its share: while both wait they are served 1 to 3, whoever came first."""
    flood = [request(i, 0.0, 100, 10, 0, None, "a") for i in range(200)]
    other = [request(500 + i, 0.3, 100, 10, 0, None, "b") for i in range(200)]
    answers = simulate(scheduler(weights={"b": 3.0}, max_sequences=4), [*flood, *other], COST)
    ratio = (tokens_by(answers, "b", 4.0) - tokens_by(answers, "b", 0.5)) / (
        tokens_by(answers, "a", 4.0) - tokens_by(answers, "a", 0.5)
    )
    assert 2.5 < ratio < 3.5


def test_a_tenant_saves_up_nothing_while_it_is_away() -> None:
    """Who comes late shares from then on; a counter left at 0 would shut the others out until it had caught up."""
    early = [request(i, 0.0, 100, 10, 0, None, "a") for i in range(200)]
    late = [request(500 + i, 5.0, 100, 10, 0, None, "b") for i in range(200)]
    answers = simulate(scheduler(max_sequences=4), [*early, *late], COST)
    served = [tokens_by(answers, "a", t) for t in (5.0, 6.0, 7.0)]
    assert served[2] - served[1] > 0.3 * served[0] / 5


def test_a_short_prompt_passes_a_long_one() -> None:
    """Half of what the decodes leave is the eldest's; the short one gets the rest and need not wait for its end."""
    long, short = simulate(scheduler(), [request(0, 0.0, 6000, 2), request(1, 0.001, 40, 2)], COST)
    assert short.first < 0.1 * long.first
    alone = simulate(scheduler(), [request(0, 0.0, 6000, 2)], COST)[0]
    assert long.first < 1.1 * alone.first


def test_a_prefix_that_many_ask_for_at_once_is_computed_once() -> None:
    total: list[int] = []
    requests = [request(i, 0.0, 1000, 2, same=True) for i in range(8)]
    answers = simulate(scheduler(tree=True), requests, COST, watch=lambda step, now: total.append(step.num_tokens))
    assert sum(total) < 1000 + 8 * (16 + 2)
    assert len({tuple(a.sequence.output) for a in answers}) == 1

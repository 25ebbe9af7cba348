"""4.3 Observing: a histogram's buckets, what Prometheus reads of them, and which sequences run and wait."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from random import Random
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tiny_llm.config import SamplingParams, SchedulerConfig
from tiny_llm.course.check import Checker, task
from tiny_llm.engine.answers import Stats
from tiny_llm.engine.blocks import BlockPool
from tiny_llm.engine.events import Event
from tiny_llm.engine.radix import RadixTree
from tiny_llm.engine.request import Request, Step
from tiny_llm.engine.scheduler import Scheduler
from tiny_llm.engine.simulate import simulate

MANY = 4096


class Watched(float):
    """A number that counts how often it is compared."""

    compared = 0

    def __lt__(self, other: float) -> bool:
        Watched.compared += 1
        return float(self) < float(other)

    def __gt__(self, other: float) -> bool:
        Watched.compared += 1
        return float(self) > float(other)

    def __le__(self, other: float) -> bool:
        Watched.compared += 1
        return float(self) <= float(other)

    def __ge__(self, other: float) -> bool:
        Watched.compared += 1
        return float(self) >= float(other)


def observed(m: Any, bounds: Sequence[float], values: Sequence[float]) -> Any:
    histogram = m.Histogram(bounds)
    for value in values:
        histogram.observe(value)
    return histogram


def by_hand(bounds: Sequence[float], values: Sequence[float]) -> list[int]:
    """How many values lie above the bound before, and not above the bucket's own."""
    edges = [float("-inf"), *bounds, float("inf")]
    return [sum(low < value <= high for value in values) for low, high in pairwise(edges)]


@task("w4.3.1")
def test_five_values_by_hand(check: Checker) -> None:
    """0.5 and 1 are bounds and belong to their own buckets; 3 and 9 are above all bounds."""
    values = (0.5, 0.7, 1, 3, 9)
    check(
        lambda m: list(observed(m, (0.5, 1), values).counts),
        [1, 2, 2],
        what="counts of 0.5 0.7 1 3 9 with bounds 0.5 1",
    )
    check(lambda m: float(observed(m, (0.5, 1), values).sum), 14.2, what="sum of 0.5 0.7 1 3 9")


@task("w4.3.1")
def test_the_lowest_and_the_highest(check: Checker) -> None:
    """A value below the first bound, one below zero, a bound that is reached exactly, and a single bucket."""
    rows = [((1, 2, 4), (0, -3, 0.999)), ((1, 2, 4), (4, 4.0001)), ((), (5, 6, 7)), ((2,), (2, 2, 2))]
    want = [by_hand(*row) for row in rows]
    check(lambda m: [list(observed(m, *row).counts) for row in rows], want, what="counts")
    check(lambda m: [float(observed(m, *row).sum) for row in rows], [-2.001, 8.0001, 18.0, 6.0], what="sums")


@task("w4.3.1")
def test_many_values(check: Checker) -> None:
    rng = Random(0)
    bounds = sorted(rng.uniform(0, 10) for _ in range(9))
    values = [*bounds, *(rng.uniform(-1, 12) for _ in range(200))]
    check(lambda m: list(observed(m, bounds, values).counts), by_hand(bounds, values), what="counts of 209 values")


@task("w4.3.1")
def test_the_time_grows_with_the_logarithm(check: Checker) -> None:
    """With 4,096 bounds a bisection compares 13 times."""

    def call(m: Any) -> list[Any]:
        histogram = m.Histogram([Watched(bound) for bound in range(MANY)])
        Watched.compared = 0
        for value in (0.5, 2000.5, 4000.5):
            histogram.observe(value)
        return [Watched.compared <= 3 * 40, histogram.counts[2001], histogram.sum]

    check(call, [True, 1, 6001.5], what="at most 40 comparisons with 4,096 bounds? count of bucket 2001, sum")


@task("w4.3.2")
def test_cumulative_by_hand(check: Checker) -> None:
    def call(m: Any) -> list[tuple[str, float]]:
        histogram = m.Histogram((0.5, 1))
        histogram.counts = [1, 0, 2]
        return list(histogram.cumulative())

    check(call, [("0.5", 1.0), ("1.0", 1.0), ("+Inf", 3.0)], what="buckets of the counts 1 0 2 with bounds 0.5 1")


@task("w4.3.2")
def test_cumulative_of_none_and_of_one_bucket(check: Checker) -> None:
    def call(m: Any) -> list[Any]:
        found = [list(m.Histogram((1, 20)).cumulative()), list(m.Histogram(()).cumulative())]
        histogram = m.Histogram((0.001, 2560))
        histogram.counts = [3, 4, 5]
        return [*found, list(histogram.cumulative()), list(histogram.cumulative()), histogram.counts]

    last = [("0.001", 3.0), ("2560.0", 7.0), ("+Inf", 12.0)]
    want = [[("1.0", 0.0), ("20.0", 0.0), ("+Inf", 0.0)], [("+Inf", 0.0)], last, last, [3, 4, 5]]
    check(call, want, what="no value; no bound; read twice; the counts afterwards")


@task("w4.3.2")
def test_a_client_of_prometheus_reads_it(check: Checker) -> None:
    """Through /metrics and the parser of the client library: buckets, count and sum."""

    def call(m: Any) -> list[Any]:
        metrics = m.Metrics()
        for number in range(5):
            metrics.of("pocket").finished(Stats(4, 0, 2, 0.03 * number + 0.015, 0.5, 0))
        families = list(text_string_to_metric_families(metrics.render().decode()))
        samples = [s for family in families for s in family.samples if "time_to_first_token" in s.name]
        buckets = [s.value for s in samples if s.labels.get("le") in ("0.01", "0.04", "0.1", "0.25", "2560.0", "+Inf")]
        return [buckets, *(s.value for s in samples if s.name.endswith("_count"))]

    check(call, [[0.0, 1.0, 3.0, 5.0, 5.0, 5.0], 5.0], what="buckets to 0.01 0.04 0.1 0.25 2560 and any; count")


def told(m: Any, *happened: tuple[str, str, int]) -> list[list[tuple[str, int]]]:
    """The sequences that run, and those that wait, after these events."""
    census = m.Census()
    for kind, request, sequence in happened:
        census.note(Event(0.0, kind, request=request, sequence=sequence))
    return [sorted(census.running), sorted(census.waiting)]


A, B = ("a", 0), ("b", 0)


@task("w4.3.3")
def test_a_sequences_life(check: Checker) -> None:
    life = [("arrival", *A), ("admit", *A), ("preempt", *A), ("admit", *A), ("finish", *A)]
    want = [[[], [A]], [[A], []], [[], [A]], [[A], []], [[], []]]
    for count in range(1, 6):
        words = ", ".join(kind for kind, _, _ in life[:count])
        check(lambda m, count=count: told(m, *life[:count]), want[count - 1], what=f"running and waiting after {words}")


@task("w4.3.3")
def test_ends_without_having_run(check: Checker) -> None:
    """Cancelled while it waits, at first and after it was preempted, beside another request."""
    for rest, after in (((), "arrival"), ((("admit", *A), ("preempt", *A)), "preemption")):
        happened = [("arrival", *A), *rest, ("arrival", *B), ("finish", *A)]
        check(lambda m, happened=happened: told(m, *happened), [[], [B]], what=f"cancelled after its {after}")


@task("w4.3.3")
def test_several_answers_of_a_request(check: Checker) -> None:
    """The second and third are admitted when the prompt is computed, without an arrival."""
    happened = [
        ("arrival", *A),
        ("admit", *A),
        ("admit", "a", 1),
        ("admit", "a", 2),
        ("finish", *A),
        ("preempt", "a", 2),
    ]
    check(lambda m: told(m, *happened), [[("a", 1)], [("a", 2)]], what="running and waiting of three answers")
    happened = [("arrival", *A), ("finish", *A), ("finish", "a", 1)]
    check(lambda m: told(m, *happened), [[], []], what="cancelled before its second answer was admitted")


@task("w4.3.3")
def test_other_events_move_nothing(check: Checker) -> None:
    others = "pool share chunk load branch copy step verify token keep evict".split()
    happened = [("arrival", *A), ("arrival", *B), ("admit", *B), *((kind, *A) for kind in others), ("chunk", "c", 0)]
    check(lambda m: told(m, *happened), [[B], [A]], what="running and waiting after all other events")


class Fixed(set[tuple[str, int]]):
    """A set that can't be copied or looked through: an event costs the same with a hundred thousand sequences."""

    def _refuse(self, *_: object) -> Any:
        raise RuntimeError("this looks at every sequence; an event may look at its own only")

    __iter__ = __or__ = __sub__ = __and__ = __xor__ = __ror__ = __rsub__ = copy = union = difference = _refuse


@task("w4.3.3")
def test_an_event_looks_at_its_own_sequence_only(check: Checker) -> None:
    def call(m: Any) -> list[int]:
        census = m.Census(Fixed(), Fixed())
        sizes = []
        for kind in ("arrival", "admit", "preempt", "finish"):
            for number in range(4):
                if kind == "arrival" or number:
                    census.note(Event(0.0, kind, request=f"r{number}"))
            sizes += [len(census.running), len(census.waiting)]
        return sizes

    check(call, [0, 4, 3, 1, 0, 4, 0, 1], what="numbers of running and waiting sequences")


def agrees(seed: int) -> Callable[[Any], list[bool]]:
    """Whether the sets are the scheduler's own after each step, in a pool that is too small for all."""

    def call(m: Any) -> list[bool]:
        rng = Random(seed)
        census = m.Census()
        pool = BlockPool(14, 4)
        config = SchedulerConfig(token_budget=16, max_sequences=5)
        scheduler = Scheduler(config, pool, RadixTree(pool), census.note)
        requests = []
        for number in range(14):
            params = SamplingParams(max_tokens=rng.randint(2, 14), n=rng.choice((1, 1, 3)))
            prompt = tuple(rng.randrange(999) for _ in range(rng.randint(2, 20)))
            requests.append(Request(f"r{number}", prompt, params, arrival=0.01 * number))
        same: list[bool] = []

        def compare(step: Step, now: float) -> None:
            """After a step is scheduled and before its results are taken in."""
            running = {(s.request.id, s.index) for s in scheduler.running}
            same.append(set(census.running) == running and len(census.waiting) == len(scheduler.waiting))

        answers = simulate(scheduler, requests, watch=compare)
        return [all(same), any(answer.preempted for answer in answers), not census.running | census.waiting]

    return call


@task("w4.3.3")
def test_the_sets_are_the_schedulers_own(check: Checker) -> None:
    for seed in range(3):
        check(agrees(seed), [True, True, True], what="equal after each step? some preempted? none left at the end?")

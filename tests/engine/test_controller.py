"""The controller on a simulated clock: never slower than no drafts, and near the best fixed number of guesses."""

import itertools
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.engine.test_loop import GREEDY, make_loop, request, run
from tests.support import make_model
from tiny_llm import load
from tiny_llm.config import SchedulerConfig
from tiny_llm.engine.controller import CHOICES, Controller, Pace, Profile, Survival, VerifiedStep, grid

Time = Callable[[float], float]


def times(seconds: Time, most: int = 512) -> Profile:
    return Profile({rows: seconds(rows) for rows in grid(most)})


class Machine:
    """Steps with a true T(rows), guesses that are right with probability p each, and noise."""

    def __init__(self, seconds: Time, p: float, drafting: float = 0.0, noise: float = 0.05, seed: int = 0):
        self.seconds, self.p, self.drafting, self.noise = seconds, p, drafting, noise
        self.rng = random.Random(seed)

    def step(self, sequences: int, guesses: int) -> VerifiedStep:
        accepted = []
        for _ in range(sequences):
            right = 0
            while right < guesses and self.rng.random() < self.p:
                right += 1
            accepted.append(right)
        noise = 1 + self.noise * self.rng.uniform(-1, 1)
        step = self.seconds(sequences * (1 + guesses)) * noise
        return VerifiedStep([guesses] * sequences, accepted, 0, self.drafting * guesses * sequences, step)

    def fixed(self, sequences: int, guesses: int, steps: int = 2000) -> float:
        """Tokens a second with a fixed number of guesses."""
        return rate([self.step(sequences, guesses) for _ in range(steps)])

    def controlled(self, controller: Controller, sequences: int, steps: int = 2000) -> float:
        done = []
        for _ in range(steps):
            choice = controller.choose(sequences)
            done.append(self.step(sequences, choice))
            controller.note(choice, done[-1])
        return rate(done)


def rate(steps: list[VerifiedStep]) -> float:
    """Tokens a second."""
    tokens = sum(len(step.accepted) + sum(step.accepted) for step in steps)
    return tokens / sum(step.drafting + step.step for step in steps)


def flat(rows: float) -> float:
    """Bound by memory: 32 rows take as long as one."""
    return 0.010 + 0.0001 * max(0.0, rows - 32)


def steep(rows: float) -> float:
    """Bound by arithmetic from the first row on."""
    return 0.001 + 0.001 * rows


def bent(rows: float) -> float:
    return 0.004 + 0.0002 * rows + (0.002 * (rows - 8) if rows > 8 else 0.0)


MACHINES = {"flat": flat, "steep": steep, "bent": bent}


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("p", [0.0, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("sequences", [1, 4, 32])
def test_never_slower_than_no_drafts_and_near_the_best(machine: str, p: float, sequences: int) -> None:
    seconds = MACHINES[machine]
    controller = Controller(times(seconds), 16)
    got = Machine(seconds, p, 0.0001).controlled(controller, sequences)
    fixed = {k: Machine(seconds, p, 0.0001, seed=1).fixed(sequences, k) for k in controller.choices}
    assert got >= 0.97 * fixed[0]
    assert got >= 0.90 * max(fixed.values())


@pytest.mark.parametrize("wrong", [0.25, 4.0])
def test_a_wrong_profile_is_corrected(wrong: float) -> None:
    """As where other work runs on the machine while it is measured."""
    controller = Controller(times(lambda rows: wrong * bent(rows)), 16)
    machine = Machine(bent, 0.6)
    assert machine.controlled(controller, 4) >= 0.9 * max(Machine(bent, 0.6).fixed(4, k) for k in controller.choices)


@pytest.mark.parametrize("sequences", [1, 2, 4, 8, 16, 32])
def test_around_each_switching_point(sequences: int) -> None:
    """At the acceptance where drafting begins to pay, a little below it and a little above."""
    paying = [p / 50 for p in range(50) if max(expected(bent, p / 50, sequences, k) for k in CHOICES[1:9]) > 1]
    border = min(paying, default=0.98)
    for p in (max(0.0, border - 0.05), border, min(0.99, border + 0.05)):
        controller = Controller(times(bent), 16)
        got = Machine(bent, p).controlled(controller, sequences, 3000)
        assert got >= 0.97 * Machine(bent, p, seed=1).fixed(sequences, 0, 3000)


def expected(seconds: Time, p: float, sequences: int, guesses: int) -> float:
    """Tokens a second with so many guesses over those without any."""
    tokens = sum(p**i for i in range(guesses + 1))
    return tokens * seconds(sequences) / seconds(sequences * (1 + guesses))


def test_texts_that_change_are_noticed() -> None:
    """Guesses that become right are used again, and guesses that become wrong are given up."""
    controller = Controller(times(bent), 16)
    bad, good = Machine(bent, 0.0), Machine(bent, 0.9)
    bad.controlled(controller, 2, 1500)
    assert controller.choose(2) in (0, *controller.choices[:3])
    late = good.controlled(controller, 2, 3000)
    assert late >= 0.85 * max(Machine(bent, 0.9).fixed(2, k) for k in controller.choices)
    late = bad.controlled(controller, 2, 1500)
    assert late >= 0.95 * Machine(bent, 0.0).fixed(2, 0)


def test_it_does_not_flicker() -> None:
    """Two choices of nearly the same value do not take turns."""
    controller = Controller(times(flat), 16)
    machine = Machine(flat, 0.5, noise=0.3)
    machine.controlled(controller, 4, 1000)
    chosen = []
    for _ in range(500):
        chosen.append(controller.choose(4))
        controller.note(chosen[-1], machine.step(4, chosen[-1]))
    changes = sum(a != b for a, b in itertools.pairwise(chosen))
    assert changes < 50


def test_the_next_step_is_plain_only_where_nothing_is_drafted() -> None:
    controller = Controller(times(steep), 8)
    machine = Machine(steep, 0.0)
    foreseen = []
    for _ in range(600):
        plain = controller.next_is_plain(8)
        choice = controller.choose(8)
        if plain:
            foreseen.append(choice)
        controller.note(choice, machine.step(8, choice))
    assert len(foreseen) > 400 and set(foreseen) == {0}


def test_survival_is_that_of_the_guesses_that_count() -> None:
    survival = Survival()
    rng = random.Random(0)
    for _ in range(3000):
        accepted = 0
        while accepted < 3 and rng.random() < (0.8, 0.5, 0.2)[accepted]:
            accepted += 1
        survival.note(3, accepted)
    assert survival.odds == pytest.approx([0.8, 0.5, 0.2], abs=0.12)
    survival.odds = [0.8, 0.5]
    assert survival.tokens(3) == pytest.approx(1 + 0.8 + 0.4 + 0.2)
    assert survival.tokens(0) == 1


def test_a_profile_between_and_beyond_its_points() -> None:
    profile = Profile({1: 1.0, 2: 2.0, 4: 3.0})
    assert [profile.seconds(rows) for rows in (1, 1.5, 2, 3, 4, 6)] == [1.0, 1.5, 2.0, 2.5, 3.0, 4.0]
    assert profile.most_rows(2.5, 1, 100) == 3
    assert profile.most_rows(0.5, 2, 100) == 2
    assert Profile({8: 2.0}).seconds(100) == 2.0
    for _ in range(100):
        profile.update(2, 4.0)
    assert profile.points[2] == pytest.approx(4.0, rel=0.05)
    assert list(grid(20)) == [1, 2, 4, 8, 16]


def test_the_token_budget_keeps_steps_to_a_time() -> None:
    """On a machine that becomes twice as slow, and fast again; decodes go on even where they alone take longer."""
    profile = times(bent)
    pace = Pace(profile, 0.100, 4, 512)
    machine = Machine(bent, 0.0, noise=0.1)
    for slowness in (1.0, 2.0, 1.0):
        for _ in range(150):
            budget = pace.token_budget
            pace.note(budget, slowness * machine.step(1, budget - 1).step)
        assert 0.08 < slowness * bent(pace.token_budget) < 0.12
    assert Pace(times(bent), 0.001, 4, 512).token_budget == 4
    assert Pace(times(bent), 10.0, 4, 512).token_budget == 512


def test_a_loop_keeps_to_the_time(tmp_path: Path) -> None:
    """A long prompt beside a decode: chunks follow a clock on which a token takes a millisecond."""
    llm = load(make_model(tmp_path / "model", max_position_embeddings=2048))
    loop = make_loop(llm, blocks=600, token_budget=256)
    loop.pace = Pace(Profile({1: 0.001, 256: 0.256}), 0.050, 8, 256)
    now = [0.0]
    loop.clock = lambda: now[0]
    sizes: list[int] = []
    read = loop.runner.read

    def slow(running):
        sizes.append(running.step.num_tokens)
        now[0] += 0.002 * running.step.num_tokens  # twice as slow as measured at the start
        return read(running)

    loop.runner.read = slow
    requests = [request(llm, "one", [5] * 10, replace(GREEDY, max_tokens=60)), request(llm, "two", [7] * 900, GREEDY)]
    got = run(loop, requests)
    assert len(got["one"][0]) == 60 and len(got["two"][0]) == 12
    chunks = [size for size in sizes if size > 8]
    assert max(chunks[:4]) > 40 and all(20 <= size <= 30 for size in chunks[20:-1])


def test_odd_times_are_refused() -> None:
    for value in (0, -1.0, float("inf"), "fast", True):
        with pytest.raises(ValueError, match="step_seconds: expected seconds above 0"):
            SchedulerConfig(step_seconds=value)

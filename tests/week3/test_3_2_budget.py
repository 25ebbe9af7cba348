"""3.2 The token budget: how prompts share what the decodes leave, and the order within a step."""

from typing import Any

from tests.week3.loads import engine, request, run
from tiny_llm.course.check import Checker, task


def load(m: Any, steps: int, *lengths: int, **settings: int) -> list[str]:
    """Prompts A, B, C … of these lengths, all there from the beginning."""
    scheduler = engine(m, 200, **settings)
    for i, length in enumerate(lengths):
        scheduler.add(request("ABCDEF"[i], range(100 * i, 100 * i + length), 3, arrival=float(i)), 0.0)
    return run(scheduler, steps)


@task("w3.2.1")
def test_a_long_prompt_in_chunks(check: Checker) -> None:
    check(lambda m: load(m, 3, 40), ["A[0:16]", "A[16:32]", "A[32:40]"], what="steps of a prompt of 40, budget 16")


@task("w3.2.1")
def test_half_is_the_eldests(check: Checker) -> None:
    """B and C together may have 8 of 16; the shorter goes first. What they leave is the eldest's."""
    want = ["C[0:3] B[0:5] A[0:8]", "C[3:4] B[5:12] A[8:16]", "C[4:5] B[12:19] A[16:24]"]
    check(lambda m: load(m, 3, 60, 30, 3), want, what="steps of prompts of 60, 30 and 3 tokens")


@task("w3.2.1")
def test_who_decodes_goes_first(check: Checker) -> None:
    """What the decodes take is not there for prompts: 13 are left, of which 7 are reserved."""

    def call(m: Any) -> list[str]:
        scheduler = engine(m, 200, max_sequences=6)
        for i, name in enumerate("ABC"):
            scheduler.add(request(name, [i], 9), 0.0)
        run(scheduler, 1)
        scheduler.add(request("D", range(100, 140), 3, arrival=1.0), 1.0)
        scheduler.add(request("E", range(200, 240), 3, arrival=2.0), 2.0)
        return run(scheduler, 2)

    want = ["A[1:2] B[1:2] C[1:2] E[0:6] D[0:7]", "A[2:3] B[2:3] C[2:3] E[6:12] D[7:14]"]
    check(call, want, what="steps with three that decode")


@task("w3.2.1")
def test_an_odd_token_is_the_eldests(check: Checker) -> None:
    want = ["B[0:2] A[0:3]", "B[2:4] A[3:6]"]
    check(lambda m: load(m, 2, 20, 20, token_budget=5), want, what="steps with a budget of 5")


@task("w3.2.1")
def test_a_step_without_prompts(check: Checker) -> None:
    check(lambda m: load(m, 4, 2), ["A[0:2]", "A[2:3]", "A[3:4]", ""], what="steps of one short request")


@task("w3.2.2")
def test_decodes_then_newcomers_then_prompts(check: Checker) -> None:
    """B comes while A decodes: the step has A's token, lets B in, and gives B's prompt the rest."""

    def call(m: Any) -> list[str]:
        scheduler = engine(m)
        scheduler.add(request("A", range(3), 5), 0.0)
        lines = run(scheduler, 1)
        scheduler.add(request("B", range(50, 80), 5), 1.0)
        return lines + run(scheduler, 2)

    check(call, ["A[0:3]", "A[3:4] B[0:15]", "A[4:5] B[15:30]"], what="steps")


@task("w3.2.2")
def test_steps_are_numbered(check: Checker) -> None:
    def call(m: Any) -> list[int]:
        scheduler = engine(m)
        return [scheduler.schedule(0.0).number for _ in range(3)]

    check(call, [1, 2, 3], what="numbers")


@task("w3.2.2")
def test_prompts_that_hold_each_others_blocks(check: Checker) -> None:
    """Each had its first two blocks when the last free one went: B, the later one, gives its two to A."""
    check(stuck, ["A[8:16] | out: B", "B[0:8]", "B[8:12]"], what="steps of prompts that are stuck")


def stuck(m: Any) -> list[str]:
    """A needs four blocks and holds two, B needs three and holds two: together they hold all four."""
    scheduler = engine(m, 4, token_budget=8)
    (a,) = scheduler.add(request("A", range(16), 1), 0.0)
    (b,) = scheduler.add(request("B", range(50, 62), 1, arrival=1.0), 0.0)
    for sequence in (a, b):
        scheduler.sequences.start(scheduler.waiting.pop(), scheduler.ledger.match(sequence))
        sequence.block_table = [scheduler.blocks.allocate() for _ in range(2)]
        sequence.computed = 8
    return run(scheduler, 3)

"""3.1 Continuous batching: who goes first, who decodes, who comes in, and what a finished step changes."""

from typing import Any

from tests.week3.loads import engine, request, result, run, told
from tiny_llm.config import SchedulerConfig
from tiny_llm.course.check import Checker, task

CONFIG = SchedulerConfig(patience=10.0, priority_seconds=4.0)


@task("w3.1.1")
def test_due_by_hand(check: Checker) -> None:
    """Patience 10: who came at 5 is due at 15, with a deadline at 7 then; two levels of priority are 8 s."""
    plain = request("A", [1], arrival=5.0)
    check(lambda m: m.due_time(plain, CONFIG), 15.0, what="due (came at 5)")
    soon = request("A", [1], arrival=5.0, deadline=7.0)
    check(lambda m: m.due_time(soon, CONFIG), 7.0, what="due (came at 5, deadline 7)")
    late = request("A", [1], arrival=5.0, deadline=100.0)
    check(lambda m: m.due_time(late, CONFIG), 15.0, what="due (came at 5, deadline 100)")
    past = request("A", [1], arrival=5.0, deadline=-100.0)
    check(lambda m: m.due_time(past, CONFIG), 5.0, what="due (came at 5, deadline -100)")
    urgent = request("A", [1], arrival=5.0, deadline=7.0, priority=2)
    check(lambda m: m.due_time(urgent, CONFIG), -1.0, what="due (came at 5, deadline 7, priority 2)")


def decoding(m: Any, num_blocks: int, steps: int) -> list[str]:
    scheduler = engine(m, num_blocks)
    for i, name in enumerate("ABC"):
        scheduler.add(request(name, range(4), 12, arrival=float(i)), 0.0)
    return run(scheduler, steps)


@task("w3.1.2")
def test_a_token_each(check: Checker) -> None:
    want = ["B[0:4] C[0:4] A[0:4]", "A[4:5] B[4:5] C[4:5]", "A[5:6] B[5:6] C[5:6]"]
    check(lambda m: decoding(m, 20, 3), want, what="steps of three")


@task("w3.1.2")
def test_prompts_are_left_to_others(check: Checker) -> None:
    def call(m: Any) -> list[str]:
        scheduler = engine(m, token_budget=8)
        scheduler.add(request("A", range(3), 6), 0.0)
        scheduler.add(request("B", range(20), 2, arrival=1.0), 0.0)
        return run(scheduler, 4)

    want = ["B[0:5] A[0:3]", "A[3:4] B[5:12]", "A[4:5] B[12:19]", "A[5:6] B[19:20]"]
    check(call, want, what="steps beside a prompt")


@task("w3.1.2")
def test_the_last_gives_way(check: Checker) -> None:
    """Seven blocks of four tokens: at token 8 each of the three wants its third block, and one is left."""
    want = ["A[7:8] B[7:8] C[7:8]", "A[8:9] B[8:9] | out: C"]
    check(lambda m: decoding(m, 7, 6)[4:], want, what="fifth and sixth step on seven blocks")


def admitted(m: Any, scheduler: Any, *requests: Any, steps: int = 1) -> list[str]:
    """Who comes in, step by step."""
    for i, one in enumerate(requests):
        scheduler.add(one, float(i))
    found = []
    for i in range(steps):
        step = scheduler.schedule(float(i))
        found.append(" ".join(s.request.id for s in scheduler.plan.admitted) or "nobody")
        scheduler.finish(step, [result(share, 7) for share in step.shares], float(i))
    return found


@task("w3.1.3")
def test_as_many_as_there_are_slots(check: Checker) -> None:
    def call(m: Any) -> list[str]:
        return admitted(m, engine(m, max_sequences=2), *(request(name, [1, 2], 2) for name in "ABC"), steps=3)

    def several(m: Any) -> list[str]:
        return admitted(m, engine(m), request("A", [1], 2, n=3), request("B", [1], 2, n=2), steps=4)

    check(call, ["A B", "nobody", "C"], what="admitted on two slots")
    check(several, ["A", "nobody", "B", "nobody"], what="admitted (n = 3, then 2, on four slots)")


@task("w3.1.3")
def test_promised_blocks_are_not_given_away(check: Checker) -> None:
    """A's prompt takes 8 of 12 blocks, but in its first step only 4: B's 5 would be taken from what A still needs.

    And who runs is to find a block more. On four blocks two prompts of 7 tokens fill the pool: neither could grow. By
    itself a request may have the whole pool.
    """

    def call(m: Any) -> list[str]:
        return admitted(m, engine(m, 12), request("A", range(30), 2), request("B", range(50, 70), 1), steps=4)

    def growing(m: Any) -> list[str]:
        return admitted(m, engine(m, 4), request("A", range(7), 3), request("B", range(7), 3), steps=4)

    check(call, ["A", "nobody", "nobody", "B"], what="admitted on 12 blocks")
    check(growing, ["A", "nobody", "nobody", "B"], what="admitted on 4 blocks")
    check(lambda m: admitted(m, engine(m, 4), request("C", range(14), 3)), ["C"], what="admitted alone")


@task("w3.1.3")
def test_nobody_comes_in_when_somebody_gave_way(check: Checker) -> None:
    """A and B fill seven blocks; when B gives way its slot is free, but D has to wait for the next step."""

    def call(m: Any) -> list[str]:
        scheduler = engine(m, 7, max_sequences=2)
        found = admitted(m, scheduler, request("A", range(4), 14), request("B", range(50, 58), 14))
        return found + admitted(m, scheduler, request("D", [5], 1, priority=5), steps=10)

    check(call, ["A B", *["nobody"] * 9, "D"], what="admitted around a preemption")


def shared(m: Any, num_blocks: int, *lengths: int) -> list[str]:
    """A prompt of 12 tokens was computed before; then others that begin with it come while one runs."""
    scheduler = engine(m, num_blocks, tree=True)
    scheduler.add(request("old", range(13), 1), 0.0)
    run(scheduler, 1)
    scheduler.add(request("run", [99], 3), 1.0)
    run(scheduler, 1)
    requests = [request(f"new{length}", range(length), 1) for length in lengths]
    return admitted(m, scheduler, *requests)


@task("w3.1.3")
def test_found_blocks_need_not_be_had_again(check: Checker) -> None:
    """Nine blocks: one runs, three are the tree's. 32 tokens are 8 blocks, 3 of them found: 5 + 3 + 2 to grow."""
    check(lambda m: shared(m, 11, 32), ["new32"], what="admitted (8 blocks, 3 found, 10 to be had)")
    check(lambda m: shared(m, 10, 32), ["nobody"], what="admitted (8 blocks, 3 found, 9 to be had)")


@task("w3.1.4")
def test_a_chunk_gives_no_token_and_moves_on(check: Checker) -> None:
    def call(m: Any) -> list[str]:
        scheduler = engine(m)
        scheduler.add(request("A", range(40), 2), 0.0)
        return run(scheduler, 4)

    check(call, ["A[0:16]", "A[16:32]", "A[32:40]", "A[40:41]"], what="steps of a long prompt")


@task("w3.1.4")
def test_who_ends_is_returned(check: Checker) -> None:
    def call(m: Any) -> list[Any]:
        scheduler, found = engine(m), []
        scheduler.add(request("A", [1], 1), 0.0)
        scheduler.add(request("B", [1], 3, stop_tokens=frozenset({7})), 0.0)
        scheduler.add(request("C", [1], 3), 0.0)
        for token in (5, 7, 9):
            step = scheduler.schedule(0.0)
            ended = scheduler.finish(step, [result(share, token) for share in step.shares], 0.0)
            found.append([f"{s.request.id} {s.output} {s.finish_reason}" for s in ended])
        return found

    want = [["A [5] length"], ["B [5, 7] stop"], ["C [5, 7, 9] length"]]
    check(call, want, what="what ended, step by step")


@task("w3.1.4")
def test_continuations_begin_when_the_prompt_is_there(check: Checker) -> None:
    def call(m: Any) -> list[str]:
        scheduler = engine(m)
        scheduler.add(request("A", range(6), 2, n=3), 0.0)
        return run(scheduler, 3)

    check(call, ["A[0:6]", "A[6:7] A1[5:6] A2[5:6]", "A1[6:7] A2[6:7]"], what="steps of three continuations")


@task("w3.1.4")
def test_a_prompts_blocks_are_found_at_once(check: Checker) -> None:
    def call(m: Any) -> list[str]:
        scheduler = engine(m, tree=True)
        scheduler.add(request("A", range(12), 5), 0.0)
        lines = run(scheduler, 1)
        scheduler.add(request("B", [*range(8), 60, 61], 5), 1.0)
        return lines + run(scheduler, 1)

    check(call, ["A[0:12]", "A[12:13] B[8:10]"], what="steps of two that begin alike")


@task("w3.1.4")
def test_who_was_cancelled_under_way_gets_nothing(check: Checker) -> None:
    def call(m: Any) -> list[Any]:
        scheduler = engine(m)
        (a,) = scheduler.add(request("A", [1, 2], 5), 0.0)
        run(scheduler, 1)
        step = scheduler.schedule(1.0)
        scheduler.cancel("A", 1.0)
        scheduler.finish(step, [result(share, 5) for share in step.shares], 1.0)
        return [told(step), a.output, a.computed]

    check(call, ["A[2:3]", [2], 2], what="step, output, computed")


@task("w3.1.4")
def test_those_behind_a_cancelled_one_go_on(check: Checker) -> None:
    def call(m: Any) -> list[Any]:
        scheduler = engine(m)
        sequences = [scheduler.add(request(name, [1, 2], 5, arrival=float(i)), 0.0)[0] for i, name in enumerate("ABC")]
        run(scheduler, 1)
        step = scheduler.schedule(1.0)
        scheduler.cancel("A", 1.0)
        scheduler.finish(step, [result(share, 5) for share in step.shares], 1.0)
        return [told(step), *(s.output for s in sequences)]

    check(call, ["A[2:3] B[2:3] C[2:3]", [2], [2, 5], [2, 5]], what="step, outputs")

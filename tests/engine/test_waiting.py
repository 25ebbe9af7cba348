"""The waiting line against the plainest one: look through everybody, each time."""

from random import Random

import pytest

from tiny_llm.config import SamplingParams
from tiny_llm.engine.request import Request, Sequence, State
from tiny_llm.engine.sequences import Waiting

WEIGHTS = {"a": 2.0}


def plain_next(line: Waiting, there: list[Sequence]) -> Sequence | None:
    """The tenant with the least counter (on a tie the one whose first is due first), and of it the first in rank."""
    firsts = {s.request.tenant: s for s in sorted(there, key=lambda s: s.rank, reverse=True)}
    return min(firsts.values(), key=lambda s: (line.counters[s.request.tenant], s.rank), default=None)


@pytest.mark.parametrize("seed", range(20))
def test_the_next_is_the_one_that_looking_through_everybody_gives(seed: int) -> None:
    random, line, there = Random(seed), Waiting(WEIGHTS), list[Sequence]()
    for i in range(600):
        action = random.choice(("push", "push", "pop", "cancel"))
        if action == "push":
            request = Request(str(i), (1,), SamplingParams(), tenant=random.choice("abcde"))
            there.append(Sequence(request, rank=(float(random.randrange(50)), i)))
            line.push(there[-1])
        elif action == "pop" and there:
            chosen = line.pop()
            assert chosen is plain_next(line, there)
            there.remove(chosen)
            line.charge(chosen.request.tenant, random.randrange(1, 20))
        elif there:
            gone = there.pop(random.randrange(len(there)))
            gone.state = State.FINISHED
            line.cancelled(gone)
        assert len(line) == len(there)
        assert line.peek() is plain_next(line, there)


def test_weights_divide_what_is_charged() -> None:
    line = Waiting(WEIGHTS)
    line.charge("a", 10)
    line.charge("b", 10)
    assert (line.counters["a"], line.counters["b"]) == (5.0, 10.0)

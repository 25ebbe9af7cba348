"""3.8 Why it is lossless: what a rejected guess leaves, siblings without replacement, and rule B by enumeration."""

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import permutations, product
from typing import Any

import numpy as np

from tiny_llm.course.check import Checker, task

Row = list[Fraction]  # a distribution
Rows = Sequence[Row]
Call = Callable[[Any], Any]
V = 3


def of(*parts: int) -> Row:
    return [Fraction(part, sum(parts)) for part in parts]


def exact(row: Row) -> Any:
    """The row as the functions under test get it, in fractions."""
    return np.array(row, dtype=object)


def floats(row: Row) -> Any:
    return np.array([float(x) for x in row])


def told(row: Any) -> list[float]:
    return [round(float(x), 9) for x in row]


def left_of(p: Row, q: Row) -> Row:
    """The part of p above q, token by token, divided by its sum."""
    above = [a - b if a > b else Fraction(0) for a, b in zip(p, q, strict=True)]
    return [x / sum(above) for x in above] if sum(above) else p


def others_of(q: Row, token: int) -> Row:
    total = sum(x for i, x in enumerate(q) if i != token)
    return [x / total if i != token else Fraction(0) for i, x in enumerate(q)] if total else q


PAIRS = [
    (of(1, 2, 3, 4), of(4, 3, 2, 1)),
    (of(5, 3, 2), of(2, 5, 3)),
    (of(4, 4, 2), of(6, 1, 3)),
    (of(0, 1, 3), of(1, 1, 2)),
    (of(3, 5), of(1, 0)),
]


@task("w3.8.1")
def test_what_is_left_by_hand(check: Checker) -> None:
    """p = .1 .2 .3 .4 and q = .4 .3 .2 .1: what p has more is .1 and .3 of the last two, so ¼ and ¾."""
    want = [told(left_of(p, q)) for p, q in PAIRS]
    assert want[:2] == [[0, 0, 0.25, 0.75], [1, 0, 0]]
    check(lambda m: [told(m.residual(floats(p), floats(q))) for p, q in PAIRS], want, what="what is left of five")


@task("w3.8.1")
def test_p_and_q_stay_as_they_are(check: Checker) -> None:
    def call(m: Any) -> list[Any]:
        p, q = floats(PAIRS[0][0]), floats(PAIRS[0][1])
        return [told(m.residual(p, q)), told(p), told(q)]

    p, q = PAIRS[0]
    check(call, [told(left_of(p, q)), told(p), told(q)], what="what is left, then p and q")


@task("w3.8.1")
def test_where_both_are_the_same(check: Checker) -> None:
    """Nothing can be rejected, and p is the answer."""
    rows = [of(1, 2, 3), of(1, 0), of(1, 1, 1, 1)]
    check(lambda m: [told(m.residual(floats(p), floats(p))) for p in rows], [told(p) for p in rows], what="p = q")


@task("w3.8.1")
def test_in_fractions(check: Checker) -> None:
    """And a guess that was certain: q has one token."""
    pairs = [*PAIRS, (of(2, 3, 5), of(0, 1, 0))]
    want = [told(left_of(p, q)) for p, q in pairs]
    check(lambda m: [told(m.residual(exact(p), exact(q))) for p, q in pairs], want, what="what is left of fractions")


@task("w3.8.1")
def test_random_distributions(check: Checker) -> None:
    rng = np.random.default_rng(0)
    pairs = [(of(*rng.integers(0, 9, 40).tolist()), of(*rng.integers(1, 9, 40).tolist())) for _ in range(10)]
    want = [told(left_of(p, q)) for p, q in pairs]
    check(lambda m: [told(m.residual(floats(p), floats(q))) for p, q in pairs], want, what="what is left of ten")


DRAWN = [(of(4, 3, 2, 1), 0), (of(4, 3, 2, 1), 3), (of(1, 1), 1), (of(0, 2, 6), 1), (of(0, 2, 6), 0)]


@task("w3.8.2")
def test_the_other_tokens_by_hand(check: Checker) -> None:
    """q = .4 .3 .2 .1 without its first token: .3 .2 .1 of .6."""
    want = [told(others_of(q, token)) for q, token in DRAWN]
    assert want[0] == [0, 0.5, 0.333333333, 0.166666667]
    check(
        lambda m: [told(m.without(floats(q), token)) for q, token in DRAWN], want, what="q without a token, five times"
    )
    check(lambda m: [told(m.without(exact(q), token)) for q, token in DRAWN], want, what="the same in fractions")


@task("w3.8.2")
def test_q_stays_as_it_is(check: Checker) -> None:
    def call(m: Any) -> list[Any]:
        q = floats(of(4, 3, 2, 1))
        return [told(m.without(q, 1)), told(q)]

    check(call, [told(others_of(of(4, 3, 2, 1), 1)), [0.4, 0.3, 0.2, 0.1]], what="without 1, then q itself")


@task("w3.8.2")
def test_a_certain_token(check: Checker) -> None:
    """Nothing else can be drawn: q is returned."""

    def call(m: Any) -> list[Any]:
        q = floats(of(0, 1, 0))
        return [told(m.without(q, 1)), told(q)]

    check(call, [[0, 1, 0], [0, 1, 0]], what="q without its only token, then q itself")


@task("w3.8.2")
def test_one_after_the_other(check: Checker) -> None:
    """Without two tokens, in either order: what is left has the same shares."""

    def call(m: Any) -> list[Any]:
        q = floats(of(1, 2, 3, 4))
        return [told(m.without(m.without(q, a), b)) for a, b in ((0, 3), (3, 0), (1, 2))]

    want = [told(of(0, 2, 3, 0)), told(of(0, 2, 3, 0)), told(of(1, 0, 0, 4))]
    check(call, want, what="without two tokens")


class Uniform:
    """A number somewhere in [0, 1), of which only comparisons are decided: it stands for scale · u + shift."""

    __array_ufunc__ = None  # so that NumPy's numbers leave the arithmetic to this class

    def __init__(self, die: "Die", scale: Any = 1, shift: Any = 0):
        self.die, self.scale, self.shift = die, scale, shift

    def __mul__(self, other: Any) -> "Uniform":
        return Uniform(self.die, self.scale * other, self.shift * other)

    def __truediv__(self, other: Any) -> "Uniform":
        return Uniform(self.die, self.scale / other, self.shift / other)

    def __add__(self, other: Any) -> "Uniform":
        return Uniform(self.die, self.scale, self.shift + other)

    def __sub__(self, other: Any) -> "Uniform":
        return self + -other

    def __neg__(self) -> "Uniform":
        return self * -1

    def __rsub__(self, other: Any) -> "Uniform":
        return -self + other

    __rmul__, __radd__ = __mul__, __add__

    def __lt__(self, other: Any) -> bool:
        if not self.scale:
            return bool(self.shift < other)
        below = self.die.is_below((other - self.shift) / self.scale)
        return below if self.scale > 0 else not below

    def __gt__(self, other: Any) -> bool:
        return not self < other

    __le__, __ge__ = __lt__, __gt__  # equal with probability 0


class Die:
    """What is known of one random number: its range, which each comparison narrows."""

    def __init__(self, decide: Callable[[Any], bool]):
        self.decide = decide
        self.low, self.high = Fraction(0), Fraction(1)

    def is_below(self, border: Any) -> bool:
        if border <= self.low or border >= self.high:
            return bool(border >= self.high)
        below = self.decide((border - self.low) / (self.high - self.low))
        if below:
            self.high = border
        else:
            self.low = border
        return below


def outcomes(run: Callable[[Callable[[Any], bool]], Any]) -> Iterator[tuple[Any, Any]]:
    """Every result of a function that asks for decisions, with its probability."""
    script: list[bool] = []
    while True:
        asked: list[bool] = []
        share: list[Any] = [1]

        def decide(
            chance: Any, script: list[bool] = script, asked: list[bool] = asked, share: list[Any] = share
        ) -> bool:
            answer = script[len(asked)] if len(asked) < len(script) else True
            asked.append(answer)
            share[0] *= chance if answer else 1 - chance
            return answer

        result = run(decide)
        yield result, share[0]
        script = asked
        while script and not script[-1]:
            script.pop()
        if not script:
            return
        script[-1] = False


Tree = tuple[tuple[int, ...], tuple[int, ...]]


def text_to(tree: Tree, node: int) -> tuple[int, ...]:
    tokens, parents = tree
    return () if node < 0 else (*text_to(tree, parents[node]), tokens[node])


def after(rows: Rows) -> Callable[[tuple[int, ...]], Row]:
    """A small language model: the distribution after some tokens."""
    return lambda text: rows[(sum(text) + len(text)) % len(rows)]


def drawn_trees(q: Any, siblings: int, depth: int) -> Iterator[tuple[Tree, Fraction]]:
    """Every tree whose siblings are drawn without replacement, with more behind the last sibling of each level."""

    def grow(tree: Tree, at: int, level: int, share: Fraction) -> Iterator[tuple[Tree, Fraction]]:
        if level == depth:
            yield tree, share
            return
        row = q(text_to(tree, at))
        possible = [token for token in range(len(row)) if row[token]]
        for guesses in permutations(possible, min(siblings, len(possible))):
            part, rest = share, row
            for token in guesses:
                part *= rest[token]
                rest = others_of(rest, token)
            grown = ((*tree[0], *guesses), (*tree[1], *[at] * len(guesses)))
            yield from grow(grown, len(grown[0]) - 1, level + 1, part)

    yield from grow(((), ()), -1, 0, Fraction(1))


def walked(m: Any, tree: Tree, p: Any, q: Any, decide: Callable[[Any], bool]) -> tuple[tuple[int, ...], list[Any]]:
    """The accepted tokens and what the next is drawn from, by the rule under test."""
    dice: dict[int, Uniform] = {}

    def uniform(child: int) -> Uniform:
        return dice.setdefault(child, Uniform(Die(decide)))

    kept, left = m.accepted_of_drawn(
        m.DraftTree(*tree),
        lambda node: exact(p(text_to(tree, node))),
        lambda node: exact(q(text_to(tree, node))),
        uniform,
    )
    return tuple(tree[0][node] for node in kept), list(left)


def answers(m: Any, p: Any, q: Any, trees: Any, length: int) -> list[float]:
    """The probability of each text of this length: accepted guesses, the token behind them, then the model alone."""
    found: dict[tuple[int, ...], Any] = dict.fromkeys(product(range(V), repeat=length), 0)
    for tree, chance in trees:
        for (begun, left), share in outcomes(lambda decide, tree=tree: walked(m, tree, p, q, decide)):
            for token in range(V):
                for text, part in continued(p, (*begun, token), chance * share * left[token], length):
                    found[text] += part
    return told(found.values())


def continued(p: Any, text: tuple[int, ...], share: Any, length: int) -> Iterator[tuple[tuple[int, ...], Any]]:
    if len(text) >= length:
        yield text[:length], share
        return
    for token in range(V):
        yield from continued(p, (*text, token), share * p(text)[token], length)


def alone(p: Any, length: int) -> list[float]:
    """What the model answers without guesses."""
    return told(share for _, share in continued(p, (), Fraction(1), length))


def lossless(p_rows: Rows, q_rows: Rows, siblings: int, depth: int) -> tuple[Call, list[float]]:
    """What to call, and what it should give."""
    p, q = after(p_rows), after(q_rows)
    trees = list(drawn_trees(q, siblings, depth))
    assert sum(chance for _, chance in trees) == 1
    return lambda m: answers(m, p, q, trees, depth + 1), alone(p, depth + 1)


def check_lossless(check: Checker, cases: Sequence[tuple[Call, list[float]]], what: str) -> None:
    check(lambda m: [call(m) for call, _ in cases], [want for _, want in cases], what=what)


P = {-1: of(5, 3, 2), 0: of(1, 1, 2), 1: of(2, 6, 2), 2: of(0, 4, 6), 3: of(1, 1, 1)}
Q = {-1: of(2, 5, 3), 0: of(4, 3, 1), 1: of(6, 2, 2), 2: of(1, 1, 1), 3: of(1, 1, 1)}
CHAIN = ((1, 0, 2), (-1, 0, 1))
LONGER = ((1, 0, 2, 0), (-1, 0, 1, 2))
SIBLINGS = ((1, 2, 0), (-1, -1, -1))
LEVELS = ((1, 2, 0), (-1, -1, 1))


def by_rule_b(tree: Tree, numbers: Sequence[float]) -> list[Any]:
    """The nodes kept and what is left, in the words of the rule."""
    tokens, parents = tree
    kept, at = [], -1
    while True:
        p, q = P[at], Q[at]
        for child in [i for i, parent in enumerate(parents) if parent == at]:
            token = tokens[child]
            if Fraction(numbers[child]) < min(Fraction(1), p[token] / q[token]):
                kept.append(child)
                at = child
                break
            p, q = left_of(p, q), others_of(q, token)
        else:
            return [kept, told(p)]


def by_module(m: Any, tree: Tree, numbers: Sequence[float]) -> list[Any]:
    kept, left = m.accepted_of_drawn(
        m.DraftTree(*tree), lambda node: floats(P[node]), lambda node: floats(Q[node]), lambda child: numbers[child]
    )
    return [list(kept), told(left)]


def check_walks(check: Checker, walks: Sequence[tuple[Tree, Sequence[float]]], what: str) -> None:
    want = [by_rule_b(*walk) for walk in walks]
    check(lambda m: [by_module(m, *walk) for walk in walks], want, what=f"[kept, left] of {what}")


@task("w3.8.3")
def test_a_chain_by_hand(check: Checker) -> None:
    """1 is accepted below 3/5, then 0 below (1/4) / (1/2), then 2 always, since p is not below q."""
    rows = [(0.59, 0.49, 0.99), (0.61, 0.0, 0.0), (0.0, 0.51, 0.0), (0.3, 0.3, 0.3), (0.59, 0.55, 0.2)]
    assert [by_rule_b(CHAIN, row)[0] for row in rows] == [[0, 1, 2], [], [0], [0, 1, 2], [0]]
    siblings = [(SIBLINGS, (0.95, 0.3, 0.2)), (SIBLINGS, (0.95, 0.95, 0.95)), (SIBLINGS, (0.1, 0.1, 0.1))]
    check_walks(check, [*((CHAIN, row) for row in rows), *siblings], "chains and siblings")
    check_walks(check, [(((), ()), ())], "an empty draft")


@task("w3.8.3")
def test_siblings_by_hand(check: Checker) -> None:
    """Rejected ones leave less and less of p; q is that of the tokens that were left to draw."""
    grid = (0.05, 0.3, 0.5, 0.62, 0.95)
    rows = list(product((0.3, 0.62, 0.95), grid, grid))
    check_walks(check, [(SIBLINGS, row) for row in rows], "three siblings")
    check_walks(check, [(LEVELS, row) for row in rows], "two siblings, and one behind the second")


@task("w3.8.3")
def test_a_guess_with_p_zero_is_never_kept(check: Checker) -> None:
    """Also where its random number is 0, which it may be."""
    rows = [(0.1, 0.1, 0.1, 0.0), (0.0, 0.0, 0.0, 0.0)]
    assert [by_rule_b(LONGER, row)[0] for row in rows] == [[0, 1, 2], [0, 1, 2]]
    walks = [(CHAIN, (0.61, 0.0, 0.0)), *((LONGER, row) for row in rows)]
    check_walks(check, walks, "a chain, and of one whose last guess has p = 0")


@task("w3.8.3")
def test_one_guess_changes_no_probability(check: Checker) -> None:
    """By exact enumeration: of each guess with its probability, of accepting it, and of the draw behind."""
    pairs = [
        (of(5, 3, 2), of(2, 5, 3)),
        (of(1, 1, 1), of(1, 2, 6)),
        (of(0, 2, 3), of(4, 1, 1)),
        (of(1, 0, 0), of(1, 5, 0)),
    ]
    check_lossless(check, [lossless([p], [q], 1, 1) for p, q in pairs], "probabilities of texts of 2 tokens")


MODELS = [of(1, 1, 1), of(4, 3, 1), of(0, 2, 3), of(1, 0, 0), of(5, 1, 4)]
DRAFTERS = [[of(3, 4, 1), of(1, 1, 2)], MODELS, [of(1, 5, 0)], [of(1, 1, 1)]]


@task("w3.8.3")
def test_chains_and_siblings_change_no_probability(check: Checker) -> None:
    """Whatever the drafter's distributions are, one token alone or the model's own among them."""
    for siblings, depth in ((2, 1), (3, 1), (1, 2), (2, 2)):
        cases = [lossless(MODELS, q_rows, siblings, depth) for q_rows in DRAFTERS]
        check_lossless(check, cases, f"probabilities, {siblings} siblings on each of {depth} levels")


@task("w3.8.3")
def test_a_likely_guess_is_accepted_as_often_as_p_and_q_overlap(check: Checker) -> None:
    """The probability of acceptance of one guess is Σ min(p, q)."""
    pairs = [(of(5, 3, 2), of(2, 5, 3)), (of(4, 3, 1), of(1, 1, 2)), (of(1, 1, 1), of(1, 1, 1))]

    def call(m: Any) -> list[float]:
        return told(accepted_share(m, p, q) for p, q in pairs)

    want = told(sum(min(a, b) for a, b in zip(p, q, strict=True)) for p, q in pairs)
    check(call, want, what="probability that a guess is accepted")


def accepted_share(m: Any, p: Row, q: Row) -> Any:
    total = 0
    for tree, chance in drawn_trees(after([q]), 1, 1):
        for (begun, _), share in outcomes(lambda decide, tree=tree: walked(m, tree, after([p]), after([q]), decide)):
            total += chance * share * len(begun)
    return total


@task("w3.8.3")
def test_a_certain_guess_has_q_one(check: Checker) -> None:
    """A greedy guess comes from a q of one token. Scored with the softmax that it is the largest of, it is biased."""
    p, q, certain = of(1, 1, 0), of(6, 4, 0), of(1, 0, 0)
    greedy = [(((0,), (-1,)), Fraction(1))]

    def call(m: Any) -> list[list[float]]:
        return [answers(m, after([p]), after([scored]), greedy, 1) for scored in (certain, q)]

    check(call, [told(p), told([Fraction(5, 6), Fraction(1, 6), 0])], what="answers, scored with q = 1, and with 0.6")


@task("w3.8.3")
def test_a_guess_that_is_left_out_for_its_q_is_missed(check: Checker) -> None:
    """q = .9 .1, and the guess 1 is dropped because it is unlikely: the answer leans to 0. Kept, it is p."""
    p, q = of(1, 1, 0), of(9, 1, 0)
    both = [(((token,), (-1,)), q[token]) for token in (0, 1)]
    dropping = [both[0], (((), ()), q[1])]

    def call(m: Any) -> list[list[float]]:
        return [answers(m, after([p]), after([q]), trees, 1) for trees in (both, dropping)]

    check(call, [told(p), [0.55, 0.45, 0]], what="answers with every guess, and without the unlikely one")

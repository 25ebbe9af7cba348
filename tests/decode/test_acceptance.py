"""The rules of speculative decoding, by exact enumeration: whatever is drafted, the answer's distribution is p."""

from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import permutations, product

import numpy as np
import pytest

from tiny_llm.decode.acceptance import DraftTree, accepted, accepted_of_drawn, residual, without

V = 3


def of(*parts: int) -> np.ndarray:
    return np.array([Fraction(part, sum(parts)) for part in parts], dtype=object)


MODELS = [of(1, 1, 1), of(4, 3, 1), of(0, 2, 3), of(1, 0, 0), of(5, 1, 4)]


def after(rows: list[np.ndarray]) -> Callable[[tuple[int, ...]], np.ndarray]:
    """A small language model: the distribution after some tokens."""
    return lambda text: rows[(sum(text) + len(text)) % len(rows)]


def texts(model: Callable, length: int) -> dict[tuple[int, ...], Fraction]:
    """The probability of each text of this length, as the model draws it token by token."""
    found = {}
    for text in product(range(V), repeat=length):
        share = Fraction(1)
        for i in range(length):
            share *= model(text[:i])[text[i]]
        found[text] = share
    return found


def text_of(tree: DraftTree, node: int) -> tuple[int, ...]:
    return tuple(tree.tokens[i] for i in tree.path(node))


TREES = [
    DraftTree(),
    DraftTree.chain([0]),
    DraftTree.chain([1, 2, 0]),
    DraftTree((0, 1, 2), (-1, -1, -1)),
    DraftTree((0, 1, 2, 0, 1), (-1, -1, 0, 0, 2)),
    DraftTree((2, 0, 2, 1, 1), (-1, 0, 0, -1, 3)),
]


def continued(model: Callable, text: tuple[int, ...], share: Fraction, length: int) -> Iterator[tuple]:
    """All texts of this length that begin with `text`, which has the probability `share`."""
    if len(text) >= length:
        yield text[:length], share
        return
    for token in range(V):
        yield from continued(model, (*text, token), share * model(text)[token], length)


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("shift", range(2))
def test_rule_a_draws_every_text_as_the_model_does(tree: DraftTree, shift: int) -> None:
    tree.check()
    model = after(MODELS[shift:] + MODELS[:shift])
    length = 4
    found: dict[tuple[int, ...], Fraction] = dict.fromkeys(product(range(V), repeat=length), Fraction(0))
    for drawn in product(range(V), repeat=len(tree) + 1):
        share = Fraction(1)
        for node, token in enumerate(drawn, -1):
            share *= model(text_of(tree, node))[token]
        kept = accepted(tree, drawn)
        last = kept[-1] if kept else -1
        begun = (*text_of(tree, last), drawn[last + 1])
        for text, part in continued(model, begun, share, length):
            found[text] += part
    assert found == texts(model, length)


@pytest.mark.parametrize("tree", TREES)
def test_rule_a_accepts_as_often_as_the_model_draws_a_child(tree: DraftTree) -> None:
    for drawn in product(range(V), repeat=len(tree) + 1):
        kept = accepted(tree, drawn)
        node = -1
        for child in kept:
            assert tree.parents[child] == node and tree.tokens[child] == drawn[node + 1]
            node = child
        assert drawn[node + 1] not in {tree.tokens[child] for child in tree.children(node)}


class UndecidedError(Exception):
    """A random number is asked for that the enumeration has not decided yet."""


def outcomes(run: Callable[[Callable[[Fraction], bool]], tuple]) -> Iterator[tuple[tuple, Fraction]]:
    """All results of a function that asks for random decisions, each with its probability."""

    def explore(decided: list[bool], share: Fraction) -> Iterator[tuple[tuple, Fraction]]:
        asked = iter(decided)
        pending: list[Fraction] = []

        def decide(chance: Fraction) -> bool:
            try:
                return next(asked)
            except StopIteration:
                pending.append(chance)
                raise UndecidedError from None

        try:
            yield run(decide), share
        except UndecidedError:
            (chance,) = pending
            for outcome, part in ((True, chance), (False, 1 - chance)):
                if part:
                    yield from explore([*decided, outcome], share * part)

    yield from explore([], Fraction(1))


class Uniform:
    """A random number that is compared once: u · q < p holds with the probability min(1, p / q)."""

    def __init__(self, decide: Callable[[Fraction], bool]):
        self.decide = decide

    def __mul__(self, q: Fraction) -> "Scaled":
        return Scaled(self.decide, q)


class Scaled:
    def __init__(self, decide: Callable[[Fraction], bool], q: Fraction):
        self.decide, self.q = decide, q

    def __lt__(self, p: Fraction) -> bool:
        return self.decide(min(Fraction(1), p / self.q))


def drawn_trees(q: Callable, siblings: int, depth: int) -> Iterator[tuple[DraftTree, Fraction]]:
    """All trees whose siblings are drawn without replacement, `depth` levels behind the first sibling of each."""

    def grow(tokens: tuple, parents: tuple, at: int, text: tuple, level: int, share: Fraction) -> Iterator[tuple]:
        if level == depth:
            yield DraftTree(tokens, parents), share
            return
        row = q(text)
        for guesses in permutations([t for t in range(V) if row[t]], min(siblings, sum(bool(x) for x in row))):
            part, rest = share, row
            for token in guesses:
                part *= rest[token]
                rest = without(rest, token)
            nodes = (*tokens, *guesses)
            yield from grow(nodes, (*parents, *[at] * len(guesses)), len(tokens), (*text, guesses[0]), level + 1, part)

    yield from grow((), (), -1, (), 0, Fraction(1))


@pytest.mark.parametrize("p_rows", [MODELS, MODELS[::-1]])
@pytest.mark.parametrize("q_rows", [[of(1, 1, 1)], [of(3, 4, 1), of(1, 1, 2)], MODELS, [of(1, 0, 0)], [of(1, 5, 0)]])
@pytest.mark.parametrize(("siblings", "depth"), [(1, 1), (1, 2), (2, 1), (3, 1), (2, 2)])
def test_rule_b_draws_every_text_as_the_model_does(p_rows: list, q_rows: list, siblings: int, depth: int) -> None:
    p, q = after(p_rows), after(q_rows)
    length = depth + 1
    found: dict[tuple[int, ...], Fraction] = dict.fromkeys(product(range(V), repeat=length), Fraction(0))
    total = Fraction(0)
    for tree, chance in drawn_trees(q, siblings, depth):
        total += chance

        def run(decide: Callable[[Fraction], bool], tree: DraftTree = tree) -> tuple:
            kept, left = accepted_of_drawn(
                tree,
                lambda node: p(text_of(tree, node)),
                lambda node: q(text_of(tree, node)),
                lambda _: Uniform(decide),
            )
            return tuple(tree.tokens[node] for node in kept), tuple(left)

        for (begun, left), share in outcomes(run):
            for token in range(V):
                for text, part in continued(p, (*begun, token), chance * share * left[token], length):
                    found[text] += part
    assert total == 1
    assert found == texts(p, length)


def answers(p: np.ndarray, guess: Callable[[], Iterator[tuple[int, Fraction]]], q: np.ndarray) -> list[Fraction]:
    """The distribution of one token by rule B, for guesses that come with these probabilities but are scored with q."""
    found = [Fraction(0)] * len(p)
    for token, chance in guess():
        keep = min(Fraction(1), p[token] / q[token])
        left = residual(p, q)
        found[token] += chance * keep
        for other in range(len(p)):
            found[other] += chance * (1 - keep) * left[other]
    return found


def test_the_two_classic_biases_show() -> None:
    """The enumeration would find them: a greedy guess scored as if drawn, and a drawn guess dropped when unlikely."""
    p, q = of(5, 5), of(6, 4)
    assert answers(p, lambda: iter([(0, Fraction(1))]), q) == [Fraction(5, 6), Fraction(1, 6)]
    q = of(9, 1)
    kept = answers(p, lambda: iter([(0, Fraction(9, 10))]), q)  # the unlikely guess is dropped: a draw from p instead
    dropped = [share + Fraction(1, 10) * p[token] for token, share in enumerate(kept)]
    assert dropped == [Fraction(11, 20), Fraction(9, 20)]
    assert answers(p, lambda: iter([(0, q[0]), (1, q[1])]), q) == list(p)


def test_a_stale_q_among_siblings_is_biased() -> None:
    """Siblings without replacement renorm q; with the first q for both the answer's distribution is another."""
    p = q = of(4, 3, 2, 1)
    assert list(residual(p, q)) == list(p)
    assert list(without(q, 0)) == [0, Fraction(1, 2), Fraction(1, 3), Fraction(1, 6)]
    p, q = of(5, 4, 1), of(1, 3, 6)
    found = [Fraction(0)] * V
    for first, second in permutations(range(V), 2):
        keep = min(Fraction(1), p[first] / q[first])
        found[first] += q[first] * without(q, first)[second] * keep
        left = residual(p, q)
        rejected = q[first] * (1 - keep) * without(q, first)[second]
        stale = min(Fraction(1), left[second] / q[second])
        found[second] += rejected * stale
        for token in range(V):
            found[token] += rejected * (1 - stale) * residual(left, q)[token]
    assert found == [Fraction(7, 20), Fraction(11, 20), Fraction(1, 10)]


def test_a_tree_knows_its_shape() -> None:
    tree = DraftTree((5, 6, 7, 8), (-1, 0, 0, 2))
    assert tree.depths() == [1, 2, 2, 3] and tree.path(3) == [0, 2, 3] and tree.path(-1) == []
    assert tree.children(0) == [1, 2] and not tree.is_chain and DraftTree.chain([1, 2]).is_chain
    for bad in (DraftTree((1, 1), (-1, -1)), DraftTree((1,), (0,)), DraftTree.chain(range(65))):
        with pytest.raises(AssertionError):
            bad.check()

"""Decide which tokens of a draft are kept: the rules of speculative decoding, which leave the distribution as it is.

A draft is a tree of guesses for the tokens after a text. The model computes the distribution p of the next token behind
every node in one pass, and a rule walks down the tree:

Rule A, for guesses that were not drawn at random (n-grams, heads, the likeliest tokens of a small model): draw y from p
with the request's own random number for that position. If a child of the node has the token y, go on there; if not, y
is the answer's next token and the walk ends. Each token of the answer is a draw from p, with the random number that it
would have had without a draft, so the text is the same as without one. A guess changes only how many tokens a pass
gives. A child c is accepted with the probability p(c).

Rule B, for guesses drawn from a distribution q: accept the guess x with the probability min(1, p(x) / q(x)); otherwise
replace p by the normed positive part of p - q, which is what p has left once the accepted part is taken away, and try
the next sibling. Where none is accepted, draw from what is left of p. Siblings are drawn without replacement, so q is
normed anew without each rejected guess. The answer's distribution is p, the probability of acceptance the overlap
Σ min(p, q) for a single guess. (Leviathan et al., arXiv:2211.17192; Chen et al., arXiv:2302.01318; for siblings
Jeon et al., arXiv:2402.14160)
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

MOST_NODES = 64  # of a tree: a node's ancestors are the bits of one word
Distribution = npt.NDArray[Any]  # (V,) float64, or Fractions in a proof


class DraftTree(NamedTuple):
    """Guesses for the tokens after a text, as nodes: each stands behind its parent, which has a smaller number.

    parents[i] is -1 for a guess at the first token. Siblings are ordered: a rule tries them in turn. `log_q`: the log
    of each guess's probability among the tokens that it was drawn from; None for guesses not drawn at random.
    """

    tokens: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()
    log_q: tuple[float, ...] | None = None

    @classmethod
    def chain(cls, tokens: Sequence[int]) -> "DraftTree":
        """Make the tree of a single line of guesses."""
        return cls(tuple(tokens), tuple(range(-1, len(tokens) - 1)))

    @property
    def is_chain(self) -> bool:
        return self.parents == tuple(range(-1, len(self.parents) - 1))

    def __len__(self) -> int:
        return len(self.tokens)

    def children(self, node: int) -> list[int]:
        """Return the nodes behind a node, -1 for the text itself."""
        return [child for child, parent in enumerate(self.parents) if parent == node]

    def depths(self) -> list[int]:
        """Return for each node the number of guesses up to it."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 if parent < 0 else depths[parent] + 1)
        return depths

    def path(self, node: int) -> list[int]:
        """Return the nodes from the text to a node, and the node itself; none for -1."""
        nodes = []
        while node >= 0:
            nodes.append(node)
            node = self.parents[node]
        return nodes[::-1]

    def find(self, line: Sequence[int]) -> int | None:
        """Return the node at the end of a line of tokens that begins behind the text; None where there is none."""
        node = -1
        for token in line:
            matching = [child for child in self.children(node) if self.tokens[child] == token]
            if not matching:
                return None
            node = matching[0]
        return node

    @classmethod
    def merged(cls, lines: Sequence[Sequence[int]]) -> "DraftTree":
        """Make the tree of several lines of guesses; equal beginnings are one."""
        nodes: dict[tuple[int, int], int] = {}
        for line in lines:
            at = -1
            for token in line:
                at = nodes.setdefault((at, token), len(nodes))
        return cls(tuple(token for _, token in nodes), tuple(parent for parent, _ in nodes))

    def check(self) -> None:
        """Assert that the nodes are a tree of distinct siblings, of at most MOST_NODES nodes."""
        assert len(self.tokens) == len(self.parents) <= MOST_NODES, len(self.tokens)
        assert all(-1 <= parent < node for node, parent in enumerate(self.parents)), self.parents
        assert len(set(zip(self.parents, self.tokens, strict=True))) == len(self.tokens), "siblings with one token"


def accepted(tree: DraftTree, drawn: Sequence[int]) -> list[int]:
    """Return the nodes that rule A keeps, in their order; the answer goes on with the token drawn behind the last one.

    drawn[0] is the model's token after the text, drawn[i + 1] the one after node i.
    """
    # TASK w3.7.1: from the text to the last right guess
    kept: list[int] = []
    node = -1
    while True:
        token = drawn[node + 1]
        matching = [child for child in tree.children(node) if tree.tokens[child] == token]
        if not matching:
            return kept
        node = matching[0]
        kept.append(node)
    # END TASK


def residual(p: Distribution, q: Distribution) -> Distribution:
    """Return the normed positive part of p - q: the distribution that is left of p where a guess from q is rejected.

    p and q (V,) stay as they are. Where they are the same, nothing can be rejected, and p is returned.
    """
    # TASK w3.8.1: what p has more than q, to be drawn from
    left = np.maximum(p - q, 0 * p)
    total = left.sum()
    return left / total if total > 0 else p
    # END TASK


def accepted_of_drawn(
    tree: DraftTree,
    p: Callable[[int], Distribution],
    q: Callable[[int], Distribution],
    uniform: Callable[[int], Any],
) -> tuple[list[int], Distribution]:
    """Return the nodes that rule B keeps, and the distribution from which the token behind them is drawn.

    p(node) and q(node) are the model's and the drafter's distributions behind a node, -1 for the text. uniform(child)
    is the child's own random number in [0, 1). Siblings are tried in their order, in which they were drawn from q
    without replacement. A guess with p = 0 is never kept, whatever its number.
    """
    # TASK w3.8.3: accept with p / q, or go on with what is left of both
    kept: list[int] = []
    node = -1
    left = p(node)
    guesses = q(node)
    siblings = tree.children(node)
    while siblings:
        child = siblings.pop(0)
        token = tree.tokens[child]
        if uniform(child) * guesses[token] < left[token]:
            kept.append(child)
            left, guesses = p(child), q(child)
            siblings = tree.children(child)
            continue
        left = residual(left, guesses)
        guesses = without(guesses, token)
    return kept, left
    # END TASK


def without(q: Distribution, token: int) -> Distribution:
    """Return q (V,) normed anew without a token that was drawn from it; q where it has no other token.

    q stays as it is.
    """
    # TASK w3.8.2: the next sibling's distribution
    rest = q.copy()
    rest[token] = 0 * q[token]
    total = rest.sum()
    return rest / total if total > 0 else q
    # END TASK

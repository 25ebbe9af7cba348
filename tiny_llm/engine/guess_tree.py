"""Build the tree of the likeliest guesses, and find the rows of a step that belong to the text once it is verified."""

import heapq
from collections.abc import Sequence as Row
from typing import NamedTuple

import mlx.core as mx

from tiny_llm.decode.acceptance import DraftTree
from tiny_llm.engine.request import Result, Share


class Ranked(NamedTuple):
    """The likeliest tokens of a place, in descending order, and the log-probabilities that a drafter gives them."""

    tokens: Row[int]
    log_q: Row[float]


def ranked(logits: mx.array, count: int) -> tuple[mx.array, mx.array]:
    """Return the `count` likeliest tokens of each row of logits (…, V), best first, and their log-probabilities."""
    log_q = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    top = mx.argpartition(-log_q, count - 1, axis=-1)[..., :count]
    odds = mx.take_along_axis(log_q, top, axis=-1)
    order = mx.argsort(-odds, axis=-1)
    return mx.take_along_axis(top, order, axis=-1), mx.take_along_axis(odds, order, axis=-1)


def likeliest_tree(places: Row[Ranked], limit: int, least: float) -> DraftTree:
    """Return the tree of the `limit` likeliest lines of guesses, the likeliest first; of equally likely ones any.

    Each node is the end of a line that begins behind the text. places[d] has the guesses for the token at depth d,
    which do not depend on the tokens before it (Medusa). The log-probability of a line is the sum of those of its
    tokens, and lines under `least` are left out. There may be fewer than `limit`.
    """
    # TASK w3.9.2: take the likeliest line from a heap, then offer its sibling and its first child
    tokens: list[int] = []
    parents: list[int] = []
    heap: list[tuple[float, int, int, int, float]] = []

    def offer(depth: int, rank: int, parent: int, before: float) -> None:
        """Add the line that ends with this rank's token at this depth, behind the node `parent`."""
        if depth < len(places) and rank < len(places[depth].tokens):
            log_q = before + places[depth].log_q[rank]
            if log_q >= least:
                heapq.heappush(heap, (-log_q, parent, depth, rank, before))

    offer(0, 0, -1, 0.0)
    while heap and len(tokens) < limit:
        negative, parent, depth, rank, before = heapq.heappop(heap)
        tokens.append(places[depth].tokens[rank])
        parents.append(parent)
        offer(depth, rank + 1, parent, before)
        offer(depth + 1, 0, len(tokens) - 1, -negative)
    return DraftTree(tuple(tokens), tuple(parents))
    # END TASK


def rows_of_text(share: Share, result: Result) -> list[int]:
    """Return the rows of a share whose tokens belong to the text now, in the order of the text.

    These are the rows of all tokens that were known before the step, and of the guesses that were kept. A share ends
    with its guesses: their number is one less than `wanted`, and 0 in a chunk of a prompt, which wants no rows.
    """
    # TASK w3.9.3: without the rejected guesses
    known = share.length - max(0, share.wanted - 1)
    guesses = [known + node for node in result.kept]
    return [*range(known), *guesses]
    # END TASK

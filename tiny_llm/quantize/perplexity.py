"""Perplexity: one number for how well a model predicts a text, to measure the damage that a change does."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, cast

import mlx.core as mx

from tiny_llm.model.qwen3 import Attends, Qwen3


class Text(NamedTuple):
    """Token ids; the model predicts those from `start` on and only reads those before."""

    tokens: list[int]
    start: int = 1


# ANCHOR: perplexity
def perplexity(
    model: Qwen3, texts: Sequence[Text], new_cache: Callable[[], Attends], chunk: int | None = None
) -> float:
    """Return e^(mean of -log p(token | all before it)) over the predicted tokens of all texts; 1 is certainty.

    `new_cache` makes an empty cache for each text. With `chunk`, compute so many tokens at a time, so that later ones
    read earlier ones from the cache. Raises ValueError if there is no token to predict.
    """
    losses: list[float] = []
    for text in texts:
        losses += losses_of(model, text, new_cache(), chunk)
    if not losses:
        raise ValueError("perplexity: expected texts with at least one token to predict, found none")
    return math.exp(sum(losses) / len(losses))
    # ANCHOR_END: perplexity


def losses_of(model: Qwen3, text: Text, cache: Attends, chunk: int | None = None) -> list[float]:
    """Return -log p of each predicted token of one text. Raises ValueError for a start outside of it."""
    losses: list[float] = []
    for logits, targets in predictions(model, text, cache, chunk):
        found = token_losses(logits, targets).tolist()
        losses += cast(list[float], found)
    return losses


def token_losses(logits: mx.array, targets: mx.array) -> mx.array:
    """Return -log softmax(logits)[target] of each row, in float32. logits (R, vocab), targets (R,), result (R,)."""
    logits = logits.astype(mx.float32)
    chosen = mx.take_along_axis(logits, targets[:, None], axis=-1)  # (R, 1)
    total = mx.logsumexp(logits, axis=-1)
    return total - chosen[:, 0]


def predictions(
    model: Qwen3, text: Text, cache: Attends, chunk: int | None = None
) -> Iterator[tuple[mx.array, mx.array]]:
    """Yield (logits (R, vocab), the text's tokens (R,) at their places) for each chunk with tokens to predict."""
    tokens = text.tokens
    start = text.start
    if not 1 <= start <= len(tokens):
        raise ValueError(f"text: expected a start from 1 to its {len(tokens)} tokens, found {start}")
    last = len(tokens) - 1  # nothing follows the last token
    step = chunk or max(1, last)
    for begin in range(0, last, step):
        end = min(begin + step, last)
        first = max(begin, start - 1)  # position start - 1 predicts token `start`
        rows = mx.array(tokens[begin:end])
        if first >= end:
            mx.eval(model(rows, cache, slice(0, 1)))  # no token to predict, but the cache must be filled
            continue
        wanted = slice(first - begin, end - begin)
        logits = model(rows, cache, wanted)
        targets = mx.array(tokens[first + 1 : end + 1])
        yield logits, targets

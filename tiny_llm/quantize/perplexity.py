"""Perplexity: how much damage a change does to a model, in one number, measured on text that it has not seen."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, cast

import mlx.core as mx

from tiny_llm.model.qwen3 import Attends, Qwen3


class Text(NamedTuple):
    """Token ids, of which those from `start` on are to be predicted; what is before them is only read."""

    tokens: list[int]
    start: int = 1


# ANCHOR: perplexity
def perplexity(
    model: Qwen3, texts: Sequence[Text], new_cache: Callable[[], Attends], chunk: int | None = None
) -> float:
    """e^(mean of -log p(token | all before it)) over the predicted tokens of all texts; 1 is certainty.

    `new_cache` makes an empty cache for each text; with `chunk` so many tokens are computed at a time, so that later
    ones read the earlier ones from the cache. Raises ValueError where nothing is to be predicted.
    """
    losses = [loss for text in texts for loss in losses_of(model, text, new_cache(), chunk)]
    if not losses:
        raise ValueError("perplexity: expected texts with at least one token to predict, found none")
    return math.exp(sum(losses) / len(losses))
    # ANCHOR_END: perplexity


def losses_of(model: Qwen3, text: Text, cache: Attends, chunk: int | None = None) -> list[float]:
    """-log p of each predicted token of one text. Raises ValueError for a start outside of it."""
    losses: list[float] = []
    for logits, targets in predictions(model, text, cache, chunk):
        losses += cast(list[float], token_losses(logits, targets).tolist())
    return losses


def token_losses(logits: mx.array, targets: mx.array) -> mx.array:
    """-log softmax(logits)[target] by row, in float32. logits (R, vocab), targets (R,)."""
    logits = logits.astype(mx.float32)
    chosen = mx.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    return mx.logsumexp(logits, axis=-1) - chosen


def predictions(
    model: Qwen3, text: Text, cache: Attends, chunk: int | None = None
) -> Iterator[tuple[mx.array, mx.array]]:
    """(logits (R, vocab), the tokens (R,) that came instead) for each chunk of a text that has any to predict."""
    tokens, start = text
    if not 1 <= start <= len(tokens):
        raise ValueError(f"text: expected a start from 1 to its {len(tokens)} tokens, found {start}")
    step = chunk or max(1, len(tokens) - 1)
    for begin in range(0, len(tokens) - 1, step):
        end = min(begin + step, len(tokens) - 1)
        first = max(begin, start - 1)  # the position that predicts token `start`
        wanted = slice(first - begin, end - begin) if first < end else slice(0, 1)
        logits = model(mx.array(tokens[begin:end]), cache, wanted)
        if first < end:
            yield logits, mx.array(tokens[first + 1 : end + 1])
        else:
            mx.eval(logits)  # nothing to predict here, but the cache must be filled

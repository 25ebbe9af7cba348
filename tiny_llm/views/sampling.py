"""What each sampler does to the next token's probabilities, stage by stage."""

from collections.abc import Sequence
from typing import cast

import mlx.core as mx
import numpy as np

from tiny_llm.config import SamplingParams
from tiny_llm.decode import distribution
from tiny_llm.views.record import Run
from tiny_llm.views.svg import BLUE, GREY, LETTER, Drawing

BAR, ROW = 110, 20
Stage = tuple[str, list[float]]


def stages(logits: Sequence[float], params: SamplingParams, counts: Sequence[int] = ()) -> list[Stage]:
    """The probabilities after each stage that `params` switches on, in the engine's order.

    logits: one row, in descending order. counts: how often each token was written already, for the penalties.
    Raises ValueError for temperature 0: greedy decoding takes the first token, and nothing is left to draw.
    """
    check(params)
    row = mx.array([list(logits)])
    found: list[Stage] = [("softmax of the logits", _shares(distribution.weights(row, _column(1.0))))]
    penalties = (params.repetition_penalty, params.presence_penalty, params.frequency_penalty)
    if penalties != (1, 0, 0) and any(counts):
        seen = mx.array([[float(count) for count in counts]])
        row = distribution.penalize(row, seen, mx.zeros_like(seen), *map(_column, penalties))
        found.append(("penalties", _shares(distribution.weights(row, _column(1.0)))))
    order = mx.argsort(-row, axis=-1)
    back = mx.argsort(order, axis=-1)
    kept = distribution.weights(mx.take_along_axis(row, order, axis=-1), _column(params.temperature))

    def note(label: str) -> None:
        found.append((label, _shares(mx.take_along_axis(kept, back, axis=-1))))

    if params.temperature != 1:
        note(f"temperature {params.temperature:g}")
    if params.top_k:
        kept = distribution.top_k(kept, mx.array([[params.top_k]]))
        note(f"top-k {params.top_k}")
    if params.top_p < 1:
        kept = distribution.top_p(kept, _column(params.top_p))
        note(f"top-p {params.top_p:g}")
    if params.min_p:
        kept = distribution.min_p(kept, _column(params.min_p))
        note(f"min-p {params.min_p:g}")
    return found


def check(params: SamplingParams) -> None:
    if params.temperature == 0:
        raise ValueError("temperature: expected above 0, found 0; greedy decoding has no stages to show")


def next_token(run: Run, params: SamplingParams, count: int) -> tuple[list[str], list[Stage]]:
    """The `count` likeliest tokens after a text and all stages' probabilities of them."""
    logits = run.notes["logits"][-1]
    order = np.argsort(-logits)
    names = [repr(run.decode([int(token)]))[1:-1] for token in order[:count]]
    found = stages(logits[order].tolist(), params)
    return names, [(label, shares[:count]) for label, shares in found]


def draw_stages(name: str, tokens: Sequence[str], found: Sequence[Stage]) -> Drawing:
    """One column of bars for each stage, one row for each token."""
    margin = 20 + 12 * LETTER * max(map(len, tokens))
    span = BAR + 52
    alt = ". ".join(f"{label}: {_words(tokens, shares)}" for label, shares in found) + "."
    height = 40 + ROW * len(tokens)
    drawing = Drawing(name, margin + span * len(found), height, "Probabilities after each sampler", alt)
    for i, token in enumerate(tokens):
        drawing.text(margin - 8, 38 + ROW * i, token, 12, "end")
    for column, (label, shares) in enumerate(found):
        x = margin + span * column
        drawing.text(x, 12, label, 12, "start", bold=True)
        for i, share in enumerate(shares):
            y = 38 + ROW * i
            tip = f"{tokens[i]}: {share:.4f}"
            drawing.rect(x, y - 7, max(BAR * share, 0.5), 14, BLUE, 0.5 if share else 0, tip=tip)
            words = (f"{100 * share:.0f} %" if share >= 0.005 else "< 1 %") if share else "out"
            drawing.text(x + BAR * share + 5, y, words, 11, "start", "currentColor" if share else GREY)
    return drawing


def _words(tokens: Sequence[str], shares: Sequence[float]) -> str:
    return ", ".join(
        f"{token} {100 * share:.0f} %" if share else f"{token} out" for token, share in zip(tokens, shares, strict=True)
    )


def _shares(weights: mx.array) -> list[float]:
    return cast(list[float], (weights / mx.sum(weights, axis=-1, keepdims=True))[0].tolist())


def _column(value: float) -> mx.array:
    return mx.array([[float(value)]])

"""Who sees whom: the attention mask, and the weights that a model gives to what it may see."""

from collections.abc import Mapping, Sequence
from typing import cast

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from tiny_llm.model import attention
from tiny_llm.views.svg import AMBER, BLUE, GREY, LETTER, Drawing, number

CELL = 34


def mask_of(num_queries: int, num_keys: int, window: int | None = None) -> list[list[bool]]:
    """The rows of `causal_mask`, the learner's where it is in place. Raises ValueError for sizes without a mask."""
    if not 1 <= num_queries <= num_keys:
        raise ValueError(f"queries: expected 1 to {num_keys} (the keys), found {num_queries}")
    if window is not None and window < 1:
        raise ValueError(f"window: expected at least 1, found {window}")
    return cast(list[list[bool]], attention.causal_mask(num_queries, num_keys, window).tolist())


def weights_of(q: mx.array, k: mx.array, scale: float, mask: Sequence[Sequence[bool]]) -> list[list[float]]:
    """softmax(q kᵀ · scale) of one head. q (T, D), k (S, D) → T rows of S."""
    identity = mx.eye(k.shape[0])  # with these values attention returns its weights
    mixed = attention.scaled_dot_product_attention(q, k, identity, scale, mx.array([list(row) for row in mask]))
    return cast(list[list[float]], mixed.tolist())


def head_of(
    notes: Mapping[str, npt.NDArray[np.float32]], layer: int, head: int, window: int | None = None
) -> tuple[list[list[bool]], list[list[float]]]:
    """Mask and weights of one query head from a step's tensors. Raises ValueError for a layer or head not there."""
    layers = sum(name.endswith(" queries") for name in notes)
    if not 0 <= layer < layers:
        raise ValueError(f"layer: expected 0 to {layers - 1}, found {layer}")
    queries, keys = notes[f"layer {layer} queries"], notes[f"layer {layer} keys"]
    heads, dim = queries.shape[1:]
    if not 0 <= head < heads:
        raise ValueError(f"head: expected 0 to {heads - 1}, found {head}")
    mask = mask_of(len(queries), len(keys), window)
    shared = keys[:, head * keys.shape[1] // heads]
    return mask, weights_of(mx.array(queries[:, head]), mx.array(shared), dim**-0.5, mask)


def draw_mask(
    name: str,
    title: str,
    mask: Sequence[Sequence[bool]],
    tokens: Sequence[str] = (),
    weights: Sequence[Sequence[float]] | None = None,
) -> Drawing:
    """A row for each query, a column for each key; what is visible is filled, the more the higher its weight."""
    num_keys, first = len(mask[0]), len(mask[0]) - len(mask)
    names = [tokens[i] if i < len(tokens) else str(i) for i in range(num_keys)]
    margin = max(60.0, 24 + 12 * LETTER * max(map(len, names)))
    drawing = Drawing(name, margin + CELL * num_keys + 16, 64 + CELL * len(mask), title, _alt(mask, weights))
    drawing.text(margin + CELL * num_keys / 2, 12, "keys", 11, colour=GREY)
    for s, key in enumerate(names):
        drawing.text(margin + CELL * (s + 0.5), 38, _short(key, CELL), 12)
    for t, row in enumerate(mask):
        y = 52 + CELL * t
        drawing.text(margin - 8, y + CELL / 2, names[first + t], 12, "end")
        for s, visible in enumerate(row):
            weight = weights[t][s] if weights else 1.0 if visible else 0.0
            x = margin + CELL * s
            words = f"{names[first + t]} sees {names[s]}" if visible else f"{names[first + t]} does not see {names[s]}"
            tip = words + (f", weight {weight:.3f}" if weights else "")
            shade = 0.1 + 0.75 * weight if weights else 0.45
            drawing.rect(x, y, CELL, CELL, BLUE if visible else "none", shade if visible else 0, tip=tip)
            label = (number(weight) if weights else "✓") if visible else "·"
            drawing.text(x + CELL / 2, y + CELL / 2, label, 11)
        drawing.rect(margin + CELL * (first + t), y, CELL, CELL, "none", 0, stroke=AMBER, stroke_width=2)
    return drawing


def _alt(mask: Sequence[Sequence[bool]], weights: Sequence[Sequence[float]] | None) -> str:
    counts = ", ".join(str(sum(row)) for row in mask)
    what = "the weight is written in each cell; " if weights else ""
    return (
        f"Grid of {len(mask)} queries (rows) by {len(mask[0])} keys (columns). Row by row the queries see {counts} "
        f"keys; {what}the amber cell of each row is the query's own position."
    )


def _short(word: str, width: float) -> str:
    room = int(width / (12 * LETTER))
    return word if len(word) <= room else word[: room - 1] + "…"

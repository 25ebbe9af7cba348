"""Show which experts a text's tokens go to, layer by layer, and how even the load is."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from tiny_llm.cache.recompute import RecomputeCache
from tiny_llm.model import expert_load, ops
from tiny_llm.model.loader import load_config
from tiny_llm.model.moe import Routing
from tiny_llm.model.qwen3 import Qwen3
from tiny_llm.model.tokenizer import Tokenizer
from tiny_llm.views import record
from tiny_llm.views.svg import AMBER, BLUE, GREY, LETTER, Drawing

WIDTH = 640  # of the columns of all experts
CELL = 26  # the largest width of an expert's column
ROW = 18  # the height of a token's or layer's row
NUMBER = 18  # the width that an expert's number takes
SHOWN = 12  # letters of a token


class LayerRouting(NamedTuple):
    """The choices of one layer for T tokens, each token's largest share first."""

    layer: int
    num_experts: int
    experts: npt.NDArray[np.int64]  # (T, K)
    shares: npt.NDArray[np.float64]  # (T, K)

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """The number of choices that each expert got, (E,)."""
        return np.bincount(self.experts.reshape(-1), minlength=self.num_experts)


def record_routing(model: Qwen3, tokens: Sequence[int], table: ops.Ops = ops.PLAIN) -> list[LayerRouting]:
    """Run a model with experts over tokens and return the choices of each layer that has experts."""
    config = model.config
    assert config.moe is not None
    routings: list[Routing] = []

    def experts(x: mx.array, routing: Routing, w: ops.Weight, inner: ops.Ops) -> mx.array:
        routings.append(routing)
        return table.experts(x, routing, w, inner)

    heard = table._replace(compile=lambda function: function, experts=experts)  # compiling would hide the values
    listening = Qwen3(config, model.weights, heard)
    listening.hidden_states(mx.array(list(tokens), mx.int32), RecomputeCache(config, heard))
    found = []
    for layer, routing in zip(config.moe.layers, routings, strict=True):
        chosen = np.array(routing.experts, np.int64)
        shares = np.array(routing.shares.astype(mx.float32), np.float64)
        order = np.argsort(-shares, axis=1, kind="stable")
        chosen = np.take_along_axis(chosen, order, axis=1)
        shares = np.take_along_axis(shares, order, axis=1)
        found.append(LayerRouting(layer, config.moe.num_experts, chosen, shares))
    return found


def routing_of(path: Path, text: str) -> tuple[list[LayerRouting], list[str]]:
    """Run a text through a model with experts, by the plain operations. Return the choices, and each token's text.

    Raises ValueError for a text without tokens, and for one with more tokens than a picture has rows.
    """
    tokenizer = Tokenizer.from_dir(path)
    tokens = record.check_length(tokenizer.encode(text))
    words = [repr(tokenizer.decode([token]))[1:-1] for token in tokens]
    return record_routing(record.load(path), tokens), words


def check_experts(path: Path, name: str) -> None:
    """Raise ValueError, with the model's name, unless it has experts."""
    config = load_config(path)
    if config.moe is None:
        raise ValueError(
            f"{name}: expected a model with experts, found a dense one (model_type {config.model_type}, no layer with "
            "experts); name a model with experts, such as pocket-moe"
        )


def only_layer(found: Sequence[LayerRouting], layer: int) -> list[LayerRouting]:
    """Return the routing of one layer. Raises ValueError for a layer without experts."""
    layers = [routing.layer for routing in found]
    if layer not in layers:
        raise ValueError(f"layer: expected a layer with experts ({', '.join(map(str, layers))}), found {layer}")
    return [found[layers.index(layer)]]


def describe(words: Sequence[str], found: Sequence[LayerRouting]) -> str:
    """Return two tables: each token's experts in every layer, and the load of every layer."""
    names = ["token", *(_short(word) for word in words)]
    columns = [names]
    for routing in found:
        choices = [" ".join(map(str, row)) for row in routing.experts.tolist()]
        columns.append([f"layer {routing.layer}", *choices])
    loads = [("layer", "most", "least", "unused", "variation", "entropy")]
    for routing in found:
        counts = routing.counts
        loads.append(
            (
                str(routing.layer),
                f"{counts.max()} (expert {counts.argmax()})",
                f"{counts.min()} (expert {counts.argmin()})",
                str(int((counts == 0).sum())),
                f"{expert_load.variation(counts):.2f}",
                f"{expert_load.entropy(counts):.2f}",
            )
        )
    return "\n".join([*_lines(list(zip(*columns, strict=True))), "", *_lines(loads)])


def _lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the rows with each column as wide as its widest cell."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines


def draw_load(name: str, found: Sequence[LayerRouting]) -> Drawing:
    """Draw a row for each layer and a column for each expert, the darker the more choices the expert got."""
    num_experts = found[0].num_experts
    most = max(int(routing.counts.max()) for routing in found)
    variations = [expert_load.variation(routing.counts) for routing in found]
    entropies = [expert_load.entropy(routing.counts) for routing in found]
    worst = int(np.argmax(variations))
    alt = (
        f"Load of {num_experts} experts (columns) in {len(found)} layers (rows). An even load has variation 0 and "
        f"entropy 1. Layer {found[worst].layer} is the least even: variation {variations[worst]:.2f}, entropy "
        f"{entropies[worst]:.2f}; over all layers the means are {np.mean(variations):.2f} and {np.mean(entropies):.2f}."
    )
    cell = min(CELL, WIDTH / num_experts)
    left = 70
    right = left + cell * num_experts
    drawing = Drawing(name, right + 130, 48 + ROW * len(found), "Load of the experts", alt)
    _number_experts(drawing, left, cell, num_experts)
    drawing.text(right + 36, 30, "variation", 10, colour=GREY)
    drawing.text(right + 92, 30, "entropy", 10, colour=GREY)
    for i, routing in enumerate(found):
        y = 40 + ROW * i
        drawing.text(left - 8, y + ROW / 2, f"layer {routing.layer}", 11, "end")
        for expert, count in enumerate(routing.counts.tolist()):
            tip = f"layer {routing.layer}, expert {expert}: {count} choices"
            shade = 0.9 * count / most
            drawing.rect(left + cell * expert, y, cell, ROW, BLUE, shade, tip=tip)
        drawing.text(right + 36, y + ROW / 2, f"{variations[i]:.2f}", 11)
        drawing.text(right + 92, y + ROW / 2, f"{entropies[i]:.2f}", 11)
    return drawing


def draw_tokens(name: str, words: Sequence[str], routing: LayerRouting) -> Drawing:
    """Draw a row for each token and a column for each expert, filled where it was chosen, darker for a larger share."""
    num_experts = routing.num_experts
    first = ", ".join(map(str, routing.experts[0].tolist()))
    alt = (
        f"Layer {routing.layer}: {len(words)} tokens (rows) and {num_experts} experts (columns). {words[0]!r} goes to "
        f"experts {first}; the amber cell is a token's largest share."
    )
    cell = min(CELL, WIDTH / num_experts)
    left = 24 + 12 * LETTER * SHOWN
    drawing = Drawing(
        name, left + cell * num_experts + 16, 48 + ROW * len(words), f"Experts of layer {routing.layer}", alt
    )
    _number_experts(drawing, left, cell, num_experts)
    for i, word in enumerate(words):
        y = 40 + ROW * i
        drawing.text(left - 8, y + ROW / 2, _short(word), 12, "end")
        drawing.rect(left, y, cell * num_experts, ROW, "none", 0)
        for rank, expert in enumerate(routing.experts[i].tolist()):
            share = float(routing.shares[i, rank])
            tip = f"{word} goes to expert {expert}, share {share:.3f}"
            colour = AMBER if rank == 0 else BLUE
            drawing.rect(left + cell * expert, y, cell, ROW, colour, 0.15 + 0.75 * share, tip=tip)
    return drawing


def _number_experts(drawing: Drawing, left: float, cell: float, num_experts: int) -> None:
    """Write the experts' numbers above their columns: all, or as there is room every 10th, 100th and so on."""
    drawing.text(left + cell * num_experts / 2, 12, "experts", 11, colour=GREY)
    step = 1
    while step * cell < NUMBER:
        step *= 10
    for expert in range(0, num_experts, step):
        drawing.text(left + cell * (expert + 0.5), 30, str(expert), 10)


def _short(word: str) -> str:
    return word if len(word) <= SHOWN else word[: SHOWN - 1] + "…"

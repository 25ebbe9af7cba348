"""Where a forward pass leaves the reference: the tensors of both runs, side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tiny_llm.views.record import Notes, Tensor
from tiny_llm.views.svg import BLUE, GREY, LETTER, RED, Drawing

TOLERANCE = 1e-4  # of a tensor's largest value
BAR, ROW = 220, 16
MADE_BY = {  # the last word of a tensor's name → the functions that made it
    "embed_tokens": "ops.embedding (1.5)",
    "input_layernorm": "ops.rms_norm (1.4), or the layer before",
    "qkv_proj": "ops.linear (1.4)",
    "q_norm": "ops.rms_norm (1.4), Qwen3.project (1.5)",
    "k_norm": "ops.rms_norm (1.4), Qwen3.project (1.5)",
    "queries": "rope.py (1.2), Qwen3.project (1.5)",
    "keys": "rope.py (1.2), Qwen3.project (1.5)",
    "values": "Qwen3.project (1.5)",
    "attended": "attention.py (1.1, 1.3)",
    "o_proj": "ops.linear (1.4), Qwen3.finish (1.5)",
    "post_attention_layernorm": "Qwen3.finish (1.5): the residual before it",
    "gate_up_proj": "ops.linear (1.4)",
    "swiglu": "ops.swiglu, ops.silu (1.4)",
    "down_proj": "ops.linear (1.4)",
    "router": "ops.linear (1.4)",
    "routing": "moe.route (3.6)",
    "experts": "moe.py (3.6)",
    "gate": "ops.linear (1.4)",
    "norm": "Qwen3.finish (1.5): the last residual",
    "logits": "Qwen3.logits (1.5)",
}


@dataclass(frozen=True)
class Difference:
    """One tensor of both runs. `largest` is relative to the reference's largest value, inf where yours is missing
    or has another shape; `words` says what is to be seen at the place where they differ most."""

    name: str
    shape: tuple[int, ...]
    largest: float
    words: str

    @property
    def differs(self) -> bool:
        return not self.largest <= TOLERANCE


def compare(reference: Notes, yours: Notes) -> list[Difference]:
    """One row for each tensor of the reference, in its order."""
    return [_compare(name, want, yours.get(name)) for name, want in reference.items()]


def _compare(name: str, want: Tensor, got: Tensor | None) -> Difference:
    if got is None:
        return Difference(name, want.shape, np.inf, "yours does not compute it")
    if got.shape != want.shape:
        return Difference(name, want.shape, np.inf, f"yours has the shape {got.shape}")
    gaps = np.abs(got - want)
    at = np.unravel_index(int(np.argmax(np.where(np.isnan(gaps), np.inf, gaps))), want.shape)
    axes = ("token", "channel") if want.ndim == 2 else ("token", "head", "dimension")
    place = ", ".join(f"{axis} {i}" for axis, i in zip(axes, at, strict=True))
    words = f"at {place}: yours {got[at]:.4f}, reference {want[at]:.4f}"
    return Difference(name, want.shape, float(gaps[at] / max(np.abs(want).max(), 1e-6)), words)


def describe_differences(rows: Sequence[Difference], around: int = 3) -> str:
    """The verdict, with the tensors just before and after the first that differs."""
    first = next((i for i, row in enumerate(rows) if row.differs), None)
    if first is None:
        worst = max(rows, key=lambda row: row.largest)
        return f"All {len(rows)} tensors agree; the largest difference is {worst.largest:.1e}, in {worst.name}."
    width = max(len(row.name) for row in rows)
    lines = [f"{'tensor':{width}}  {'shape':14} largest difference"]
    for i, row in list(enumerate(rows))[max(0, first - around) : first + around + 1]:
        mark = "  <- the first that differs" if i == first else ""
        lines.append(f"{row.name:{width}}  {'×'.join(map(str, row.shape)):14} {row.largest:.1e}{mark}")
    made_by = MADE_BY.get(rows[first].name.split()[-1], "")
    return "\n".join([*lines, "", f"{rows[first].name}: {rows[first].words}", f"look at: {made_by}"])


def draw(name: str, rows: Sequence[Difference]) -> Drawing:
    """A bar for each tensor: the difference on a logarithmic scale, red where it is more than rounding."""
    first = next((row.name for row in rows if row.differs), None)
    alt = f"{len(rows)} tensors in the order of the computation; " + (
        f"the first that differs is {first}, {sum(row.differs for row in rows)} differ in all."
        if first
        else "none differs by more than rounding."
    )
    margin = 16 + 12 * LETTER * max(len(row.name) for row in rows)
    drawing = Drawing(
        name, margin + BAR + 90, 34 + ROW * len(rows), "Yours against the reference, tensor by tensor", alt
    )
    drawing.text(margin, 10, "largest difference, 1e-8 to 1", 11, "start", GREY)
    for i, row in enumerate(rows):
        y = 30 + ROW * i
        length = BAR * (np.clip(np.log10(max(row.largest, 1e-8)), -8, 0) + 8) / 8
        drawing.text(margin - 8, y, row.name, 12, "end", bold=row.name == first)
        drawing.rect(margin, y - 5, max(length, 1), 10, RED if row.differs else BLUE, 0.6, tip=row.words)
        drawing.text(margin + length + 5, y, f"{row.largest:.0e}" if row.largest else "0", 10, "start")
    return drawing

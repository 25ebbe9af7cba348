"""Where a forward pass leaves the reference: every tensor of a step, side by side, in the order of the computation.

The operations are listened to through the model's table of operations and its cache, so the model under test may be
written in any way that uses them. `python -m tiny_llm.course.viz_divergence MODEL OUT.npz ID…` writes the reference's
tensors: a second process, so that the learner's modules and the reference's never meet in one.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from tiny_llm.cache.recompute import RecomputeCache
from tiny_llm.course.viz_svg import BLUE, GREY, LETTER, RED, Drawing
from tiny_llm.model import loader, ops
from tiny_llm.model.qwen3 import Qwen3

Tensor = npt.NDArray[np.float32]
Notes = dict[str, Tensor]
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


class _Listener:
    """A cache and a table of operations that note what passes through them."""

    offset = 0

    def __init__(self, model: Qwen3, table: ops.Ops, notes: Notes):
        self.notes, self.layer = notes, ""
        self.cache = RecomputeCache(model.config, table)
        self.names = _names(model.weights)
        self.ops = table._replace(
            linear=self._listen(table.linear, lambda x, w: self.names.get(id(w))),
            embedding=self._listen(table.embedding, lambda *_: "embed_tokens"),
            rms_norm=self._listen(table.rms_norm, lambda x, w, eps: self.names.get(id(w))),
            swiglu=self._listen(table.swiglu, lambda x: f"{self.layer}swiglu"),
            compile=lambda function: function,
        )

    def _listen(self, function: Callable[..., mx.array], name_of: Callable[..., str | None]) -> Callable[..., mx.array]:
        def run(*arguments: Any) -> mx.array:
            out = function(*arguments)
            if name := name_of(*arguments):
                self.layer = name[: name.rfind(" ") + 1]
                self.note(name, out)
            return out

        return run

    def note(self, name: str, value: mx.array) -> None:
        self.notes[name] = np.array(value.astype(mx.float32))

    def begin(self, num_tokens: int) -> mx.array:
        return self.cache.begin(num_tokens)

    def attend(self, layer: int, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        for name, value in (("queries", q), ("keys", k), ("values", v)):
            self.note(f"layer {layer} {name}", value)
        out = self.cache.attend(layer, q, k, v)
        self.note(f"layer {layer} attended", out)
        return out


def _names(weights: Mapping[str, Any]) -> dict[int, str]:
    """The name of each weight by its identity: dicts as `linear` gets them, arrays as `rms_norm` does."""
    found = {id(weights.get("lm_head", weights["embed_tokens"])): "logits", id(weights["norm"]["weight"]): "norm"}
    for i, layer in enumerate(weights["layers"]):
        for name, weight in layer.items():
            found[id(weight)] = f"layer {i} {name}"
            if "norm" in name:
                found[id(weight["weight"])] = f"layer {i} {name}"
    return found


def record(model: Qwen3, tokens: Sequence[int], table: ops.Ops | None = None, notes: Notes | None = None) -> Notes:
    """Every tensor of one step without cache, by name and in order. `table`: the operations, the plain ones if not
    given. `notes` is filled as the step goes, so that a step that fails leaves what it had."""
    notes = {} if notes is None else notes
    listener = _Listener(model, table or ops.PLAIN, notes)
    Qwen3(model.config, model.weights, listener.ops)(mx.array(list(tokens), mx.int32), listener)
    return notes


def load(path: Path) -> Qwen3:
    """A model in float32 with the plain operations."""
    config = loader.load_config(path)
    return Qwen3(config, loader.load_weights(path, config, mx.float32), ops.PLAIN)


def record_reference(path: Path, tokens: Sequence[int]) -> Notes:
    """The reference's tensors, made in a process of their own. Raises RuntimeError with its words if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "reference.npz"
        command = [sys.executable, "-m", __name__, str(path), str(out), *map(str, tokens)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the reference did not run: {done.stderr.strip()[-300:]}")
        with np.load(out) as saved:
            return {name: saved[name] for name in saved.files}


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


def in_words(rows: Sequence[Difference], around: int = 3) -> str:
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


def main(arguments: Sequence[str]) -> None:
    path, out, *tokens = arguments
    np.savez(out, **record(load(Path(path)), [int(token) for token in tokens]))  # type: ignore[arg-type]


if __name__ == "__main__":
    main(sys.argv[1:])

"""Listening to a forward pass: every tensor of a step by name, in the order of the computation.

The operations are heard through the model's table of operations and its cache, so the model may be written in any way
that uses them. `python -m tiny_llm.views.record MODEL OUT.npz ID…` writes the reference's tensors: a process of
its own, so that the learner's modules and the reference's never meet in one.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from tiny_llm.cache.recompute import RecomputeCache
from tiny_llm.engine.llm import POCKET
from tiny_llm.model import hub, loader, moe, ops
from tiny_llm.model.qwen3 import Qwen3
from tiny_llm.model.tokenizer import Tokenizer

PACKAGE = Path(__file__).parents[1]
MOST_TOKENS = 256  # rows and columns of a picture
Tensor = npt.NDArray[np.float32]
Notes = dict[str, Tensor]


class Listener:
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
            experts=self.experts,
            compile=lambda function: function,
        )
        self.table = table

    def _listen(self, function: Callable[..., mx.array], name_of: Callable[..., str | None]) -> Callable[..., mx.array]:
        def run(*arguments: Any) -> mx.array:
            out = function(*arguments)
            if name := name_of(*arguments):
                self.layer = name[: name.rfind(" ") + 1]
                self.note(name, out)
            return out

        return run

    def experts(self, x: mx.array, routing: moe.Routing, w: ops.Weight, _: ops.Ops) -> mx.array:
        """Note each token's shares as a row over all experts, and then the experts' sum.

        In such a row the order of a token's choices does not matter. Tensors within the experts are not noted, because
        the experts get the table without the listener.
        """
        count = w["down_proj"]["weight"].shape[0]
        shares = mx.zeros((x.shape[0], count))
        shares = mx.put_along_axis(shares, routing.experts, routing.shares.astype(mx.float32), axis=-1)
        name = self.names[id(w)]
        self.note(name.replace("experts", "routing"), shares)
        out = self.table.experts(x, routing, w, self.table)
        self.note(name, out)
        return out

    def note(self, name: str, value: mx.array) -> None:
        self.notes[name] = np.array(value.astype(mx.float32))

    def begin(self, num_tokens: int) -> mx.array:
        return self.cache.begin(num_tokens)

    def open_buffers(self, num_tokens: int) -> None:
        """Return None: the tensors of each layer are recorded."""

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
        for name, weight in layer.get("shared_expert", {}).items():
            found[id(weight)] = f"layer {i} shared_expert {name}"
    return found


def record(model: Qwen3, tokens: Sequence[int], table: ops.Ops | None = None, notes: Notes | None = None) -> Notes:
    """Every tensor of one step without cache, by name and in order. `table`: the operations, the plain ones if not
    given. `notes` is filled as the step goes, so that a step that fails leaves what it had."""
    notes = {} if notes is None else notes
    listener = Listener(model, table or ops.PLAIN, notes)
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
        places = [str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")]  # the same package as here
        env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, places))}
        done = subprocess.run(command, capture_output=True, text=True, env=env)
        if done.returncode:
            raise RuntimeError(f"the reference did not run: {done.stderr.strip()[-300:]}")
        with np.load(out) as saved:
            return {name: saved[name] for name in saved.files}


@dataclass(frozen=True)
class Run:
    """One step of a model over a text.

    `words`: each token's text, with escapes for what can't be shown. `error`: what ended the step before its end.
    """

    path: Path
    tokens: list[int]
    words: list[str]
    notes: Notes
    error: str = ""
    decode: Callable[[Sequence[int]], str] = field(repr=False, default=lambda tokens: "")


def run(model: str | None, text: str, stop: bool = True) -> Run:
    """Run a text through the named model, or the one that ships inside, in float32 with the plain operations.

    With `stop` an error ends all; without it the step's tensors up to there are kept. Raises ValueError for a model
    that is not there and for a text without tokens.
    """
    path = find(model)
    tokenizer = Tokenizer.from_dir(path)
    tokens = check_length(tokenizer.encode(text))
    notes: Notes = {}
    error = ""
    try:
        record(load(path), tokens, notes=notes)
    except Exception as raised:
        if stop:
            raise
        error = f"{type(raised).__name__}: {' '.join(str(raised).split())}"
    words = [repr(tokenizer.decode([token]))[1:-1] for token in tokens]
    return Run(path, tokens, words, notes, error, tokenizer.decode)


def check_length(tokens: list[int]) -> list[int]:
    """Return the tokens of a text. Raises ValueError for none, and for more than a picture holds."""
    if not tokens:
        raise ValueError("prompt: expected at least one token, found none")
    if len(tokens) > MOST_TOKENS:
        raise ValueError(f"prompt: expected at most {MOST_TOKENS} tokens for a picture, found {len(tokens)}")
    return tokens


def find(model: str | None) -> Path:
    """The directory of the named model, or of the one that ships inside. Raises ValueError where there is none."""
    path = POCKET if model is None else hub.resolve(model)
    if model is None and not (path / "config.json").exists():
        raise ValueError("no model named, and none ships with this version: name one, such as --model qwen3-0.6b")
    return path


def main(arguments: Sequence[str]) -> None:
    path, out, *tokens = arguments
    np.savez(out, **record(load(Path(path)), [int(token) for token in tokens]))  # type: ignore[arg-type]


if __name__ == "__main__":
    main(sys.argv[1:])

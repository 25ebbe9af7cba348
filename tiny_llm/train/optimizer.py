"""Muon for the matrices of the layers, AdamW for the embedding and the norms, as functions on trees of arrays.

Muon (Keller Jordan, 2024) makes each update orthogonal, so that it moves all directions of a matrix alike. Matrices
that stand in one weight (q, k and v; gate and up) are orthogonalised apart.
"""

from typing import Any, cast

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from tiny_llm.config import ModelConfig

Arrays = dict[str, mx.array]
MATRICES = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
MOMENTUM = 0.95
BETAS = (0.9, 0.95)
EPSILON = 1e-8
DECAY = 0.01


def orthogonal(g: mx.array, steps: int = 5) -> mx.array:
    """The orthogonal matrix nearest to each of g (N, rows, cols), roughly, by Newton-Schulz iterations."""
    a, b, c = NEWTON_SCHULZ
    tall = g.shape[1] > g.shape[2]
    x = g.swapaxes(1, 2) if tall else g
    x = x / (mx.sqrt(x.square().sum(axis=(1, 2), keepdims=True)) + 1e-7)
    for _ in range(steps):
        square = x @ x.swapaxes(1, 2)
        x = a * x + (b * square + c * square @ square) @ x
    return x.swapaxes(1, 2) if tall else x


def flatten(tree: Any) -> Arrays:
    """The arrays of a tree by their paths, such as layers.0.o_proj.weight, in the same order for every equal tree."""
    return dict(sorted(cast(list[tuple[str, mx.array]], tree_flatten(tree))))


class Optimizer:
    """`state` is a flat dict of arrays, empty at first, that a checkpoint keeps."""

    def __init__(self, config: ModelConfig, muon_rate: float, adam_rate: float, clip: float):
        q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.cuts = {"qkv_proj": [q, q + kv]}  # rows at which matrices that stand in one weight begin
        self.muon_rate, self.adam_rate, self.clip = muon_rate, adam_rate, clip
        self.state: Arrays = {}
        self.orthogonal = orthogonal

    def update(self, weights: Any, gradients: Any, rate: float) -> tuple[Any, mx.array]:
        """New weights, and the norm of the gradients before it was clipped."""
        flat_weights, flat = flatten(weights), flatten(gradients)
        norm = mx.sqrt(sum((g.square().sum() for g in flat.values()), mx.array(0.0)))
        scale = mx.minimum(self.clip / (norm + 1e-6), 1.0)
        flat = {name: g * scale for name, g in flat.items()}
        matrices = [name for name in flat if name.split(".")[-2] in MATRICES]
        changes = self._muon({name: flat[name] for name in matrices})
        changes |= self._adam({name: g for name, g in flat.items() if name not in changes}, flat_weights)
        new = [(name, w - rate * changes[name]) for name, w in flat_weights.items()]
        return tree_unflatten(new), norm

    def _muon(self, gradients: Arrays) -> Arrays:
        """The change of each matrix at rate 1, all of the same shape orthogonalised in one batch."""
        pieces: dict[tuple[str, int], mx.array] = {}
        for name, g in gradients.items():
            moment = self.state.get(f"muon.{name}", mx.zeros_like(g))
            self.state[f"muon.{name}"] = moment = MOMENTUM * moment + (1 - MOMENTUM) * g
            ahead = MOMENTUM * moment + (1 - MOMENTUM) * g  # Nesterov
            for part, piece in enumerate(self._pieces(name, ahead)):
                pieces[name, part] = piece
        done: dict[tuple[str, int], mx.array] = {}
        for shape in sorted({piece.shape[1:] for piece in pieces.values()}):
            keys = [key for key, piece in pieces.items() if piece.shape[1:] == shape]
            rows, columns = shape
            turned = self.orthogonal(mx.concatenate([pieces[key] for key in keys])) * max(1.0, rows / columns) ** 0.5
            ends = np.cumsum([len(pieces[key]) for key in keys])[:-1].tolist()
            done |= dict(zip(keys, mx.split(turned, ends), strict=True))
        changes = {}
        for name, g in gradients.items():
            parts = (done[key] for key in sorted(done) if key[0] == name)
            changes[name] = self.muon_rate * mx.concatenate(list(parts), axis=1).reshape(g.shape)
        return changes

    def _pieces(self, name: str, g: mx.array) -> list[mx.array]:
        """The matrices that stand in one weight, each (N, rows, columns); N is 1, or the number of experts."""
        kind = name.split(".")[-2]
        stack = g if g.ndim == 3 else g[None]
        rows = stack.shape[1]
        cuts = [rows // 2] if kind == "gate_up_proj" else self.cuts.get(kind, [])
        return list(mx.split(stack, cuts, axis=1))

    def _adam(self, gradients: Arrays, weights: Arrays) -> Arrays:
        count = self.state["adam.count"] = self.state.get("adam.count", mx.array(0.0)) + 1
        changes = {}
        for name, g in gradients.items():
            first = self.state.get(f"adam.first.{name}", mx.zeros_like(g))
            second = self.state.get(f"adam.second.{name}", mx.zeros_like(g))
            first = self.state[f"adam.first.{name}"] = BETAS[0] * first + (1 - BETAS[0]) * g
            second = self.state[f"adam.second.{name}"] = BETAS[1] * second + (1 - BETAS[1]) * g.square()
            step = first / (1 - BETAS[0] ** count)
            step = step / (mx.sqrt(second / (1 - BETAS[1] ** count)) + EPSILON)
            changes[name] = self.adam_rate * (step + DECAY * weights[name])
        return changes

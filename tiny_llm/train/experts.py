"""Compute experts so that they can be trained, and collect the routers' balance loss."""

from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from tiny_llm.config import ModelConfig
from tiny_llm.config.moe import MoeConfig
from tiny_llm.model.moe import Matrices, Routing, balance_loss, route
from tiny_llm.model.ops import Ops
from tiny_llm.model.qwen3 import Qwen3


class RoutedQwen3(Qwen3):
    """A `Qwen3` that appends the balance loss of each layer with experts to `balance`."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, Any], ops: Ops):
        super().__init__(config, weights, ops)
        self.balance: list[mx.array] = []

    def mixture(self, x: mx.array, layer: Mapping[str, Any]) -> mx.array:
        assert self.config.moe
        logits = self.ops.linear(x, layer["router"])
        routing = differentiable_routing(logits, self.config.moe)
        self.balance.append(balance_loss(logits, routing.experts))
        y: mx.array = self.ops.experts(x, routing, layer["experts"], self.ops)
        return y


def differentiable_routing(logits: mx.array, config: MoeConfig) -> Routing:
    """Return `moe.route`'s choices, with shares that have a gradient.

    The shares are computed a second time, from constant choices, because MLX refuses to differentiate through indices.
    """
    experts = mx.stop_gradient(route(logits, config).experts)
    shares = mx.take_along_axis(mx.softmax(logits, axis=-1), experts, axis=-1)
    if config.normalize:
        shares = shares / shares.sum(axis=-1, keepdims=True)
    return Routing(experts, shares)


def wide_experts(x: mx.array, routing: Routing, w: Matrices, ops: Any) -> mx.array:
    """Compute `moe.each_expert` as one wide MLP, whose hidden units are multiplied by their expert's share.

    x (T, hidden), result (T, hidden). With few small experts this is as fast as computing the chosen ones only.
    """
    down = w["down_proj"]["weight"]  # (E, hidden, I)
    num_experts, hidden, size = down.shape
    chosen = routing.experts[..., None] == mx.arange(num_experts)  # (T, K, E)
    shares = mx.where(chosen, routing.shares[..., None], 0.0).sum(axis=1)  # (T, E)
    gate_up = x @ w["gate_up_proj"]["weight"].reshape(-1, hidden).T
    inner = ops.swiglu(gate_up.reshape(-1, 2 * size)).reshape(-1, num_experts, size)
    inner = inner * shares[..., None]
    columns: mx.array = down.swapaxes(1, 2).reshape(-1, hidden)
    y: mx.array = inner.reshape(x.shape[0], -1) @ columns
    return y

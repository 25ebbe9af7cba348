"""Mixture of experts: a router sends each token to a few of many MLPs. (arXiv:1701.06538, arXiv:2101.03961)

A layer with experts has these weights in place of an MLP's:

    {"router": (E, hidden), "experts": {"gate_up_proj": (E, 2·I, hidden), "down_proj": (E, hidden, I)},
     "shared_expert"?: {"gate_up_proj", "down_proj", "gate": (1, hidden)}}

Each leaf is a weight as in `ops`; the experts' have an axis E in front, so that all experts are one array.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import mlx.core as mx

from tiny_llm.config.moe import MoeConfig

Matrices = dict[str, Any]
MANY_CHOICES = 64  # with fewer choices, sorting them by expert costs more time than it saves


class Routing(NamedTuple):
    """The K experts of each of T tokens, and the factors of their outputs."""

    experts: mx.array  # (T, K) uint32
    shares: mx.array  # (T, K)


def route(logits: mx.array, config: MoeConfig, bias: mx.array | None = None) -> Routing:
    """Choose for each token the experts with the largest of a router's logits (T, E), and compute their shares.

    A share is the expert's probability, its part of the softmax over all experts, in float32. With `config.normalize`
    the shares of a token are divided by their sum. A `bias` (E,) is added to the probabilities for the choice, and not
    for the shares. (arXiv:2408.15664) A token's experts may stand in any order; of equal scores any may be chosen.
    """
    # TASK w3.6.1: the largest probabilities, and what they sum to
    probabilities = mx.softmax(logits.astype(mx.float32), axis=-1)
    scores = probabilities if bias is None else probabilities + bias
    order = mx.argsort(-scores, axis=-1)
    experts = order[:, : config.experts_per_token]
    shares = mx.take_along_axis(probabilities, experts, axis=-1)
    if config.normalize:
        shares = shares / shares.sum(axis=-1, keepdims=True)
    return Routing(experts, shares)
    # END TASK


def mixture(x: mx.array, layer: Mapping[str, Any], config: MoeConfig, ops: Any) -> mx.array:
    """Compute a layer's experts, the shared one included. x (T, hidden), normed; result (T, hidden)."""
    routing = route(ops.linear(x, layer["router"]), config)
    y: mx.array = ops.experts(x, routing, layer["experts"], ops)
    shared = layer.get("shared_expert")
    if shared:
        gate = mx.sigmoid(ops.linear(x, shared["gate"]))  # (T, 1)
        y = y + gate.astype(x.dtype) * mlp(x, shared, ops)
    return y


def mlp(x: mx.array, w: Matrices, ops: Any) -> mx.array:
    """Compute one SwiGLU MLP. x (T, hidden), result (T, hidden)."""
    gate_up = ops.linear(x, w["gate_up_proj"])
    y: mx.array = ops.linear(ops.swiglu(gate_up), w["down_proj"])
    return y


def expert_of(w: Matrices, index: int) -> Matrices:
    """Return one expert's MLP from the stacks of all experts."""
    return {name: _expert_of(weight, index) for name, weight in w.items()}


def _expert_of(w: Matrices, index: int) -> Matrices:
    if "parts" in w:
        return {"parts": [_expert_of(part, index) for part in w["parts"]]}
    return {name: stack[index] for name, stack in w.items()}


def each_expert(x: mx.array, routing: Routing, w: Matrices, ops: Any) -> mx.array:
    """Compute Σ share · expert(x) over each token's experts. x (T, hidden), result (T, hidden).

    Every expert computes every token, which is slow and easy to read: the twin of the faster functions.
    """
    y = mx.zeros_like(x)
    for index in range(w["down_proj"]["weight"].shape[0]):
        share = mx.where(routing.experts == index, routing.shares, 0.0).sum(axis=-1, keepdims=True)  # (T, 1)
        y = y + share.astype(x.dtype) * mlp(x, expert_of(w, index), ops)
    return y


def chosen_experts(x: mx.array, routing: Routing, w: Matrices, ops: Any) -> mx.array:
    """Compute `each_expert` with the chosen experts only, where MLX has a product for their dtype."""
    if not has_gathered_product(w):
        return each_expert(x, routing, w, ops)
    if routing.experts.size >= MANY_CHOICES:
        return sorted_experts(x, routing, w, ops)
    per_token = routing.experts.shape[1]
    rows = mx.repeat(x, per_token, axis=0)  # (T·K, hidden)
    y = mlp_of_rows(rows, routing.experts.reshape(-1), w, ops)
    return shared_out(y, routing)


def has_gathered_product(w: Matrices) -> bool:
    """Return whether MLX multiplies with gathered matrices of this dtype: on a CPU, dense ones must be float32."""
    if mx.default_device() == mx.gpu:
        return True
    parts = [part for weight in w.values() for part in weight.get("parts", [weight])]
    return all(part["weight"].dtype in (mx.float32, mx.uint32) for part in parts)


def sorted_experts(x: mx.array, routing: Routing, w: Matrices, ops: Any) -> mx.array:
    """Compute Σ share · expert(x) over each token's experts, with the choices sorted by expert.

    x (T, hidden), result (T, hidden) like x. Each choice is one row. `mlp_of_rows` reads each chosen expert once if the
    rows are sorted by expert and `is_sorted` says so.
    """
    # TASK w3.6.2: a row for each choice, sorted by expert, and back
    per_token = routing.experts.shape[1]
    experts = routing.experts.reshape(-1)  # (T·K,): choice i is one of token i // K
    order = mx.argsort(experts)
    rows = x[order // per_token]
    y = mlp_of_rows(rows, experts[order], w, ops, is_sorted=True)
    back = mx.argsort(order)
    return shared_out(y[back], routing)
    # END TASK


def shared_out(y: mx.array, routing: Routing) -> mx.array:
    """Add up the outputs of each token's experts by their shares. y (T·K, hidden), result (T, hidden)."""
    num_tokens, per_token = routing.shares.shape
    y = y.reshape(num_tokens, per_token, -1)
    shares = routing.shares[..., None].astype(y.dtype)
    return (y * shares).sum(axis=1)


def mlp_of_rows(rows: mx.array, experts: mx.array, w: Matrices, ops: Any, is_sorted: bool = False) -> mx.array:
    """Compute the MLP of experts[i] for row i. rows (R, hidden), experts (R,), result (R, hidden).

    With `is_sorted` the experts must ascend; each is then read once.
    """
    gate_up = gathered_product(rows, experts, w["gate_up_proj"], is_sorted)
    return gathered_product(ops.swiglu(gate_up), experts, w["down_proj"], is_sorted)


def gathered_product(x: mx.array, experts: mx.array, w: Matrices, is_sorted: bool) -> mx.array:
    """Multiply each row by the matrix of its expert. x (R, in), experts (R,), result (R, out)."""
    if "parts" in w:
        outputs = [gathered_product(x, experts, part, is_sorted) for part in w["parts"]]
        return mx.concatenate(outputs, axis=-1)
    rows = x[:, None]  # (R, 1, in)
    if "scales" not in w:
        columns = w["weight"].swapaxes(-1, -2)
        return mx.gather_mm(rows, columns, rhs_indices=experts, sorted_indices=is_sorted)[:, 0]
    width = x.shape[-1]
    y = mx.gather_qmm(
        rows,
        w["weight"],
        w["scales"],
        w["biases"],
        rhs_indices=experts,
        transpose=True,
        group_size=width // w["scales"].shape[-1],
        bits=w["weight"].shape[-1] * 32 // width,
        sorted_indices=is_sorted,
    )
    return y[:, 0]


def counts_of(experts: mx.array, num_experts: int) -> mx.array:
    """Count how many choices each of the experts 0 to E - 1 got. experts (T, K), result (E,) float32."""
    chosen = experts[..., None] == mx.arange(num_experts)
    return chosen.astype(mx.float32).sum(axis=(0, 1))


def balance_loss(logits: mx.array, experts: mx.array) -> mx.array:
    """Compute Switch Transformer's loss of a router's logits (T, E) and its choices (T, K). (arXiv:2101.03961)

    It is E · Σ f · p over the experts, with f an expert's part of all choices and p its mean probability: 1 where both
    are even, E where one expert gets all of both. Its gradient flows through p; f is a count.
    """
    # TASK w3.6.3: the share of choices times the mean probability
    num_experts = logits.shape[-1]
    shares = counts_of(experts, num_experts) / experts.size
    probabilities = mx.softmax(logits, axis=-1).mean(axis=0)
    return num_experts * (shares * probabilities).sum()
    # END TASK


def adjusted_bias(bias: mx.array, counts: mx.array, rate: float) -> mx.array:
    """Return the bias (E,) of `route` after a step with `counts` (E,) choices: up where the load is below the mean.

    It goes down where the load is above. There is no second loss, whose gradient would work against the model's own.
    (DeepSeek, arXiv:2408.15664)
    """
    return bias + rate * mx.sign(counts.mean() - counts)

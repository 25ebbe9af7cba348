"""Make a model with experts from a trained dense one: deal the neurons of each MLP out to the experts.

The sparse model may have fewer layers; the kept ones are evenly spaced. Each MLP keeps as many neurons as all experts
hold: the strongest, whose |up row| · |down column| is largest. They are dealt out in turn, so that the experts begin
equally strong. A token's shares of its K experts are about 1/K each, so down_proj is multiplied by K: a neuron of a
chosen expert then adds what it added before. Further training makes up for the neurons of the other experts. Sources:
MoEfication (Zhang et al., 2022), Sparse Upcycling (Komatsuzaki et al., 2023).
"""

from dataclasses import replace

import mlx.core as mx

from tiny_llm.config import ModelConfig
from tiny_llm.train.weights_io import TrainedWeights


def can_divide(dense: ModelConfig, sparse: ModelConfig) -> bool:
    """Return whether each layer of `sparse` has experts that an MLP of `dense` can fill, and all else is alike."""
    moe = sparse.moe
    if moe is None or dense.moe is not None or len(moe.layers) != sparse.num_hidden_layers:
        return False
    enough_layers = sparse.num_hidden_layers <= dense.num_hidden_layers
    enough_neurons = moe.num_experts * moe.expert_size <= dense.intermediate_size
    layers, width = sparse.num_hidden_layers, sparse.intermediate_size
    routed = replace(dense, model_type=sparse.model_type, moe=moe, num_hidden_layers=layers, intermediate_size=width)
    return enough_layers and enough_neurons and routed == sparse


def divided(weights: TrainedWeights, fresh: TrainedWeights, chosen: int) -> TrainedWeights:
    """Return a dense model's `weights` in the shape of `fresh`, the untrained weights of a model with experts.

    `chosen` is K, the number of experts of a token. The routers are taken from `fresh`.
    """
    places = kept_places(len(weights["layers"]), len(fresh["layers"]))
    layers = []
    for place, new in zip(places, fresh["layers"], strict=True):
        layer = dict(weights["layers"][place])
        gate_up = layer.pop("gate_up_proj")["weight"]
        down = layer.pop("down_proj")["weight"]
        num_experts, _, size = new["experts"]["down_proj"]["weight"].shape
        layer["router"] = new["router"]
        layer["experts"] = dealt_out(gate_up, down, num_experts, size, chosen)
        layers.append(layer)
    return {**weights, "layers": layers}


def kept_places(trained: int, total: int) -> list[int]:
    """Return which layers to keep, `total` of `trained`, the first and the last included: 5 of 6 → [0, 1, 2, 3, 5]."""
    if total == 1:
        return [0]
    return [index * (trained - 1) // (total - 1) for index in range(total)]


def dealt_out(gate_up: mx.array, down: mx.array, num_experts: int, size: int, chosen: int) -> TrainedWeights:
    """Return experts with the strongest neurons of an MLP: matrices (E, 2 · size, hidden) and (E, hidden, size).

    gate_up (2 · neurons, hidden), down (hidden, neurons); `chosen` is K.
    """
    gate, up = mx.split(gate_up, 2)  # (neurons, hidden)
    columns = down.T  # (neurons, hidden)
    strength = mx.linalg.norm(up, axis=-1) * mx.linalg.norm(columns, axis=-1)
    strongest = mx.argsort(-strength)[: num_experts * size]
    dealt = strongest.reshape(size, num_experts).T  # (E, size)
    made = {
        "gate_up_proj": {"weight": mx.concatenate([gate[dealt], up[dealt]], axis=1)},
        "down_proj": {"weight": mx.contiguous(columns[dealt].swapaxes(1, 2)) * chosen},
    }
    mx.eval(made)
    return made

"""Grow a trained model: more layers and wider MLPs that compute the same function until training changes them.

A layer whose `o_proj` and `down_proj` are zero adds nothing to the hidden states, and neither does an MLP neuron whose
column of `down_proj` is zero. Their other weights are random, so gradients reach the zero matrices in the first step
and every new weight from the second step on.

New layers stand behind equal groups of the trained ones, not all at the end: 4 → 6 layers is 0 1 new 2 3 new. There a
trained layer can still use what a new layer adds, and each new layer takes over the norms of the layer below it, which
fit the hidden states at that place. Source: LLaMA Pro (Wu et al., 2024), whose ablation prefers interleaved blocks.
"""

from dataclasses import replace

import mlx.core as mx

from tiny_llm.config import ModelConfig
from tiny_llm.train.weights_io import TrainedWeights

NORMS = ("input_layernorm", "q_norm", "k_norm", "post_attention_layernorm")


def can_grow(small: ModelConfig, large: ModelConfig) -> bool:
    """Whether the shapes differ in nothing but more layers and a wider MLP."""
    fewer_layers = small.num_hidden_layers <= large.num_hidden_layers
    narrower_mlp = small.intermediate_size <= large.intermediate_size
    stretched = replace(small, num_hidden_layers=large.num_hidden_layers, intermediate_size=large.intermediate_size)
    return fewer_layers and narrower_mlp and stretched == large


def grown(weights: TrainedWeights, fresh: TrainedWeights) -> TrainedWeights:
    """Return weights of the larger shape that give the same logits as `weights`.

    `fresh` are untrained weights of the larger shape, from `random_weights`: their `o_proj` and `down_proj` are zero.
    """
    trained = weights["layers"]
    places = trained_places(len(trained), len(fresh["layers"]))
    layers = []
    below = 0  # the trained layer at or below the current place
    for place, layer in enumerate(fresh["layers"]):
        if place in places:
            below = places.index(place)
            layers.append(widened(trained[below], layer))
        else:
            norms = {name: trained[below][name] for name in NORMS}
            layers.append({**layer, **norms})
    return {**weights, "layers": layers}


def trained_places(trained: int, total: int) -> list[int]:
    """Return the place of each trained layer among `total` layers: 4 of 6 → [0, 1, 3, 4]."""
    new = total - trained
    places = []
    for index in range(trained):
        new_below = index * new // trained
        places.append(index + new_below)
    return places


def widened(layer: TrainedWeights, fresh: TrainedWeights) -> TrainedWeights:
    """Return a trained layer with the further MLP neurons of `fresh`, whose columns of `down_proj` are zero."""
    gate_up = layer["gate_up_proj"]["weight"]
    down = layer["down_proj"]["weight"]
    width = down.shape[1]
    gate, up = mx.split(gate_up, 2)
    new_gate, new_up = mx.split(fresh["gate_up_proj"]["weight"], 2)
    new_down = fresh["down_proj"]["weight"]
    gate_up = mx.concatenate([gate, new_gate[width:], up, new_up[width:]])
    down = mx.concatenate([down, new_down[:, width:]], axis=1)
    return {**layer, "gate_up_proj": {"weight": gate_up}, "down_proj": {"weight": down}}

"""Copy a model's matrices into the order in which the CPU kernels read them.

A weight is then {"cpu": Matrix}, and a layer has {"cpu": DecoderLayer} beside its weights. A layer's experts become a
list of MLPs in place of the stacks.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import mlx.core as mx

from tiny_llm.config import ModelConfig
from tiny_llm.config.fields import require
from tiny_llm.model.moe import expert_of
from tiny_llm.model.ops import Weight, quantization_of

LayOut = Callable[[Weight, int], Weight]  # `laid_out` of one model: a weight and the length of its unpacked rows


def lay_out(weights: dict[str, Any], config: ModelConfig, module: Any, int8: bool) -> None:
    """Replace each matrix in `weights` by its copy for the kernels, in the order in which a step reads the matrices.

    A matrix's own arrays are dropped as soon as it is copied. Raises ValueError for `int8` without packed weights.
    """
    require(
        not int8 or any("scales" in part for layer in weights["layers"] for part in matrices_of(layer)),
        "activations: int8 is for packed weights, and this model's are dense; leave it out, or quantize the model",
    )
    arena = module.Arena()
    hidden = config.hidden_size

    def laid_out(weight: Weight, columns: int) -> Weight:
        return {"cpu": matrix(weight, columns, module, arena)}

    for layer in weights["layers"]:
        layer["qkv_proj"] = laid_out(layer["qkv_proj"], hidden)
        layer["o_proj"] = laid_out(layer["o_proj"], config.num_attention_heads * config.head_dim)
        mixture = None
        if "store" in layer.get("experts", {}):
            lay_out_router(layer, config, laid_out)
        elif "experts" in layer:
            mixture = lay_out_mixture(layer, config, module, laid_out)
        else:
            lay_out_mlp(layer, hidden, config.intermediate_size, laid_out)
        layer["cpu"] = module.DecoderLayer(
            arena=arena,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            dim=config.head_dim,
            eps=config.rms_norm_eps,
            int8=int8,
            qkv=layer["qkv_proj"]["cpu"],
            o=layer["o_proj"]["cpu"],
            gate_up=layer["gate_up_proj"]["cpu"] if "gate_up_proj" in layer else None,
            down=layer["down_proj"]["cpu"] if "down_proj" in layer else None,
            mixture=mixture,
            input_norm=layer["input_layernorm"]["weight"],
            post_norm=layer["post_attention_layernorm"]["weight"],
            q_norm=layer["q_norm"]["weight"] if config.qk_norm else None,
            k_norm=layer["k_norm"]["weight"] if config.qk_norm else None,
        )
    for name in ("embed_tokens", "lm_head"):
        if name in weights:
            weights[name] = laid_out(weights[name], hidden)


def lay_out_mlp(mlp: Weight, hidden: int, inner: int, laid_out: LayOut) -> None:
    """Replace the two matrices of an MLP whose intermediate size is `inner`."""
    mlp["gate_up_proj"] = laid_out(mlp["gate_up_proj"], hidden)
    mlp["down_proj"] = laid_out(mlp["down_proj"], inner)


def lay_out_mixture(layer: Weight, config: ModelConfig, module: Any, laid_out: LayOut) -> Any:
    """Replace the matrices of a layer's router and experts, and return its `ExpertMixture`."""
    moe = config.moe
    assert moe
    lay_out_router(layer, config, laid_out)
    experts = [expert_of(layer["experts"], index) for index in range(moe.num_experts)]
    for expert in experts:
        lay_out_mlp(expert, config.hidden_size, moe.expert_size, laid_out)
    layer["experts"] = experts
    mixture = module.ExpertMixture(
        router=layer["router"]["cpu"],
        gate_up=[expert["gate_up_proj"]["cpu"] for expert in experts],
        down=[expert["down_proj"]["cpu"] for expert in experts],
        chosen=moe.experts_per_token,
        normalize=moe.normalize,
    )
    if moe.shared_size:
        shared = layer["shared_expert"]
        mixture.share(shared["gate_up_proj"]["cpu"], shared["down_proj"]["cpu"], shared["gate"]["cpu"])
    return mixture


def lay_out_router(layer: Weight, config: ModelConfig, laid_out: LayOut) -> None:
    """Replace the matrices of a layer's router and of its shared expert."""
    moe = config.moe
    assert moe
    hidden = config.hidden_size
    layer["router"] = laid_out(layer["router"], hidden)
    if moe.shared_size:
        shared = layer["shared_expert"]
        lay_out_mlp(shared, hidden, moe.shared_size, laid_out)
        shared["gate"] = laid_out(shared["gate"], hidden)


def lay_out_later(mlp: Weight, hidden: int, inner: int, module: Any) -> None:
    """Replace the matrices of an expert that was read by itself. Their arena is their own, to be freed with them."""
    arena = module.Arena()
    lay_out_mlp(mlp, hidden, inner, lambda weight, columns: {"cpu": matrix(weight, columns, module, arena)})


def is_complete(weights: Mapping[str, Any]) -> bool:
    """Return whether all layers are laid out whole, none with experts in a store."""
    return not any("store" in layer.get("experts", {}) for layer in weights["layers"])


def matrices_of(tree: Any) -> Iterator[Weight]:
    """Yield the matrices of a tree of weights before they are laid out: each part of a weight, none of a store."""
    if isinstance(tree, list):
        for child in tree:
            yield from matrices_of(child)
    elif "weight" in tree:
        if tree["weight"].ndim > 1:
            yield tree
    elif "store" not in tree:
        for child in tree.values():
            yield from matrices_of(child)


def matrix(weight: Weight, columns: int, module: Any, arena: Any) -> Any:
    """Return the `Matrix` of a weight (rows, columns), and empty the weight, so that its arrays are freed.

    `columns` is the length of an unpacked row. Parts become one matrix, their outputs side by side.
    """
    if "parts" in weight:
        first, *others = [matrix(part, columns, module, arena) for part in weight["parts"]]
        for other in others:
            first.join(other)
        return first
    arrays = {name: mx.contiguous(array) for name, array in weight.items()}
    bias = arrays.get("bias")
    if "scales" in arrays:
        _, bits = quantization_of(weight, columns)
        arrays["biases"] = arrays["biases"].astype(arrays["scales"].dtype)
        mx.eval(arrays)
        made = module.Matrix(arena, arrays["weight"], arrays["scales"], arrays["biases"], bias, columns, bits)
    else:
        mx.eval(arrays)
        made = module.Matrix(arena, arrays["weight"], bias)
    del arrays, bias
    weight.clear()
    mx.clear_cache()
    return made


def laid_out_bytes(weights: Mapping[str, Any], config: ModelConfig) -> float:
    """Return the bytes of the laid-out matrices that a decode step reads.

    These are all matrices except the experts that are not chosen, and except an embedding table that is no head, of
    which a step reads one row.
    """
    head = weights.get("lm_head", weights["embed_tokens"])
    total = float(head["cpu"].nbytes)
    for layer in weights["layers"]:
        dense = {name: weight for name, weight in layer.items() if name != "experts"}
        total += nbytes_of(dense)
        if config.moe and "experts" in layer:
            experts = layer["experts"]
            each = nbytes_of(experts[0]) if isinstance(experts, list) else experts["store"].sizes[experts["layer"]]
            total += config.moe.experts_per_token * each
    return total


def nbytes_of(tree: Any) -> int:
    """Return the bytes of the laid-out matrices of a tree."""
    if isinstance(tree, list):
        return sum(nbytes_of(child) for child in tree)
    if not isinstance(tree, Mapping):
        return 0
    if tree.keys() == {"cpu"}:
        return int(tree["cpu"].nbytes)
    return sum(nbytes_of(child) for child in tree.values())

"""Mixed precision by measurement: give more bits to the matrices in which few bits do the most damage.

Each matrix of the running model is quantized to the low bits while all others stay dense, and the model reads
calibration texts. The matrix's damage is the mean KL divergence of the next token's distribution from the dense
model's, in nats. (HAWQ, arXiv:1905.03696, ranks layers by curvature instead.)
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from tiny_llm.config import QuantizationConfig
from tiny_llm.config.fields import require
from tiny_llm.model.ops import Weight
from tiny_llm.model.qwen3 import Attends, Qwen3
from tiny_llm.quantize.affine import check_format
from tiny_llm.quantize.perplexity import Text, predictions
from tiny_llm.quantize.plan import stored_bits

MLP = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
JOINED = {  # a layer's matrices in the engine, and the matrices in the files of which each is joined
    "qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o_proj": ("self_attn.o_proj",),
    **{name: tuple(f"mlp.{part}" for part in parts) for name, parts in MLP.items()},
}


class Unit(NamedTuple):
    """Matrices that get the same bits, because the engine computes them as one, and the damage that the low bits do."""

    paths: tuple[str, ...]
    size: int
    damage: float


def measure(
    model: Qwen3, texts: Sequence[Text], new_cache: Callable[[], Attends], bits: int, group_size: int
) -> list[Unit]:
    """Return each unit with the damage that quantizing it alone does, in nats a token, in the order of the model.

    Leave out a unit if the group size does not divide its rows: it can only stay dense.
    """
    check_format(group_size, bits)
    texts = [text for text in texts if text.start < len(text.tokens)]
    require(bool(texts), "calibration: expected texts with at least one token to predict, found none")
    dense = [log_probs(model, text, new_cache()) for text in texts]
    count = sum(each.shape[0] for each in dense)
    units = []
    for holder, name, paths in _places(model.weights):
        kept: Weight = holder[name]
        if kept["weight"].shape[-1] % group_size != 0:
            continue
        holder[name] = rounded(kept, bits, group_size)
        damage = 0.0
        try:
            for text, expected in zip(texts, dense, strict=True):
                found = log_probs(model, text, new_cache())
                damage += float(divergence(expected, found))
        finally:
            holder[name] = kept
        size = kept["weight"].size
        units.append(Unit(paths, size, damage / count))
    return units


def choose_bits(units: Sequence[Unit], low: int, high: int, group_size: int, target: float) -> QuantizationConfig:
    """Plan `high` bits for the units with the most damage per weight, as many as `target` bits a weight allow.

    `target` counts scales and biases, as `bits_per_weight` does. The same units give the same plan. Raises ValueError
    for a target below what `low` takes or above what `high` takes.
    """
    least = stored_bits(low, group_size)
    most = stored_bits(high, group_size)
    require(low < high, f"bits: expected fewer than the {high} of the sensitive layers, found {low}")
    require(
        least <= target <= most,
        f"target bits: expected {least:g} to {most:g} (with scales and biases, groups of {group_size}), "
        f"found {target:g}",
    )
    size = sum(unit.size for unit in units)
    room = (target - least) * size
    precise = QuantizationConfig(high, group_size)
    layers: dict[str, QuantizationConfig | None] = {}
    for unit in sorted(units, key=_order):
        cost = (most - least) * unit.size
        if cost > room * (1 + 1e-9):
            continue
        room -= cost
        for path in unit.paths:
            layers[path] = precise
    return QuantizationConfig(low, group_size, layers)


def _order(unit: Unit) -> tuple[float, tuple[str, ...]]:
    """Return the sort key of a unit: most damage per weight first, then by name."""
    return -unit.damage / unit.size, unit.paths


def rounded(w: Weight, bits: int, group_size: int) -> Weight:
    """Return a dense weight, which computes as fast as before, with the values that it would have after quantizing."""
    matrix = w["weight"]
    written = matrix.astype(mx.bfloat16)  # the type in the files
    packed, scales, biases = mx.quantize(written, group_size=group_size, bits=bits)
    scales = scales.astype(matrix.dtype)  # the type after loading
    biases = biases.astype(matrix.dtype)
    dense = mx.dequantize(packed, scales, biases, group_size=group_size, bits=bits)
    mx.eval(dense)
    return w | {"weight": dense}


def log_probs(model: Qwen3, text: Text, cache: Attends) -> mx.array:
    """Return log p over the vocabulary at each predicted token of a text, float32 (R, vocab), evaluated."""
    chunks = []
    for logits, _ in predictions(model, text, cache):
        chunks.append(logits.astype(mx.float32))
    rows = mx.concatenate(chunks)
    out = rows - mx.logsumexp(rows, axis=-1, keepdims=True)
    mx.eval(out)
    return out


def divergence(p: mx.array, q: mx.array) -> mx.array:
    """Return the KL divergence Σ p (log p - log q), summed over all rows, of the log-probabilities p and q."""
    terms = mx.exp(p) * (p - q)
    return terms.sum()


def _places(weights: Any) -> Iterator[tuple[dict[str, Any], str, tuple[str, ...]]]:
    """Yield each matrix of the model as (the dict that holds it, its key, its paths in the files).

    A matrix of all experts of a layer is one; routers are left out, because they stay dense.
    """
    yield weights, "embed_tokens", ("model.embed_tokens",)
    if "lm_head" in weights:
        yield weights, "lm_head", ("lm_head",)
    for i, layer in enumerate(weights["layers"]):
        for name, parts in JOINED.items():
            if name in layer:
                paths = tuple(f"model.layers.{i}.{part}" for part in parts)
                yield layer, name, paths
        for group, folder in (("experts", "switch_mlp"), ("shared_expert", "shared_expert")):
            if group not in layer:
                continue
            for name, parts in MLP.items():
                paths = tuple(f"model.layers.{i}.mlp.{folder}.{part}" for part in parts)
                yield layer[group], name, paths

"""Mixed precision by measurement: more bits where fewer do the most damage.

Each matrix of the running model is quantized by itself to the low bits, all others staying dense, and the model reads
calibration texts. Its damage is the mean KL divergence of the next token's distribution from the dense model's: how
many nats of the dense model's knowledge are lost (in the spirit of HAWQ, arXiv:1905.03696, which takes curvature
instead of a measurement).
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

JOINED = {  # a layer's matrices as the engine holds them, and their parts in the files
    "qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o_proj": ("self_attn.o_proj",),
    "gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "down_proj": ("mlp.down_proj",),
}


class Unit(NamedTuple):
    """Matrices that get the same bits, since the engine computes them as one, and the damage of the low ones."""

    paths: tuple[str, ...]
    size: int
    damage: float


def measure(
    model: Qwen3, texts: Sequence[Text], new_cache: Callable[[], Attends], bits: int, group_size: int
) -> list[Unit]:
    """The damage that quantizing each unit alone does, in nats a token, in the order of the model.

    A unit whose rows the group size does not divide is left out: it can only stay dense.
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
        try:
            pairs = ((p, log_probs(model, text, new_cache())) for p, text in zip(dense, texts, strict=True))
            damage = sum(float(divergence(p, q)) for p, q in pairs) / count
        finally:
            holder[name] = kept
        units.append(Unit(paths, kept["weight"].size, damage))
    return units


def choose(units: Sequence[Unit], low: int, high: int, group_size: int, target: float) -> QuantizationConfig:
    """`high` bits for the units with the most damage for each weight, as many as `target` bits a weight allow.

    `target` counts scales and biases, as `bits_per_weight` does. The same units give the same plan. Raises ValueError
    for a target outside of what the two allow.
    """
    least, most = stored_bits(low, group_size), stored_bits(high, group_size)
    require(low < high, f"bits: expected fewer than the {high} of the sensitive layers, found {low}")
    require(
        least <= target <= most,
        f"target bits: expected {least:g} to {most:g} (with scales and biases, groups of {group_size}), "
        f"found {target:g}",
    )
    room = (target - least) * sum(unit.size for unit in units)
    layers: dict[str, QuantizationConfig | None] = {}
    for unit in sorted(units, key=lambda unit: (-unit.damage / unit.size, unit.paths)):
        cost = (most - least) * unit.size
        if cost <= room * (1 + 1e-9):
            room -= cost
            layers |= dict.fromkeys(unit.paths, QuantizationConfig(high, group_size))
    return QuantizationConfig(low, group_size, layers)


def rounded(w: Weight, bits: int, group_size: int) -> Weight:
    """A dense weight with the values that it would have after quantizing: it computes as fast as before."""
    matrix = w["weight"]
    packed, *rest = mx.quantize(matrix.astype(mx.bfloat16), group_size=group_size, bits=bits)  # as it is written
    scales, biases = (each.astype(matrix.dtype) for each in rest)  # and loaded
    dense = mx.dequantize(packed, scales, biases, group_size=group_size, bits=bits)
    mx.eval(dense)
    return w | {"weight": dense}


def log_probs(model: Qwen3, text: Text, cache: Attends) -> mx.array:
    """log p over the vocabulary at each predicted token of a text, float32 (R, vocab), evaluated."""
    logits = mx.concatenate([logits.astype(mx.float32) for logits, _ in predictions(model, text, cache)])
    out = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    mx.eval(out)
    return out


def divergence(p: mx.array, q: mx.array) -> mx.array:
    """Σ p (log p - log q) over all rows, from log-probabilities."""
    return (mx.exp(p) * (p - q)).sum()


def _places(weights: Any) -> Iterator[tuple[dict[str, Any], str, tuple[str, ...]]]:
    """Where each matrix of the model hangs: (dict, key, its paths in the files)."""
    for name, path in (("embed_tokens", "model.embed_tokens"), ("lm_head", "lm_head")):
        if name in weights:
            yield weights, name, (path,)
    for i, layer in enumerate(weights["layers"]):
        for name, parts in JOINED.items():
            yield layer, name, tuple(f"model.layers.{i}.{part}" for part in parts)

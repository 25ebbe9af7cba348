"""Choose the table of operations that a model and its caches use, from the settings and the device.

No other file chooses a back end for a model.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mlx.core as mx

from tiny_llm.config import EngineConfig
from tiny_llm.config.fields import require
from tiny_llm.kernels.copy_blocks import copied_blocks
from tiny_llm.kernels.cpu import build
from tiny_llm.kernels.cpu.build import NoKernelsError, UnusableSettingError
from tiny_llm.kernels.cpu.native import INT8_ROWS, with_native
from tiny_llm.kernels.decode_attention import MAX_HEADS, decode_attention
from tiny_llm.kernels.elementwise import swiglu
from tiny_llm.kernels.experts import SortedChoices, expert_rows
from tiny_llm.kernels.flash_attention import Extent, flash_attention
from tiny_llm.kernels.launch import choose_back_end
from tiny_llm.kernels.matmul import quantized_matmul
from tiny_llm.kernels.norm import rms_norm
from tiny_llm.kernels.packed_attention import packed_attention
from tiny_llm.kernels.paged_attention import PACKED_TWINS, TWINS, Pages, paged_decode, paged_prefill
from tiny_llm.kernels.quantized import most_rows
from tiny_llm.kernels.rope import rope
from tiny_llm.model import fused
from tiny_llm.model.cached_attention import Packed, PagedOps
from tiny_llm.model.moe import Routing, shared_out
from tiny_llm.model.ops import Ops, Weight, quantization_of
from tiny_llm.model.qwen3 import Qwen3
from tiny_llm.model.rope import Rotation


def operations(config: EngineConfig, plain: Ops, dtype: mx.Dtype | None = None) -> Ops:
    """Build the table of operations for these settings on MLX's default device.

    `plain` is the table of readable operations, for `config.ops` "plain". `dtype` is that of the activations.
    `config.kernels`, or where it is None the environment's TINY_LLM_KERNELS, names the back end of the whole model.
    Where both name none, our kernels run where they are fastest: on a GPU over a paged pool; on a CPU in the whole
    model, if `dtype` is float32 and the CPU kernels can be compiled.

    Raises ValueError as `launch.choose_back_end`, and where the settings name the CPU kernels but they can't be used.
    """
    ops = plain if config.ops == "plain" else fused.choose_ops(config.ops)
    name = config.kernels or os.environ.get("TINY_LLM_KERNELS") or None
    is_int8 = config.activations == "int8"
    if name == "cpu" or is_int8:
        require(
            name in ("cpu", None), f"activations: int8 is for the CPU kernels, found kernels {name!r}; leave one out"
        )
        try:
            return with_native(ops, cpu_kernels(dtype), is_int8)
        except NoKernelsError as error:
            setting = "activations int8" if is_int8 else "kernels cpu"
            raise ValueError(f"{setting}: the CPU kernels can't be used here: {error}") from error
    if name and name != "mlx":
        return with_kernels(ops, name)
    back_end = "plain" if name == "mlx" else choose_back_end()
    ops = ops._replace(paged=paged_on(back_end), paged_packed=PACKED_TWINS)
    if name is None and config.ops == "fused":
        try:
            return with_native(ops, cpu_kernels(dtype), int8=False)
        except UnusableSettingError as error:
            warnings.warn(f"the CPU kernels are off, which is slower: {error}", RuntimeWarning, stacklevel=2)
        except NoKernelsError:
            pass  # this machine has none
    return ops


def cpu_kernels(dtype: mx.Dtype | None) -> Any:
    """Return the compiled CPU kernels. Raises NoKernelsError where they can't compute with these activations."""
    if mx.default_device() == mx.gpu:
        raise NoKernelsError("the model runs on a GPU")
    if dtype is None or dtype != mx.float32:
        raise NoKernelsError("they compute in float32: leave dtype out, or set it to float32")
    return build.kernels()


def with_kernels(ops: Ops, name: str) -> Ops:
    """Return `ops` with our Metal kernels on the back end `name`.

    There are kernels for the norm, the rotation, the gate, products with packed weights, attention and the paged pool's
    operations. Dense products, the embedding, and attention under a mask (of a rotating cache beyond its window) stay
    as in `ops`. Attention gets keys and values as slices of the cache's buffers, which MLX copies for a launch; the
    kernels of a paged pool read the buffers in place. A pool in few bits has plain twins only. The simulator reads the
    values of its inputs, which a compiled function does not have: on it nothing is compiled.

    Raises ValueError as `launch.choose_back_end`, and in a step where heads are wider than 256.
    """
    on = choose_back_end(name)

    def norm(x: mx.array, weight: mx.array, eps: float) -> mx.array:
        rows = x.reshape(-1, x.shape[-1])
        return rms_norm(rows, weight.astype(x.dtype), eps, on).reshape(x.shape)

    def turn(x: mx.array, rotation: Rotation) -> mx.array:
        return rope(x, rotation.cos, rotation.sin, on=on)

    def gate(gate_up: mx.array) -> mx.array:
        return swiglu(gate_up, on)

    table = ops._replace(
        linear=linear_on(on, ops.linear),
        rms_norm=norm,
        rope=turn,
        swiglu=gate,
        attention=attention_on(on),
        packed_attention=packed_attention_on(on, ops.packed_attention),
        experts=experts_on(on, ops.experts),
        paged=paged_on(on),
        paged_packed=PACKED_TWINS,
        kernels=on,
    )
    if on == "sim":
        return table._replace(compile=lambda function: function)
    return table


def linear_on(on: str, dense: Callable[[mx.array, Weight], mx.array]) -> Callable[[mx.array, Weight], mx.array]:
    """Return the function x Wᵀ + bias, x (T, in) → (T, out): kernels for packed weights, `dense` for others."""

    def linear(x: mx.array, w: Weight) -> mx.array:
        if "parts" in w:
            return mx.concatenate([linear(x, part) for part in w["parts"]], axis=-1)
        if "scales" not in w:
            return dense(x, w)
        scales = w["scales"].astype(x.dtype)
        biases = w["biases"].astype(x.dtype)
        y = quantized_matmul(x, w["weight"], scales, biases, on)
        return y + w["bias"] if "bias" in w else y

    return linear


def experts_on(on: str, many: Callable[..., mx.array]) -> Callable[..., mx.array]:
    """Return the function `moe.each_expert`: our kernel for packed experts and few tokens, `many` for others."""

    def most_tokens(gate_up: Weight, down: Weight, hidden: int) -> int:
        if "scales" not in gate_up or "scales" not in down:
            return 0
        inner = gate_up["weight"].shape[1] // 2
        bits = (quantization_of(gate_up, hidden)[1], quantization_of(down, inner)[1])
        return min(map(most_rows, bits))

    def product(x: mx.array, choices: SortedChoices, w: Weight) -> mx.array:
        return expert_rows(x, choices, w["weight"], w["scales"].astype(x.dtype), w["biases"].astype(x.dtype), on)

    def experts(x: mx.array, routing: Routing, w: Weight, ops: Ops) -> mx.array:
        num_tokens, per_token = routing.experts.shape
        if num_tokens > most_tokens(w["gate_up_proj"], w["down_proj"], x.shape[-1]):
            return many(x, routing, w, ops)
        chosen = routing.experts.reshape(-1).astype(mx.int32)
        order = mx.argsort(chosen).astype(mx.int32)
        choices = SortedChoices(order // per_token, chosen[order], num_tokens)
        gate_up = product(x, choices, w["gate_up_proj"])
        by_row = choices._replace(rows=mx.arange(chosen.size, dtype=mx.int32))
        y = product(ops.swiglu(gate_up), by_row, w["down_proj"])
        return shared_out(y[mx.argsort(order)], routing)

    return experts


def attention_on(on: str) -> Callable[..., mx.array]:
    """Return causal attention: FlashAttention for several queries, decode attention for a single query."""

    def attention(q: mx.array, k: mx.array, v: mx.array, scale: float, window: int | None = None) -> mx.array:
        heads, slots, _ = k.shape
        if is_decode(q, heads):
            lengths = mx.array([slots], mx.int32)
            return decode_attention(q, k[None], v[None], lengths, scale, window or 0, on=on)
        spans = [(q.shape[0], slots)]
        return flash_attention(q, k, v, spans, scale, window or 0, on)

    return attention


def packed_attention_on(on: str, masked: Callable[..., mx.array]) -> Callable[..., mx.array]:
    """Return attention over packed keys and values, with `masked` for attention under a mask, which has no kernel."""
    attention = attention_on(on)

    def packed(
        q: mx.array, k: Packed, v: Packed, scale: float, window: int | None = None, mask: mx.array | None = None
    ) -> mx.array:
        if mask is not None:
            return masked(q, k, v, scale, window, mask)
        heads, slots, _ = k.codes.shape
        if is_decode(q, heads):
            keys = k.codes[None], k.scales[None], k.biases[None]
            values = v.codes[None], v.scales[None], v.biases[None]
            lengths = mx.array([slots], mx.int32)
            return packed_attention(q, keys, values, lengths, scale, window or 0, on=on)
        dim = q.shape[2]
        unpacked_k = k.unpacked(0, slots, dim)
        unpacked_v = v.unpacked(0, slots, dim)
        return attention(q, unpacked_k, unpacked_v, scale, window)

    return packed


def is_decode(q: mx.array, kv_heads: int) -> bool:
    """Return whether decode attention takes q (T, Hq, D): T = 1, and a threadgroup holds the heads of a K/V head."""
    return q.shape[0] == 1 and q.shape[1] <= MAX_HEADS * kv_heads


def paged_on(on: str) -> PagedOps:
    """Return the operations of a paged pool on the back end `on`."""
    if on == "plain":
        return TWINS

    def decode(q: mx.array, keys: mx.array, values: mx.array, pages: Pages, scale: float) -> mx.array:
        return paged_decode(q, keys, values, pages.tables, pages.ends, scale, pages.window, on=on)

    def prefill(
        q: mx.array,
        keys: mx.array,
        values: mx.array,
        tables: mx.array,
        spans: Sequence[Extent],
        scale: float,
        window: int | None,
        near: mx.array | None = None,
    ) -> mx.array:
        return paged_prefill(q, keys, values, tables, spans, scale, window or 0, near, on)

    def copy_blocks(pool: mx.array, sources: mx.array) -> mx.array:
        return copied_blocks(pool, sources, on)

    return PagedOps(decode, prefill, copy_blocks, reads_padding=False)


def describe_operations(model: Qwen3, engine: EngineConfig) -> str:
    """Name the operations that our kernels run in this model and those that MLX runs.

    For example `kernels on sim: norm, rotation, gate, attention · MLX's operations: embedding, dense products`.
    """
    ops = model.ops
    if ops.kernels is None:
        return "kernels: none of ours, MLX's operations alone"
    if ops.native:
        words = f"kernels on cpu: layers, products, attention, embedding ({build.threads()} threads)"
        if ops.int8:
            words += f"; activations: int8 in products of up to {INT8_ROWS} rows with packed weights"
        return words
    table = () if model.config.tie_word_embeddings else ("embed_tokens",)
    packed = set[bool]()
    for name, weight in model.weights.items():
        if name not in table:
            packed.update(matrices_packed(weight))
    ours = ["norm", "rotation", "gate", "attention"]
    theirs = ["embedding"]
    if True in packed:
        ours.append("packed products")
    if False in packed:
        theirs.append("dense products")
    if engine.cache == "rotating":
        theirs.append("attention beyond the window")
    return f"kernels on {ops.kernels}: {', '.join(ours)} · MLX's operations: {', '.join(theirs)}"


def matrices_packed(weights: Any) -> Iterator[bool]:
    """Yield for each matrix in a tree of weights whether it is packed."""
    if isinstance(weights, dict) and "weight" in weights:
        if weights["weight"].ndim == 2:
            yield "scales" in weights
    elif isinstance(weights, dict):
        for part in weights.values():
            yield from matrices_packed(part)
    elif isinstance(weights, list):
        for part in weights:
            yield from matrices_packed(part)

"""The model's table of operations with kernels in it: `--kernels` runs them in the real model."""

import mlx.core as mx

from tiny_llm.kernels.elementwise import swiglu
from tiny_llm.kernels.launch import choose
from tiny_llm.kernels.norm import rms_norm
from tiny_llm.kernels.rope import rope
from tiny_llm.model.ops import Ops
from tiny_llm.model.rope import Rotation


def with_kernels(ops: Ops, name: str) -> Ops:
    """`ops` with the RMSNorm, RoPE and SwiGLU kernels on the back end `name`; raises ValueError as `choose` does.

    The simulator needs values, which a compiled function has not: with it nothing is compiled.
    """
    on = choose(name)

    def norm(x: mx.array, weight: mx.array, eps: float) -> mx.array:
        return rms_norm(x.reshape(-1, x.shape[-1]), weight.astype(x.dtype), eps, on).reshape(x.shape)

    def turn(x: mx.array, rotation: Rotation) -> mx.array:
        return rope(x, rotation.cos, rotation.sin, on=on)

    def gate(gate_up: mx.array) -> mx.array:
        return swiglu(gate_up, on)

    table = ops._replace(rms_norm=norm, rope=turn, swiglu=gate)
    return table._replace(compile=lambda function: function) if on == "sim" else table

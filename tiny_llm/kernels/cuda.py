"""Metal bodies on NVIDIA: rewritten for `mx.fast.cuda_kernel`, with a prelude that has Metal's names.

Address spaces are dropped, threadgroup variables become __shared__, helper functions __device__, attributes macros of
the prelude. Scalars, which CUDA kernels of MLX get as pointers, are read through them. Groups are always full there:
a body must check its bounds, which it should anyhow.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import mlx.core as mx

from tiny_llm.kernels.sim import Interface, Source
from tiny_llm.kernels.sim.rewrite import TOKEN, Allocation, neighbour, rewrite

PRELUDE = Path(__file__).parent / "cuda_prelude.h"
SPACES = {"device", "constant", "threadgroup", "thread"}
UNKNOWN = ("atomic_", "_strides")  # what MLX's CUDA kernels have not, or have otherwise


def kernel(interface: Interface, source: Source, scalars: Collection[str]) -> Any:
    """`mx.fast.cuda_kernel` for a Metal kernel; `scalars` are the inputs without dimensions.

    Raises ValueError for a body that uses what has no counterpart.
    """
    body, header = translate(source.body, scalars), translate(source.header, (), functions=True)
    return mx.fast.cuda_kernel(
        name=interface.name,
        input_names=list(interface.inputs),
        output_names=list(interface.outputs),
        source=body,
        header=PRELUDE.read_text(encoding="utf-8") + header,
        ensure_row_contiguous=interface.ensure_row_contiguous,
    )


def translate(text: str, scalars: Collection[str], functions: bool = False) -> str:
    """Metal to CUDA, line by line; `functions`: it is a header, whose functions are for the device."""
    for word in UNKNOWN:
        if word in text:
            raise ValueError(f"this kernel uses {word}…, which the CUDA back end does not know; run it on sim or plain")
    text = rewrite(text, shared)
    tokens = TOKEN.findall(text)
    out = []
    for i, token in enumerate(tokens):
        before = neighbour(tokens, i, -1)
        if token in SPACES or (token == " " and i and tokens[i - 1] in SPACES):
            continue
        if functions and token == "inline":
            out.append("__device__ ")
        out.append(token)
        if token in scalars and not (before >= 0 and tokens[before] == "."):
            out.append("[0]")
    return "".join(out)


def shared(allocation: Allocation) -> str:
    return f"__shared__ {''.join(allocation.tokens).strip()};"

"""GPU kernels: one `.metal` body each, which runs on Metal, on CUDA and in a simulator; and its plain twin.

Each function takes `on`: "metal", "cuda", "sim", "plain" or a `sim.Simulator`. Without it TINY_LLM_KERNELS decides,
and without that the device: Metal or CUDA where MLX's default device is one, else the plain twin.
"""

from tiny_llm.kernels.copy_blocks import copied_blocks
from tiny_llm.kernels.decode_attention import decode_attention, merge_attention
from tiny_llm.kernels.elementwise import axpby, swiglu
from tiny_llm.kernels.flash_attention import flash_attention
from tiny_llm.kernels.matmul import quantized_matmul, quantized_tiles, split_sum
from tiny_llm.kernels.norm import residual_rms_norm, rms_norm
from tiny_llm.kernels.packed_attention import packed_attention
from tiny_llm.kernels.paged_attention import paged_decode, paged_prefill
from tiny_llm.kernels.quantized import quantized_matvec, quantized_rows
from tiny_llm.kernels.rope import rope
from tiny_llm.kernels.softmax import softmax

__all__ = [
    "axpby",
    "copied_blocks",
    "decode_attention",
    "flash_attention",
    "merge_attention",
    "packed_attention",
    "paged_decode",
    "paged_prefill",
    "quantized_matmul",
    "quantized_matvec",
    "quantized_rows",
    "quantized_tiles",
    "residual_rms_norm",
    "rms_norm",
    "rope",
    "softmax",
    "split_sum",
    "swiglu",
]

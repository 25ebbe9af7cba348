"""What a step of a model costs at least: bytes to move, operations to do, and the time that a chip needs for them.

The roofline model (doi:10.1145/1498765.1498785): memory and arithmetic work at the same time, so that the slower of the
two sets the time. Only matrices and the KV cache are counted; norms, activations and the logits are small beside them.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Literal, NamedTuple

import mlx.core as mx

from tiny_llm.config import ModelConfig
from tiny_llm.config.moe import MoeConfig
from tiny_llm.course import NotDone
from tiny_llm.kernels.chips import Chip


class Bound(NamedTuple):
    """The least time in seconds, and which of the two resources sets it."""

    seconds: float
    by: Literal["memory", "arithmetic"]


def matrix_weights(config: ModelConfig) -> int:
    """How many weights a token is multiplied with: those of every matrix, the head's included.

    The embedding table counts only as the head of a tied model: a token reads one row of it. Of a layer's experts, the
    chosen ones count.
    """
    if config.moe:
        return _weights_with_experts(config, config.moe)
    # YOUR CODE (w2.1.1): the weights of all matrices
    raise NotDone("w2.1.1")


def _weights_with_experts(config: ModelConfig, moe: MoeConfig) -> int:
    as_dense = matrix_weights(replace(config, moe=None))
    one_mlp = 3 * config.hidden_size * config.intermediate_size
    return as_dense + len(moe.layers) * (moe.weights_met(config.hidden_size) - one_mlp)


def keys_seen(config: ModelConfig, context: int) -> int:
    """Over all layers, how many tokens' keys the newest of `context` tokens sees; a window makes it fewer."""
    return sum(min(context, config.window_of(layer) or context) for layer in range(config.num_hidden_layers))


def step_bytes(config: ModelConfig, context: int, rows: int = 1, weight_bits: float = 16, kv_bits: float = 16) -> float:
    """Bytes that a decode step must read: every weight once, and for each of `rows` sequences its keys and values.

    Each sequence is `context` tokens long, the new one included, and gets one token. Of experts only those of a single
    token count; `MoeConfig.further_weights` has those that more rows read.
    """
    # YOUR CODE (w2.1.2): weights once, keys and values for each sequence
    raise NotDone("w2.1.2")


def step_operations(config: ModelConfig, context: int, rows: int = 1) -> float:
    """Multiplications and additions of a decode step of `rows` sequences, each `context` tokens long."""
    # YOUR CODE (w2.1.3): two for each weight, four for each number of a key that a head sees
    raise NotDone("w2.1.3")


def bound(chip: Chip, moved: float, operations: float) -> Bound:
    """The least time for so many bytes and operations on a chip. One that names no TFLOP/s is bound by memory."""
    # YOUR CODE (w2.1.4): the slower of the two sets the time
    raise NotDone("w2.1.4")


def weight_bits(config: ModelConfig, dtype_bits: float = 16) -> float:
    """Bits of a weight: of the quantization, with a scale and a bias of 16 bits for each group, else `dtype_bits`."""
    packed = config.quantization
    return packed.bits + 32 / packed.group_size if packed else dtype_bits


def this_machine(size: float = 64e6) -> Chip:
    """The default device as measured now: a matrix product, and a matrix of about `size` bytes times a vector."""
    side = 768
    rows = max(1, min(int(size), 10**9) // (4 * 4096))
    square, matrix, vector = mx.ones((side, side)), mx.ones((rows, 4096)), mx.ones((4096, 1))
    teraflops = 2 * side**3 / _seconds(lambda: square @ square) / 1e12
    return Chip("this machine", matrix.nbytes / _seconds(lambda: matrix @ vector) / 1e9, teraflops, "measured just now")


def _seconds(call: Callable[[], mx.array]) -> float:
    """The fastest of five, after one to warm up."""
    times = []
    for _ in range(6):
        begin = time.perf_counter()
        mx.eval(call())
        times.append(time.perf_counter() - begin)
    return min(times[1:])

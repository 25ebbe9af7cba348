"""The "Measure" tables of week 2: what each chapter builds, beside a bound that no code can beat.

    python bench/week2.py [--chapter 2.2] [--code mine] [--json] [--rounds 3] [--write]

As bench/week1.py does it. Kernels are counted in the simulator where there is no GPU: the bytes that they ask device
memory for, beside those that must be moved; a chip's time follows from its bandwidth. The bound of chapter 2.11 is the
time in which as many bytes are read, measured in turns with the product; without CPU kernels it has no table.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import tiny_llm  # noqa: E402, F401  activates the BLAS  # isort: skip

import mlx.core as mx  # noqa: E402

from bench.cache import costs, decoding  # noqa: E402
from bench.week1 import Case, Count, Makers, main, random, seconds, tokens  # noqa: E402


def traffic(name: str, launch: Callable[..., object], *arguments: object) -> Count:
    """Kilobytes that a launch of `launch(*arguments, on=…)` asks device memory for, counted in the simulator."""
    from tiny_llm.kernels.sim import Simulator

    simulator = Simulator(check=True)
    launch(*arguments, on=simulator)
    report = simulator.reports[-1]
    return Count(name, lambda: report.traffic / 1e3, report.minimum / 1e3, "kilobytes")


def measuring() -> Iterator[Case]:
    """A matrix of 16 MB times one token's vector, and times more: the bytes stay, the operations grow."""
    weight = random(4096, 1024)
    for rows in (1, 4, 16, 64, 256):
        x = random(1024, rows)
        yield Case(f"times {tokens(rows)}", lambda x=x: weight @ x, 2 * weight.size * rows, weight.nbytes)


def first_kernel() -> Iterator[Count]:
    from tiny_llm import kernels

    x, y = mx.ones(100_000), mx.ones(100_000)
    yield traffic("axpby, 100,000 numbers", kernels.axpby, x, y, 2.0, 0.5)
    for rows in (64, 4096):
        yield traffic(f"rms_norm, {rows} rows of 128", kernels.rms_norm, random(rows, 128), mx.ones(128), 1e-6)


def fusing() -> Iterator[Count]:
    from tiny_llm import kernels

    x, residual, weight = random(512, 256), random(512, 256), mx.ones(256)
    apart = traffic("", kernels.axpby, x, residual, 1.0, 1.0), traffic("", kernels.rms_norm, x, weight, 1e-6)
    fused = traffic("sum and norm, fused", kernels.residual_rms_norm, x, residual, weight, 1e-6)
    yield Count("sum and norm, apart", lambda: sum(part.call() for part in apart), fused.least, "kilobytes")
    yield fused
    yield traffic("swiglu, 64 rows of 3,072", kernels.swiglu, random(64, 6144))


def quantization() -> Iterator[Count]:
    from tiny_llm.quantize.affine import quantize

    w = random(1024, 1024).astype(mx.bfloat16)
    for bits, group_size in ((8, 64), (6, 64), (4, 32), (4, 64), (4, 128), (3, 64), (2, 64)):
        stored = lambda b=bits, g=group_size: sum(part.nbytes for part in quantize(w, g, b).values()) / 1e3  # noqa: E731
        yield Count(f"{bits} bits, groups of {group_size}", stored, w.size * bits / 8e3, "kilobytes")


def matvec() -> Iterator[Count]:
    from tiny_llm import kernels
    from tiny_llm.kernels.catalog import quantized_arguments

    for rows, bits in ((4096, 4), (4096, 8), (1024, 4)):
        given = quantized_arguments(mx.float16, 1, rows, 1024, bits, 64)
        yield traffic(f"{rows:,} × 1,024 in {bits} bits", kernels.quantized_matvec, *given)


def matrices() -> Iterator[Count]:
    from tiny_llm import kernels
    from tiny_llm.kernels.catalog import quantized_arguments

    for rows in (2, 4, 16):
        given = quantized_arguments(mx.float16, rows, 1024, 1024, 4, 64)
        yield traffic(f"{rows} rows, one pass over W", kernels.quantized_rows, *given)
    given = quantized_arguments(mx.float16, 64, 256, 512, 4, 64)
    for splits in (1, 2):
        name = f"64 rows in tiles, {splits} split{'s' if splits > 1 else ''} of K"
        yield traffic(name, kernels.quantized_tiles, *given, splits)


def flash() -> Iterator[Count]:
    from tiny_llm import kernels
    from tiny_llm.kernels.catalog import flash_arguments

    for prompt, window in ((64, 0), (128, 0), (256, 0), (256, 64)):
        given = flash_arguments(mx.float16, 2, 1, 128, [(prompt, prompt)], window)
        name = f"{prompt} tokens" + (f", a window of {window}" if window else "")
        yield traffic(name, kernels.flash_attention, *given)


def decode_parts() -> Iterator[Count]:
    from tiny_llm import kernels
    from tiny_llm.kernels.catalog import decode_arguments, parts_arguments
    from tiny_llm.kernels.decode_attention import decode_attention_parts

    for heads, kv_heads in ((2, 2), (4, 2), (14, 2)):
        given = decode_arguments(mx.float16, heads, kv_heads, 128, [1024], 0, 0)
        yield traffic(f"1,024 keys, {heads} heads on {kv_heads}", decode_attention_parts, *given)
    yield traffic("merging 4 parts of 14 heads", kernels.merge_attention, *parts_arguments(mx.float16, 14, 4, 128))


def cpu_rows() -> Iterator[Count]:
    """One row of x times a matrix of 64 million weights, by the CPU kernels."""
    from tiny_llm.kernels.cpu.build import kernels

    module = kernels()
    weight, x = random(16384, 4096), random(1, 4096)
    halves = weight.astype(mx.bfloat16)
    mx.eval(weight, halves, x)
    makers: dict[str, Callable[[], object]] = {
        "float32": lambda: module.Matrix(module.Arena(), weight, None),
        "16 bits": lambda: module.Matrix(module.Arena(), halves, None),
    }
    for bits in (8, 4):
        packed = mx.quantize(halves, group_size=64, bits=bits)
        mx.eval(packed)
        makers[f"{bits} bits"] = lambda p=packed, b=bits: module.Matrix(module.Arena(), *p, None, 4096, b)
    for name, make in makers.items():
        matrix = make()
        yield in_turns(name, lambda m=matrix: m.product(x, False), module, matrix.nbytes)
    yield in_turns("4 bits, int8 activations", lambda: matrix.product(x, True), module, matrix.nbytes)
    arrays = (x, *packed)
    yield in_turns("4 bits, MLX", lambda: mx.quantized_matmul(*arrays, group_size=64, bits=4), module, matrix.nbytes)


def in_turns(name: str, call: Callable[[], object], module: Any, size: int) -> Count:
    """Milliseconds of a call, the best of some, and of reading `size` bytes, each round beside the other's."""
    best, fastest = float("inf"), 0.0
    for _ in range(9):
        best = min(best, seconds(call, 1))
        fastest = max(fastest, *(module.read_speed(size) for _ in range(4)))
    return Count(name, lambda: best * 1e3, size / fastest / 1e6, "milliseconds")


MAKERS: Makers = {
    "2.1": measuring,
    "2.2": first_kernel,
    "2.3": fusing,
    "2.4": decoding,
    "2.5": costs,
    "2.6": quantization,
    "2.7": matvec,
    "2.8": matrices,
    "2.9": flash,
    "2.10": decode_parts,
    "2.11": cpu_rows,
}


if __name__ == "__main__":
    main(MAKERS, __doc__)

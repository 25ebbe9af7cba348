"""Our kernels of week 2 beside MLX's, on the shapes of Qwen3-0.6B and 4B.

    python bench/kernels.py [--json] [--rounds N]

On a GPU (Metal or CUDA): microseconds of a call in bfloat16, ours against mx.quantized_matmul and
mx.fast.scaled_dot_product_attention, in turns; a ratio below 1 is a lead of ours. Calls are queued by the score, so
that it is the kernel that counts and not the queue.

Elsewhere there is no time to measure. What the simulator counts is printed instead, in float16 on the shapes of the
0.6B: bytes asked for over the least, how much of the 32-byte sectors is used, a threadgroup's share of the work, and
the least time on some chips by the roofline.
"""

import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny_llm  # noqa: F401  activates the BLAS  # isort: skip

import mlx.core as mx

from bench.common import Row, arguments, microseconds, race, report
from tiny_llm.kernels import decode_attention, flash_attention, packed_attention, quantized_matmul
from tiny_llm.kernels.catalog import decode_arguments, flash_arguments, packed_arguments, quantized_arguments
from tiny_llm.kernels.chips import CHIPS
from tiny_llm.kernels.launch import choose
from tiny_llm.kernels.roofline import bound
from tiny_llm.kernels.sim import Simulator

SCORE = 20  # calls in one evaluation
SHOWN = ("M1", "M4 Max", "H200")
GROUP, BITS = 64, 4


class Model(NamedTuple):
    name: str
    hidden: int
    heads: int
    kv_heads: int
    dim: int
    intermediate: int

    def matrices(self) -> dict[str, tuple[int, int]]:
        """(outputs, columns) as the engine has them, q, k, v and gate, up in one."""
        return {
            "qkv": ((self.heads + 2 * self.kv_heads) * self.dim, self.hidden),
            "o": (self.hidden, self.heads * self.dim),
            "gate_up": (2 * self.intermediate, self.hidden),
            "down": (self.hidden, self.intermediate),
        }


MODELS = (Model("0.6B", 1024, 16, 8, 128, 3072), Model("4B", 2560, 32, 8, 128, 9728))


class Case(NamedTuple):
    """One comparison: `ours(on)` and `peer()` give the same; `operations` is their arithmetic."""

    name: str
    ours: Callable[..., mx.array]
    peer: Callable[[], mx.array]
    operations: float


def product(model: Model, matrix: str, rows: int, dtype: mx.Dtype) -> Case:
    outputs, columns = model.matrices()[matrix]
    given = quantized_arguments(dtype, rows, outputs, columns, BITS, GROUP)
    peer = partial(mx.quantized_matmul, *given, group_size=GROUP, bits=BITS)
    return Case(
        f"{model.name} {matrix}, {rows} rows", partial(quantized_matmul, *given), peer, 2 * rows * outputs * columns
    )


def decoding(model: Model, tokens: int, bits: int, dtype: mx.Dtype) -> Case:
    """MLX attends to packed keys by mx.quantized_matmul around a softmax, as mlx-lm does."""
    shape: tuple[Any, ...] = (model.heads, model.kv_heads, model.dim, [tokens], 0, 0)
    q, k, v, _, scale, *_ = decode_arguments(dtype, *shape)
    operations = 4 * model.heads * model.dim * tokens
    name = f"{model.name} decode, {tokens} keys"
    if bits == 16:
        peer: Any = partial(mx.fast.scaled_dot_product_attention, q[:, :, None], k, v, scale=scale)
        return Case(name, partial(decode_attention, *decode_arguments(dtype, *shape)), peer, operations)
    given = packed_arguments(dtype, *shape, bits, GROUP)
    grouped = (scale * q).reshape(1, model.kv_heads, -1, model.dim)

    def packed_peer() -> mx.array:
        scores = mx.quantized_matmul(grouped, *given[1], group_size=GROUP, bits=bits)
        p = mx.softmax(scores, axis=-1, precise=True)
        return mx.quantized_matmul(p, *given[2], transpose=False, group_size=GROUP, bits=bits)

    return Case(f"{name} of {bits} bits", partial(packed_attention, *given), packed_peer, operations)


def prefill(model: Model, tokens: int, dtype: mx.Dtype) -> Case:
    given = flash_arguments(dtype, model.heads, model.kv_heads, model.dim, [(tokens, tokens)], 0)
    q, k, v, _, scale, _ = given
    batch = (q.swapaxes(0, 1)[None], k[None], v[None])
    peer = partial(mx.fast.scaled_dot_product_attention, *batch, scale=scale, mask="causal")
    return Case(f"{model.name} prefill, {tokens} tokens", partial(flash_attention, *given), peer,
                2 * model.heads * model.dim * tokens**2)  # fmt: skip


def cases_of(model: Model, dtype: mx.Dtype, gpu: bool) -> Iterator[Case]:
    for matrix in model.matrices():
        for rows in (1, 2, 4, 8, 16, 512) if gpu else (1,):
            yield product(model, matrix, rows, dtype)
    for rows in () if gpu else (4, 16, 64):
        yield product(model, "o", rows, dtype)
    for tokens in (1024, 8192) if gpu else (1024,):
        for bits in (16, 8, 4):
            yield decoding(model, tokens, bits, dtype)
    for tokens in (512, 4096) if gpu else (256,):
        yield prefill(model, tokens, dtype)


def timed(case: Case, rounds: int) -> Row:
    def score(call: Callable[[], mx.array]) -> Callable[[], float]:
        measure = microseconds(lambda: mx.eval([call() for _ in range(SCORE)]))
        return lambda: measure() / SCORE

    return race(case.name, "µs", score(case.ours), score(case.peer), rounds)


def counted(case: Case) -> dict[str, Any]:
    """What the launches of one call ask for, all together."""
    simulator = Simulator(trace=True, seconds=600)
    case.ours(on=simulator)
    reports = simulator.reports
    sites = [site for r in reports for site in r.sites if site.buffer in {b.name for b in r.buffers if not b.constant}]
    traffic, least, groups = (sum(getattr(r, name) for r in reports) for name in ("traffic", "minimum", "groups"))
    return {
        "case": case.name,
        "kernels": [r.kernel for r in reports],
        "bytes": traffic,
        "bytes over minimum": round(traffic / least, 3),
        "weights or keys over minimum": round(shared_ratio(reports), 3),
        "sectors used": round(sum(s.bytes for s in sites) / (32 * sum(s.sectors for s in sites)), 3),
        "threadgroups": groups,
        "bytes of a threadgroup": round(traffic / groups),
        "collectives of a threadgroup": round(sum(r.collectives for r in reports) / groups),
        "barriers of a threadgroup": round(sum(r.group_barriers for r in reports) / groups),
        "operations for each byte": round(case.operations / least, 2),
        "least µs": {
            c.name: round(bound(c, least, case.operations).seconds * 1e6, 2) for c in CHIPS if c.name in SHOWN
        },
    }


def shared_ratio(reports: Any) -> float:
    """Of the matrix, or of the keys and values, which are all but everything."""
    names = ("weight", "scales", "biases", "k", "v", "k_scales", "k_biases", "v_scales", "v_biases")
    large = [b for b in reports[0].buffers if b.name in names]
    return float(sum(b.read for b in large) / sum(b.unique_read for b in large))


def main() -> None:
    options = arguments(__doc__ or "", rounds=7)
    back_end = choose()
    if back_end in ("metal", "cuda"):
        rows = [timed(case, options.rounds) for model in MODELS for case in cases_of(model, mx.bfloat16, True)]
        report(rows, options.json, back_end=back_end, peer="MLX", mlx=mx.__version__)
        return
    note = "no GPU here: counted in the simulator; times need Metal or CUDA"
    found = [counted(case) for case in cases_of(MODELS[0], mx.float16, False)]
    if options.json:
        print(as_json(found, note))
        return
    for figures in found:
        print(f"{figures.pop('case')}: {', '.join(figures.pop('kernels'))}")
        print("  " + ", ".join(f"{name} {figure:,}" for name, figure in figures.items() if name != "least µs"))
        print("  least µs: " + ", ".join(f"{chip} {least:,}" for chip, least in figures["least µs"].items()))
    print(note)


def as_json(rows: list[dict[str, Any]], note: str) -> str:
    return json.dumps({"rows": rows, "note": note}, indent=1, ensure_ascii=False)


if __name__ == "__main__":
    main()

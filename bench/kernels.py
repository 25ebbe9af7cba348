"""Our kernels of week 2 beside MLX's, on the shapes of Qwen3-0.6B and 4B.

    python bench/kernels.py [--json] [--rounds N]

On a GPU (Metal or CUDA): microseconds of a call in bfloat16, ours against mx.quantized_matmul and
mx.fast.scaled_dot_product_attention, in turns; a ratio below 1 is a lead of ours. Calls are queued by the score, so
that it is the kernel that counts and not the queue.

Elsewhere there is no time to measure. What the simulator counts is printed instead, in float16: bytes that threads
ask for over those that must be moved once, and the same for the large arrays alone (weights, or keys and values); the
kilobytes that are asked for again and again beside them, which a cache can answer; how much of the 32-byte sectors is
used; a threadgroup's share of the work; the least time on some chips by the roofline. FlashAttention is held against
its formula as well.

Two columns of threadgroups are simulated, then one: as each does the same, the second one's share times the others is
what a whole grid counts. Of FlashAttention the heads of one key-value head run, and stand for all.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
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
from tiny_llm.kernels.flash_attention import tiles_of
from tiny_llm.kernels.launch import choose_back_end
from tiny_llm.kernels.roofline import bound
from tiny_llm.kernels.sim import Dispatch, Interface, Report, Simulator, Source

SCORE = 20  # calls in one evaluation
SHOWN = ("M1", "M4 Max", "H200")
GROUP, BITS = 64, 4
LARGE = ("weight", "scales", "biases", "k", "v", "k_scales", "k_biases", "v_scales", "v_biases")


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
    """One comparison: `ours(on)` and `peer()` give the same; `operations` is their arithmetic.

    `times`: how many such calls make up the case. `formula`: the bytes that it should ask for; then its threadgroups
    are unlike and all run.
    """

    name: str
    ours: Callable[..., mx.array]
    peer: Callable[[], mx.array]
    operations: float
    times: int = 1
    formula: int | None = None


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


def prefill(model: Model, tokens: int, dtype: mx.Dtype, times: int = 1) -> Case:
    """`times`: by how much the heads are fewer."""
    given = flash_arguments(dtype, model.heads // times, model.kv_heads // times, model.dim, [(tokens, tokens)], 0)
    q, k, v, _, scale, _ = given
    batch = (q.swapaxes(0, 1)[None], k[None], v[None])
    peer = partial(mx.fast.scaled_dot_product_attention, *batch, scale=scale, mask="causal")
    operations, formula = 2 * model.heads * model.dim * tokens**2, flash_bytes(model, tokens, dtype.size)
    return Case(f"{model.name} prefill, {tokens} tokens", partial(flash_attention, *given), peer, operations, times,
                formula)  # fmt: skip


def flash_bytes(model: Model, tokens: int, width: int) -> int:
    """What FlashAttention moves by its formula (arXiv:2205.14135, theorem 2): q and the result once, and for each head
    and tile of queries the keys and values that the tile sees."""
    seen = sum(first + count for first, count, _, _ in tiles_of([(tokens, tokens)]))
    return 2 * model.heads * model.dim * width * (tokens + seen)


def cases_of(model: Model, dtype: mx.Dtype, gpu: bool) -> Iterator[Case]:
    for matrix in model.matrices():
        for rows in (1, 2, 4, 8, 16, 512) if gpu or matrix == "gate_up" else (1, 2, 4, 8, 16):
            yield product(model, matrix, rows, dtype)
    for tokens in (1024, 8192):
        for bits in (16, 8, 4):
            yield decoding(model, tokens, bits, dtype)
    for tokens in (512, 4096) if gpu else (512,):
        yield prefill(model, tokens, dtype, 1 if gpu else model.kv_heads)


def timed(case: Case, rounds: int) -> Row:
    def score(call: Callable[[], mx.array]) -> Callable[[], float]:
        measure = microseconds(lambda: mx.eval([call() for _ in range(SCORE)]))
        return lambda: measure() / SCORE

    return race(case.name, "µs", score(case.ours), score(case.peer), rounds)


@dataclass
class Part(Simulator):
    """Simulates the first `columns` threadgroups along x of each launch, or all; `widths` says how many each has."""

    columns: int | None = None
    trace: bool = True
    seconds: float = 600
    strict: bool = False  # what other threadgroups would write is missing

    def __post_init__(self) -> None:
        self.widths: list[int] = []

    def launch(
        self, interface: Interface, source: Source, inputs: Sequence[Any], dispatch: Dispatch, verbose: bool = False
    ) -> list[mx.array]:
        (x, *rest), group = dispatch.grid, dispatch.threadgroup[0]
        self.widths.append(-(-x // group))
        cut = x if self.columns is None else min(x, self.columns * group)
        return super().launch(interface, source, inputs, replace(dispatch, grid=(cut, *rest)), verbose)


class Counts(NamedTuple):
    """Of one launch; `asked` and `least` are bytes of device memory, `large` those of the weights, keys and values,
    `arrays` all but the list of tiles, of which every thread asks for the same line."""

    asked: float
    least: float
    large_asked: float
    large_least: float
    arrays: float
    groups: float
    collectives: float
    barriers: float

    @classmethod
    def of(cls, r: Report) -> "Counts":
        large = [b for b in r.buffers if b.name in LARGE]
        of_large = sum(b.read for b in large), sum(b.unique_read for b in large)
        arrays = sum(b.read + b.written for b in r.buffers if b.name != "tiles" and not b.constant)
        return cls(r.traffic, r.minimum, *of_large, arrays, r.groups, r.collectives, r.group_barriers)


def counts_of(case: Case) -> tuple[list[Counts], list[Report]]:
    """Those of each launch of one call, and the reports of what was simulated of them."""
    two = Part(columns=None if case.formula else 2)
    case.ours(on=two)
    if case.formula:
        return [Counts(*(case.times * n for n in Counts.of(r))) for r in two.reports], two.reports
    case.ours(on=(one := Part(columns=1)))
    found = []
    for width, both, first in zip(two.widths, map(Counts.of, two.reports), map(Counts.of, one.reports), strict=True):
        found.append(Counts(*(a + (b - a) * (width - 1) for a, b in zip(first, both, strict=True))))
    return found, two.reports


def counted(case: Case) -> dict[str, Any]:
    """What the launches of one call ask for, all together."""
    launches, reports = counts_of(case)
    total = Counts(*map(sum, zip(*launches, strict=True)))
    bounds = {chip.name: bound(chip, total.least, case.operations) for chip in CHIPS if chip.name in SHOWN}
    sites = [site for r in reports for site in r.sites if site.buffer in {b.name for b in r.buffers if not b.constant}]
    return {
        "case": case.name,
        "kernels": [r.kernel for r in reports],
        "bytes": round(total.asked),
        "bytes over minimum": round(total.asked / total.least, 3),
        "weights or keys over minimum": round(total.large_asked / total.large_least, 3),
        "kilobytes of the rest, each once": round((total.least - total.large_least) / 1e3, 1),
        **({"arrays over formula": round(total.arrays / case.formula, 4)} if case.formula else {}),
        "sectors used": round(sum(s.bytes for s in sites) / (32 * sum(s.sectors for s in sites)), 3),
        "threadgroups": round(total.groups),
        "bytes of a threadgroup": round(total.asked / total.groups),
        "collectives of a threadgroup": round(total.collectives / total.groups),
        "barriers of a threadgroup": round(total.barriers / total.groups),
        "operations for each byte": round(case.operations / total.least, 2),
        "least µs": {chip: round(least.seconds * 1e6, 2) for chip, least in bounds.items()},
        "bound by": {chip: least.by for chip, least in bounds.items()},
    }


def main() -> None:
    options = arguments(__doc__ or "", rounds=7)
    back_end = choose_back_end()
    if back_end in ("metal", "cuda"):
        rows = [timed(case, options.rounds) for model in MODELS for case in cases_of(model, mx.bfloat16, True)]
        report(rows, options.json, back_end=back_end, peer="MLX", mlx=mx.__version__)
        return
    note = "no GPU here: counted in the simulator; times need Metal or CUDA"
    found = (counted(case) for model in MODELS for case in cases_of(model, mx.float16, False))
    if options.json:
        print(as_json(list(found), note))
        return
    for figures in found:
        print(f"{figures.pop('case')}: {', '.join(figures.pop('kernels'))}")
        least, by = figures.pop("least µs"), figures.pop("bound by")
        print("  " + ", ".join(f"{name} {figure:,}" for name, figure in figures.items()))
        print("  least µs: " + ", ".join(f"{chip} {time:,} ({by[chip]})" for chip, time in least.items()))
    print(note)


def as_json(rows: list[dict[str, Any]], note: str) -> str:
    return json.dumps({"rows": rows, "note": note}, indent=1, ensure_ascii=False)


if __name__ == "__main__":
    main()

"""What the kernel simulator costs: compiling a kernel, and a paged decode of 8 heads × 128 over 1,024 tokens.

    python bench/simulator.py [--json] [--rounds N]

The bounds of the project: 300 ms to compile a kernel cold, 5 ms warm, 20 ms for the decode, 200 ms in check mode.
Compiling cold is measured on kernels that no cache has, each round's own; the simulator's runtime (once on a machine)
is apart. Each figure is the least of the rounds: other load on the machine can only add. There is no peer: nothing else
runs Metal on a CPU.
"""

import itertools
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny_llm  # noqa: F401  activates the BLAS  # isort: skip

import mlx.core as mx
import numpy as np

from bench.common import Row, arguments, report
from tiny_llm.kernels.catalog import CATALOG
from tiny_llm.kernels.sim import Simulator, Source, compiler, metal_kernel

HEADS, KV_HEADS, DIM, TOKENS, BLOCK = 8, 2, 128, 1024, 16
PAGED = """
// q (H, D), keys and values (blocks, Hkv, block, D), table (blocks,); one threadgroup of 8 simdgroups for each head
constexpr int SIMDGROUPS = 8, EACH = D / 32;
const uint head = threadgroup_position_in_grid.x, lane = thread_index_in_simdgroup;
const uint simdgroup = simdgroup_index_in_threadgroup;
const int kv_heads = keys_shape[1], block = keys_shape[2], kv_head = head / (q_shape[0] / kv_heads);
threadgroup float tops[SIMDGROUPS], sums[SIMDGROUPS], parts[SIMDGROUPS][D];
float query[EACH], mixed[EACH], top = -INFINITY, sum = 0.0f;
for (int j = 0; j < EACH; j++) {
  query[j] = q[head * D + j * 32 + lane] * scale;
  mixed[j] = 0.0f;
}
for (int position = simdgroup; position < tokens; position += SIMDGROUPS) {
  const int row = ((table[position / block] * kv_heads + kv_head) * block + position % block) * D;
  float score = 0.0f;
  for (int j = 0; j < EACH; j++) {
    score += query[j] * keys[row + j * 32 + lane];
  }
  score = simd_sum(score);
  const float higher = max(top, score), kept = fast::exp(top - higher), weight = fast::exp(score - higher);
  sum = sum * kept + weight;
  for (int j = 0; j < EACH; j++) {
    mixed[j] = mixed[j] * kept + weight * values[row + j * 32 + lane];
  }
  top = higher;
}
if (lane == 0) {
  tops[simdgroup] = top;
  sums[simdgroup] = sum;
}
for (int j = 0; j < EACH; j++) {
  parts[simdgroup][j * 32 + lane] = mixed[j];
}
threadgroup_barrier(mem_flags::mem_threadgroup);
for (int c = thread_index_in_threadgroup; c < D; c += SIMDGROUPS * 32) {
  float highest = -INFINITY, numerator = 0.0f, denominator = 0.0f;
  for (int g = 0; g < SIMDGROUPS; g++) {
    highest = max(highest, tops[g]);
  }
  for (int g = 0; g < SIMDGROUPS; g++) {
    const float factor = fast::exp(tops[g] - highest);
    numerator += factor * parts[g][c];
    denominator += factor * sums[g];
  }
  out[head * D + c] = numerator / denominator;
}
"""


def paged_decode() -> Callable[[Simulator], mx.array]:
    """A launch of PAGED, whose result was compared with numpy's."""
    blocks = TOKENS // BLOCK
    q, keys, values = (
        mx.random.normal(shape, key=mx.random.key(i))
        for i, shape in enumerate([(HEADS, DIM), *[(blocks, KV_HEADS, BLOCK, DIM)] * 2])
    )
    table = mx.random.permutation(blocks, key=mx.random.key(3)).astype(mx.int32)
    kernel = metal_kernel("paged", ["q", "keys", "values", "table", "tokens", "scale"], ["out"], PAGED)

    def launch(simulator: Simulator) -> mx.array:
        return kernel(
            inputs=[q, keys, values, table, TOKENS, DIM**-0.5],
            template=[("D", DIM)],
            grid=(HEADS * 256, 1, 1),
            threadgroup=(256, 1, 1),
            output_shapes=[(HEADS, DIM)],
            output_dtypes=[mx.float32],
            simulator=simulator,
        )[0]

    k, v = (np.array(x[table].swapaxes(0, 1).reshape(KV_HEADS, TOKENS, DIM)) for x in (keys, values))
    k, v = (np.repeat(x, HEADS // KV_HEADS, axis=0) for x in (k, v))
    weights = np.exp(np.einsum("hd,htd->ht", np.array(q), k) * DIM**-0.5)
    expected = np.einsum("ht,htd->hd", weights / weights.sum(1, keepdims=True), v)
    np.testing.assert_allclose(np.array(launch(Simulator(check=True))), expected, atol=1e-5)
    return launch


def milliseconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return (time.perf_counter() - begin) * 1e3


def cold_compile(check: bool) -> Callable[[], float]:
    """The mean over all kernels, each made new by a comment that no cache has seen."""
    numbers = itertools.count()

    def measure() -> float:
        times = []
        for entry in CATALOG.values():
            path = Path(os.environ["TINY_LLM_CACHE"]) / entry.kernel.path.name
            path.write_text(entry.kernel.path.read_text() + f"// {next(numbers)}\n")
            source, compiled = Source.read(path), compiler.compile_kernel

            def timed(*call: object, compiled: Callable[..., Path] = compiled) -> Path:
                begin = time.perf_counter()
                made = compiled(*call)
                times.append((time.perf_counter() - begin) * 1e3)
                return made

            compiler.compile_kernel = timed
            try:
                arguments = entry.examples(mx.float32)[-1]
                entry.run(arguments, Simulator(check=check, replace={entry.kernel.name: path}))
            finally:
                compiler.compile_kernel = compiled
            assert source.body
        return statistics.mean(times)

    return measure


def warm_compile() -> Callable[[], float]:
    """A kernel's whole way but the run: its signature, its C++, the look into the cache, loading the library."""
    entry = CATALOG["rms_norm"]
    arguments = entry.examples(mx.float32)[-1]

    def measure() -> float:
        simulator = Simulator()
        return milliseconds(lambda: entry.run(arguments, simulator)) - simulator.reports[0].seconds * 1e3

    return measure


def rows(rounds: int) -> list[Row]:
    runtime = milliseconds(lambda: compiler.runtime_path())
    headers = milliseconds(lambda: [compiler.prelude(check) for check in (False, True)])
    launch = paged_decode()
    cases = {
        "compile a kernel, cold": cold_compile(False),
        "compile a kernel for check mode, cold": cold_compile(True),
        "compile a kernel, warm": warm_compile(),
        "paged decode": lambda: milliseconds(lambda: launch(Simulator())),
        "paged decode, checked": lambda: milliseconds(lambda: launch(Simulator(check=True))),
        "paged decode, traced": lambda: milliseconds(lambda: launch(Simulator(trace=True))),
    }
    found = {"runtime and headers, once on a machine": runtime + headers}
    found |= {case: min(measure() for _ in range(rounds)) for case, measure in cases.items()}
    return [Row(case, "ms", figure, None, None, None) for case, figure in found.items()]


def main() -> None:
    options = arguments(__doc__ or "", rounds=9)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TINY_LLM_CACHE"] = folder
        report(rows(options.rounds), options.json, compiler=Path(compiler.compiler()).name, machine=platform.machine())


if __name__ == "__main__":
    main()

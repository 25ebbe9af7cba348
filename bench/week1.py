"""The "Measure" tables of week 1: milliseconds for what each chapter builds, beside a bound that no code can beat.

    python bench/week1.py [--chapter 1.1] [--code mine] [--json] [--rounds 3] [--write]

Each figure is the fastest of some rounds in three passes, since other programs can only slow one down. The bound is the
larger of two times: that of the floating-point operations at the speed of a large matrix product here, and that of the
bytes which must be read and written at the speed at which a matrix of 4 MB is read here (from the processor's caches,
as in most of these cases). Both are the speeds of MLX or of the CPU kernels, whichever are faster. "fused" rows are the
engine's fast twins. --code mine measures the files in code/. --write puts the tables into book/src/measured.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import tiny_llm  # noqa: E402, F401  activates the BLAS  # isort: skip

import mlx.core as mx  # noqa: E402

CHAPTERS = ("1.1", "1.2", "1.3", "1.4", "1.5", "1.6", "1.7")
PASSES = 3
TABLES = ROOT / "book" / "src" / "measured"


@dataclass(frozen=True)
class Case:
    """Something to time: it computes with `flops` operations at least and moves `moved` bytes at least."""

    name: str
    call: Callable[[], object]
    flops: float
    moved: float


@dataclass(frozen=True)
class Count:
    """Something that is counted, not timed: `call` gives a number of `unit`, of which `least` are needed."""

    name: str
    call: Callable[[], float]
    least: float
    unit: str


@dataclass(frozen=True)
class Row:
    case: str
    value: float
    bound: float
    unit: str = "milliseconds"


def random(*shape: int) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(sum(shape)))


def tokens(count: int) -> str:
    return f"{count} token{'s' if count > 1 else ''}"


def attention() -> Iterator[Case]:
    from tiny_llm.model import attention, fused

    heads, dim = 4, 64
    for length in (256, 512, 1024, 2048):
        q, k, v = (random(heads, length, dim) for _ in range(3))
        mask = attention.causal_mask(length, length)
        flops, moved = 4 * heads * length**2 * dim, 16 * heads * length * dim
        call = attention.scaled_dot_product_attention
        yield Case(f"{length} tokens", lambda q=q, k=k, v=v, m=mask, c=call: c(q, k, v, 0.125, m), flops, moved)
    rows, twin = q.swapaxes(0, 1), fused.choose_ops("fused").attention
    yield Case(f"{length} tokens, fused", lambda: twin(rows, k, v, 0.125), flops / 2, moved)


def positions() -> Iterator[Case]:
    from tiny_llm.config import RopeConfig
    from tiny_llm.model import fused, rope

    embedding = rope.Rope(RopeConfig(1e6), 128)
    for length in (1, 512):
        x, where = random(length, 24, 128), mx.arange(length)
        rotation = embedding.at(where)
        mx.eval(*rotation[:4])
        yield Case(f"cos and sin, {tokens(length)}", lambda w=where: list(embedding.at(w)[1:3]), 0, length * 512)
        yield Case(f"rotate, {tokens(length)}", lambda x=x, r=rotation: rope.apply_rope(x, r), 0, 2 * x.nbytes)
    twin = mx.compile(lambda x: fused.choose_ops("fused").rope(x, rotation))
    yield Case(f"rotate, {length} tokens, fused", lambda: twin(x), 0, 2 * x.nbytes)


def groups() -> Iterator[Case]:
    from tiny_llm.model import attention, fused

    length, dim = 2048, 128
    q, twin = random(1, 16, dim), fused.choose_ops("fused").attention
    for kv_heads in (16, 8, 1):
        k, v = random(kv_heads, length, dim), random(kv_heads, length, dim)
        flops, moved = 4 * 16 * length * dim, k.nbytes + v.nbytes
        call = attention.causal_attention
        yield Case(f"K/V heads: {kv_heads}", lambda k=k, v=v, c=call: c(q, k, v, 0.088), flops, moved)
        if kv_heads == 8:
            yield Case("K/V heads: 8, fused", lambda k=k, v=v: twin(q, k, v, 0.088), flops, moved)


def operations() -> Iterator[Case]:
    from tiny_llm.model import fused, ops

    x, weight, twin = random(64, 1024), random(1024), fused.choose_ops("fused")
    up, down, gated = {"weight": random(6144, 1024)}, {"weight": random(1024, 3072)}, random(64, 6144)
    halves, compiled = gated[:, :3072], mx.compile(twin.swiglu)
    yield Case("rms_norm", lambda: ops.rms_norm(x, weight, 1e-6), 0, 2 * x.nbytes)
    yield Case("rms_norm, fused", lambda: twin.rms_norm(x, weight, 1e-6), 0, 2 * x.nbytes)
    yield Case("swiglu", lambda: ops.swiglu(gated), 0, 1.5 * gated.nbytes)
    yield Case("swiglu, fused", lambda: compiled(gated), 0, 1.5 * gated.nbytes)
    yield Case("linear, gate and up", lambda: ops.linear(x, up), 2 * 64 * 1024 * 6144, up["weight"].nbytes)
    yield Case("linear, down", lambda: ops.linear(halves, down), 2 * 64 * 1024 * 3072, down["weight"].nbytes)


def forward() -> Iterator[Case]:
    from tiny_llm.cache.recompute import RecomputeCache

    with tempfile.TemporaryDirectory() as folder:
        for name in ("plain", "fused"):
            model = small_model(Path(folder) / name, name)
            size = weight_bytes(model.weights)
            for length in (1, 64):
                row = mx.arange(length)
                call = lambda m=model, t=row: m(t, RecomputeCache(m.config, m.ops))  # noqa: E731
                label = tokens(length) + (", fused" if name == "fused" else "")
                yield Case(label, call, size / 2 * length, size)


def generation() -> Iterator[Case]:
    from tiny_llm.cache.contiguous import ContiguousCache
    from tiny_llm.config import SamplingParams
    from tiny_llm.decode import generate
    from tiny_llm.decode.sampler import Sampler

    def cached(model, prompt: list[int]) -> None:
        cache = ContiguousCache(model.config, model.ops)
        sampler = Sampler([SamplingParams(temperature=0.0)], model.config.vocab_size)
        logits = generate.prefill(model, prompt, cache)
        for _ in generate.generate_tokens(model, logits, cache, sampler, len(prompt), 32):
            pass

    with tempfile.TemporaryDirectory() as folder:
        model = small_model(Path(folder) / "m", "fused")
        size = weight_bytes(model.weights)
        for length in (64, 256):
            prompt = list(range(length))
            naive = sum(length + step for step in range(32)) * size / 2
            call = lambda p=prompt: generate.generate_naive(model, p, 32)  # noqa: E731
            yield Case(f"32 tokens after {length}, naive", call, naive, 32 * size)
            once = (length + 31) * size / 2
            yield Case(f"32 tokens after {length}, cached", lambda p=prompt: cached(model, p), once, 32 * size)


def sampling() -> Iterator[Case]:
    from tiny_llm.config import SamplingParams
    from tiny_llm.decode.sampler import Sampler

    logits = random(1, 151_936) * 3
    kinds = {
        "greedy": SamplingParams(temperature=0),
        "temperature 0.8": SamplingParams(temperature=0.8),
        "top-k 20, top-p 0.95": SamplingParams(temperature=0.6, top_k=20, top_p=0.95),
        "top-p 0.95 alone": SamplingParams(top_p=0.95),
        "min-p 0.1": SamplingParams(min_p=0.1),
    }
    for name, params in kinds.items():
        sampler = Sampler([params], logits.shape[1], seeds=[0])
        yield Case(name, lambda s=sampler: s(logits, [0]).tokens, 0, logits.nbytes)


Makers = Mapping[str, Callable[[], Iterator[Case | Count]]]
MAKERS: Makers = dict(
    zip(CHAPTERS, (attention, positions, groups, operations, forward, generation, sampling), strict=True)
)


def small_model(path: Path, kind: str):
    """4 layers, hidden 256, random, in float32."""
    from bench.decode import SHAPES
    from tests.support import make_model
    from tiny_llm import load
    from tiny_llm.config import EngineConfig

    return load(make_model(path, **SHAPES["small (4 × 256)"]), config=EngineConfig(ops=kind)).model


def weight_bytes(tree: object) -> float:
    """Bytes of all matrices but the embedding table, of which a token reads one row. `tree` as the loader makes it."""
    if isinstance(tree, mx.array):
        return tree.nbytes if tree.ndim == 2 else 0
    if not isinstance(tree, dict | list):  # a Matrix of the CPU kernels, or a DecoderLayer, which has no own bytes
        return getattr(tree, "nbytes", 0)
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return sum(weight_bytes(child) for name, child in items if name != "embed_tokens")


def seconds(call: Callable[[], object], rounds: int, least: float = 0.02) -> float:
    """The fastest of `rounds`, each of at least `least` seconds, after one to warm up."""

    def once() -> float:
        count, begin = 0, time.perf_counter()
        while (spent := time.perf_counter() - begin) < least or not count:
            result = call()
            if result is not None:
                mx.eval(result)
            count += 1
        return spent / count

    once()
    return min(once() for _ in range(rounds))


def machine(rounds: int) -> tuple[float, float]:
    """Return the operations per second of a large float32 product, and the bytes per second of a matrix that is read.

    Each is the faster of MLX and the CPU kernels.
    """
    from tiny_llm.kernels.cpu import build

    a, b, x = random(1024, 1024), random(1024, 1024), random(1024, 1)
    mx.eval(a, b, x)
    product, read = seconds(lambda: a @ b, rounds), seconds(lambda: a @ x, rounds)
    if mx.default_device() == mx.cpu:
        with suppress(build.NoKernelsError):
            module = build.kernels()
            matrix = module.Matrix(module.Arena(), a, None)
            product = min(product, seconds(lambda: matrix.product(b, False), rounds))
            read = min(read, a.nbytes / (1e9 * module.read_speed(a.nbytes)))
    return 2 * 1024**3 / product, a.nbytes / read


def measure(makers: Makers, rounds: int) -> tuple[dict[str, list[Row]], float, float]:
    """The rows of each chapter, and the machine's speeds: of everything the best of some passes over all chapters."""
    seen: list[tuple[float, float]] = []
    best: dict[tuple[str, str], float] = {}
    work: dict[tuple[str, str], Case | Count] = {}
    for _ in range(PASSES):
        for chapter, maker in makers.items():
            seen.append(machine(rounds))
            for case in maker():
                key = chapter, case.name
                work[key] = case
                if isinstance(case, Case):
                    best[key] = min(best.get(key, 1e9), seconds(case.call, rounds))
    speed, bandwidth = map(max, zip(*seen, strict=True))
    rows: dict[str, list[Row]] = {chapter: [] for chapter in makers}
    for (chapter, name), case in work.items():
        if isinstance(case, Count):
            rows[chapter].append(Row(name, case.call(), case.least, case.unit))
            continue
        bound = max(case.flops / speed, case.moved / bandwidth)
        rows[chapter].append(Row(name, best[chapter, name] * 1e3, bound * 1e3))
    return rows, speed, bandwidth


def table(rows: list[Row]) -> str:
    """Markdown with an empty column for the reader."""
    lines = [f"| {rows[0].unit} | your machine | reference | bound |", "| --- | --- | --- | --- |"]
    lines += [f"| {row.case} | | {digits(row.value)} | {digits(row.bound)} |" for row in rows]
    return "\n".join(lines) + "\n"


def digits(value: float) -> str:
    """Two significant digits from 0.001 on."""
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{max(value, 0.001):.2g}"


def options(makers: Makers, about: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chapter", choices=list(makers), help="only this chapter")
    parser.add_argument("--code", choices=("reference", "mine"), default="reference", help="whose files to measure")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each case (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="write the book's tables")
    return parser.parse_args()


def main(makers: Makers, about: str | None) -> None:
    """Measure and print what the command line asks for; also for the other weeks' scripts."""
    given = options(makers, about)
    if given.code == "mine":
        from tiny_llm.course.desk import install

        print(install("mine"))
    chosen = {given.chapter: makers[given.chapter]} if given.chapter else makers
    found, speed, bandwidth = measure(chosen, given.rounds)
    facts = {"gflops": round(speed / 1e9), "gigabytes_per_second": round(bandwidth / 1e9, 1)}
    if given.json:
        print(json.dumps({"chapters": {c: [asdict(row) for row in rows] for c, rows in found.items()}, **facts}))
        return
    for chapter, rows in found.items():
        print(f"{chapter}\n{table(rows)}")
        if given.write:
            TABLES.mkdir(exist_ok=True)
            (TABLES / f"{chapter}.md").write_text(table(rows), encoding="utf-8")
    print(f"a large matrix product: {facts['gflops']} GFLOP/s, a matrix read: {facts['gigabytes_per_second']} GB/s")


if __name__ == "__main__":
    main(MAKERS, __doc__)

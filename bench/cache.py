"""The rotating and the quantized KV cache, in memory and on disk, against mlx-lm's on the same weights and BLAS.

    python bench/cache.py [--json] [--rounds 5]

A random Qwen3 of 4 layers and hidden 256 in float32. Both engines feed the same tokens and must choose the same next
one. tok/s: higher is better; MB and ms: lower. The last rows are why few rows are multiplied with packed keys as they
are: "peer" is the other way, unpacking them block by block. The makers below fill the tables of chapters 2.4 and 2.5.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import tiny_llm  # noqa: E402, F401  activates the BLAS for both  # isort: skip

import mlx.core as mx  # noqa: E402

from bench.common import Row, arguments, microseconds, race, race_many, report  # noqa: E402
from bench.week1 import Case, Count, random, small_model, weight_bytes  # noqa: E402

PROMPT, STEPS = 1500, 32
WINDOW, SINKS = 1024, 4


def prompt(length: int) -> list[int]:
    return [(i * 7919) % 2000 for i in range(length)]


def speed(step: Callable[[list[int]], mx.array], chunks: list[list[int]]) -> tuple[float, float, list[int]]:
    """(prefill tok/s, decode tok/s, tokens) of a function from tokens to the next one's logits."""
    begin = time.perf_counter()
    for chunk in chunks:
        logits = step(chunk)
        mx.eval(logits)
    first, tokens = time.perf_counter(), []
    for _ in range(STEPS):
        tokens.append(int(mx.argmax(logits).item()))
        logits = step(tokens[-1:])
    mx.eval(logits)
    return sum(map(len, chunks)) / (first - begin), STEPS / (time.perf_counter() - first), tokens


def ours(model: Any, make: Callable[..., Any]) -> Callable[[list[int]], mx.array]:
    cache = make(model.config, model.ops)
    return lambda tokens: model(mx.array(tokens), cache, slice(-1, None))[0]


def theirs(model: Any, make: Callable[[], Any]) -> Callable[[list[int]], mx.array]:
    caches = [make() for _ in model.layers]
    return lambda tokens: model(mx.array(tokens)[None], cache=caches)[0, -1]


def kinds() -> dict[str, tuple[Callable[..., Any], Callable[[], Any], int]]:
    """Ours, theirs, and the prompt's length: shorter where it is packed, since mlx-lm's time grows with its square."""
    from mlx_lm.models import cache as peer

    from tiny_llm.cache.contiguous import ContiguousCache
    from tiny_llm.cache.quantized import QuantizedCache
    from tiny_llm.cache.rotating import RotatingCache

    rotating = partial(RotatingCache, window=WINDOW, sinks=SINKS)
    found: dict[str, Any] = {
        "contiguous": (ContiguousCache, peer.KVCache, PROMPT),
        "rotating, 1,024": (rotating, partial(peer.RotatingKVCache, WINDOW, keep=SINKS), WINDOW),
    }
    for bits in (8, 4):
        theirs = partial(peer.QuantizedKVCache, 64, bits)
        found[f"{bits} bits"] = (partial(QuantizedCache, bits=bits), theirs, PROMPT // 4)
    return found


def speeds(model: Any, other: Any, rounds: int) -> list[Row]:
    """Prefill and decode with each kind of cache."""
    rows = []
    for name, (mine, peer, length) in kinds().items():
        chunks = [prompt(length)]
        run, rival = partial(turn, ours, model, mine, chunks), partial(turn, theirs, other, peer, chunks)
        assert run()[2] == rival()[2], f"{name}: the engines disagree"
        cases = [(f"prefill, {name}, {length} tokens", "tok/s"), (f"decode, {name}", "tok/s")]
        rows += race_many(cases, lambda r=run: r()[:2], lambda r=rival: r()[:2], rounds)
    return rows


def turn(engine: Callable[..., Any], model: Any, make: Callable[..., Any], chunks: list[list[int]]) -> Any:
    """`speed` on a new cache."""
    return speed(engine(model, make), chunks)


def disk(model: Any, other: Any, folder: Path, rounds: int) -> list[Row]:
    """Writing and reading the cache of a prompt; ours is checked against its digest and written through."""
    from mlx_lm.models import cache as peer

    from tiny_llm.cache import disk
    from tiny_llm.cache.contiguous import ContiguousCache

    tokens = prompt(PROMPT)
    cache, caches = ContiguousCache(model.config, model.ops), [peer.KVCache() for _ in other.layers]
    mx.eval(model(mx.array(tokens), cache, slice(-1, None)), other(mx.array(tokens)[None], cache=caches))
    mine, others = folder / "ours.safetensors", str(folder / "theirs.safetensors")

    def load() -> None:
        disk.load(mine, ContiguousCache(model.config, model.ops), "model")

    def peer_load() -> None:
        mx.eval([each.state for each in peer.load_prompt_cache(others)])

    def milliseconds(call: Callable[[], object]) -> Callable[[], float]:
        return lambda: microseconds(call)() / 1e3

    save, peer_save = (
        partial(disk.save, mine, cache, tokens, "model"),
        partial(peer.save_prompt_cache, others, caches),
    )
    return [
        race(f"save {PROMPT} tokens", "ms", milliseconds(save), milliseconds(peer_save), rounds),
        race(f"load {PROMPT} tokens", "ms", milliseconds(load), milliseconds(peer_load), rounds),
    ]


def few_rows(rounds: int) -> list[Row]:
    """Attention over 4,096 packed slots, 8 K/V heads of 128, two query heads on each."""
    from tiny_llm.model.cached_attention import Packed, packed_attention, packed_attention_product

    rows = []
    for bits in (8, 4):
        k, v = (Packed(*mx.quantize(random(8, 4096, 128), group_size=64, bits=bits)) for _ in range(2))
        for count in (1, 4, 8):
            q = random(count, 16, 128)
            calls = [
                microseconds(lambda a=attend, q=q, k=k, v=v: mx.eval(a(q, k, v, 0.1)))
                for attend in (packed_attention_product, packed_attention)
            ]
            rows.append(race(f"packed attention, {bits} bits, {2 * count} rows", "µs", *calls, rounds))
    return rows


def decoding() -> Iterator[Case]:
    """Chapter 2.4: one step with a cache, and the same token without one."""
    from tiny_llm.cache.contiguous import ContiguousCache
    from tiny_llm.cache.recompute import RecomputeCache

    with tempfile.TemporaryDirectory() as folder:
        model = small_model(Path(folder) / "m", "fused")
        weights, token = weight_bytes(model.weights), mx.array([5])
        for length in (64, 512, 2048):
            cache = ContiguousCache(model.config, model.ops)
            text = mx.array(prompt(length))
            mx.eval(model(text, cache, slice(-1, None)))
            slot = 2 * 4 * 2 * 64 * 4  # K and V, layers, heads, width, bytes

            def step(cache: Any = cache) -> None:
                mx.eval(model(token, cache))
                cache.trim(1)

            def whole(text: mx.array = text) -> None:
                mx.eval(model(text, RecomputeCache(model.config, model.ops), slice(-1, None)))

            yield Case(f"token {length + 1}, cached", step, weights / 2, weights + slot * length)
            yield Case(f"token {length + 1}, all again", whole, weights / 2 * length, weights)


def costs() -> Iterator[Count]:
    """Chapter 2.5: megabytes of each kind of cache; the bound are the bytes of what a query sees."""
    with tempfile.TemporaryDirectory() as folder:
        model = small_model(Path(folder) / "m", "fused")
        numbers = 2 * 4 * 2 * 64  # K and V, layers, heads, width
        for length in (500, 4000):
            for name, (make, _, _) in kinds().items():
                cache = make(model.config, model.ops)
                for begin in range(0, length, 500):
                    mx.eval(model(mx.array(prompt(length)[begin : begin + 500]), cache, slice(-1, None)))
                seen = min(length, WINDOW) if name.startswith("rotating") else length
                each = {"8 bits": 1 + 8 / 64, "4 bits": 1 / 2 + 8 / 64}.get(name, 4)  # a scale and a bias for 64
                call = lambda c=cache: c.nbytes / 1e6  # noqa: E731
                yield Count(f"{name}, {length:,} tokens", call, seen * numbers * each / 1e6, "MB")


def main() -> None:
    options = arguments(__doc__, rounds=5)
    from mlx_lm.utils import load_model

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        model = small_model(path, "fused")
        other = load_model(path)[0]
        rows = speeds(model, other, options.rounds)
        rows += disk(model, other, Path(folder), options.rounds)
    rows += few_rows(options.rounds)
    report(rows, options.json, mlx=mx.__version__, device=str(mx.default_device()))


if __name__ == "__main__":
    main()

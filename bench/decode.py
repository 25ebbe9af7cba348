"""Decode and prefill speed, memory and waiting times against mlx-lm with the same BLAS, on random Qwen3 models.

    python bench/decode.py [--json] [--rounds 5]

Both write greedily from the same weights in float32, and must write the same. tok/s: higher is better; s and MB:
lower. "from nothing" times a fresh process from its start to the first token.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny_llm  # noqa: F401  activates the BLAS for both  # isort: skip

import mlx.core as mx
from mlx_lm.generate import generate_step
from mlx_lm.utils import load_model

from bench.common import Row, arguments, race, race_many, report
from tests.support import make_model
from tiny_llm import SamplingParams, _blas, load
from tiny_llm.engine.llm import LLM

SHAPES = {
    "small (4 × 256)": {
        "num_hidden_layers": 4,
        "hidden_size": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "intermediate_size": 768,
        "vocab_size": 2048,
    },
    "large (16 × 1024)": {
        "num_hidden_layers": 16,
        "hidden_size": 1024,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 3072,
        "vocab_size": 16384,
    },
}
TOKENS = {"small (4 × 256)": 64, "large (16 × 1024)": 16}
OURS_FROM_NOTHING = """
import sys; from tiny_llm import load, SamplingParams
from tiny_llm.config import EngineConfig
llm = load(sys.argv[1]); next(llm.stream([7] * int(sys.argv[2]), SamplingParams(temperature=0.0, max_tokens=2)))
"""
PEER_FROM_NOTHING = """
import sys; from tiny_llm import _blas; import mlx.core as mx
from mlx_lm import load; from mlx_lm.generate import generate_step
model, _ = load(sys.argv[1]); next(generate_step(mx.array([7] * int(sys.argv[2])), model, max_tokens=2))
"""
PEAK = "\nimport mlx.core as mx; print(mx.get_peak_memory() / 1e6)"


def ours(llm: LLM, prompt: list[int], count: int) -> tuple[list[int], float, float]:
    """(tokens, prefill tok/s, decode tok/s) of an engine that has nothing cached."""
    llm.forget()
    answer = llm.generate(prompt, SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True))
    return answer.tokens, answer.stats.prefill_tps, answer.stats.decode_tps


def peer(model, prompt: list[int], count: int) -> tuple[list[int], float, float]:
    begin, first, tokens = time.perf_counter(), 0.0, []
    for token, _ in generate_step(mx.array(prompt), model, max_tokens=count):
        tokens.append(int(token))
        first = first or time.perf_counter()
    return tokens, len(prompt) / (first - begin), (count - 1) / (time.perf_counter() - first)


def seconds(*command: str) -> Callable[[], float]:
    def run() -> float:
        begin = time.perf_counter()
        subprocess.run([sys.executable, *command], check=True, capture_output=True)
        return time.perf_counter() - begin

    return run


def megabytes(script: str, path: Path, length: int) -> Callable[[], float]:
    def run() -> float:
        command = [sys.executable, "-c", script + PEAK, str(path), str(length)]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    return run


def speeds(name: str, path: Path, length: int, rounds: int) -> list[Row]:
    """Prefill and decode of one model at one context."""
    llm, model = load(path), load_model(path)[0]
    prompt = [(i * 7919) % 2000 for i in range(length)]
    count = TOKENS[name]
    mine, theirs = ours(llm, prompt, count)[0], peer(model, prompt, count)[0]
    assert mine == theirs, f"{name}, context {length}: the engines disagree"
    case = f"{name}, context {length}"
    cases = [(f"prefill {case}", "tok/s"), (f"decode {case}", "tok/s")]
    return race_many(cases, lambda: ours(llm, prompt, count)[1:], lambda: peer(model, prompt, count)[1:], rounds)


def main() -> None:
    options = arguments(__doc__, rounds=5)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        paths = {
            name: make_model(Path(folder) / name[:5], max_position_embeddings=4096, tie_word_embeddings=True, **shape)
            for name, shape in SHAPES.items()
        }
        for name, path in paths.items():
            for length in (64, 2048):
                heavy = length == 2048 and name.startswith("large")  # half a minute a turn
                rows += speeds(name, path, length, 3 if heavy else options.rounds)
                scripts = (megabytes(script, path, length) for script in (OURS_FROM_NOTHING, PEER_FROM_NOTHING))
                rows.append(race(f"peak memory {name}, context {length}", "MB", *scripts, rounds=2, warm=False))
        few = max(3, options.rounds // 2)
        small = str(paths["small (4 × 256)"])
        started = (seconds("-c", script, small, "64") for script in (OURS_FROM_NOTHING, PEER_FROM_NOTHING))
        rows.append(race("first token from nothing, small", "s", *started, few))
        rows.append(race("import", "s", seconds("-c", "import tiny_llm"), seconds("-c", "import mlx_lm"), few))
        help_of = (seconds("-m", module, "--help") for module in ("tiny_llm", "mlx_lm.generate"))
        rows.append(race("--help", "s", *help_of, few))
    blas = _blas.status()
    report(
        rows, options.json, mlx=mx.__version__, device=str(mx.default_device()), blas=blas.name, threads=blas.threads
    )


if __name__ == "__main__":
    main()

"""What each choice of the CPU path gives: the engine with one of them taken back, against the engine as it is.

    python bench/levers.py [--json] [--rounds 5]

`ours` is the engine, `peer` the engine without that one lever; a ratio above 1 says how much it gives.
"""

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny_llm  # noqa: F401  activates the BLAS  # isort: skip

import mlx.core as mx

from bench.common import arguments, race_many, report
from bench.decode import SHAPES
from tests.support import make_model
from tiny_llm import load
from tiny_llm.cache.contiguous import ContiguousCache
from tiny_llm.config import SamplingParams
from tiny_llm.decode import generate
from tiny_llm.decode.sampler import Sampler
from tiny_llm.model import fused, ops
from tiny_llm.model.loader import load_weights
from tiny_llm.model.qwen3 import Qwen3

PROMPTS, TOKENS = {"small (4 × 256)": 1024, "large (16 × 1024)": 128}, 16
WITHOUT = {
    "layer compiled in two halves": {"compile": ops.PLAIN.compile},
    "matrices by columns": {},
    "attention in tiles, vectorised exp": {"attention": fused.attention_gpu},
    "SwiGLU on a vectorised exp": {"swiglu": ops.swiglu},
    "cos and sin once a step": {"rope": fused.rope_gpu},
    "all of these": {
        "compile": ops.PLAIN.compile,
        "attention": fused.attention_gpu,
        "swiglu": ops.swiglu,
        "rope": fused.rope_gpu,
    },
}


def run(model: Qwen3, length: int) -> tuple[float, float]:
    """(prefill, decode) in tok/s, for a prompt of `length` tokens."""
    prompt = [(i * 7919) % 2000 for i in range(length)]
    cache = ContiguousCache(model.config, model.ops)
    begin = time.perf_counter()
    logits = generate.prefill(model, prompt, cache)
    mx.eval(logits)
    filled = time.perf_counter()
    sampler = Sampler([SamplingParams(temperature=0.0)], model.config.vocab_size)
    for _ in generate.generate_tokens(model, logits, cache, sampler, length, TOKENS):
        pass
    return length / (filled - begin), TOKENS / (time.perf_counter() - filled)


def main() -> None:
    options = arguments(__doc__, rounds=5)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, shape in SHAPES.items():
            path = make_model(Path(folder) / name[:5], max_position_embeddings=4096, **shape)
            model = load(path).model
            by_rows = load_weights(path, model.config, mx.float32)
            for lever, replaced in WITHOUT.items():
                order = by_rows if lever in ("matrices by columns", "all of these") else model.weights
                without = Qwen3(model.config, order, model.ops._replace(**replaced))
                cases = [(f"{phase}, {name.split()[0]}: {lever}", "tok/s") for phase in ("prefill", "decode")]
                engines = [lambda m=m, n=PROMPTS[name]: run(m, n) for m in (model, without)]
                rows += race_many(cases, *engines, options.rounds)
    report(rows, options.json, prompts=PROMPTS, tokens=TOKENS)


if __name__ == "__main__":
    main()

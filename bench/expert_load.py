"""Measure how evenly a model's experts are used on the pocket model's lessons: variation and entropy of each layer.

    python bench/expert_load.py [--json] [MODEL …]

MODEL is a directory or an alias, pocket-moe if none is given. The lessons come from a seed that training does not use.
Variation is the standard deviation of the experts' counts over their mean, and 0 for an even load. An expert is idle if
it gets less than a tenth of an even share.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.common import Row, report
from tiny_llm.model import expert_load, hub
from tiny_llm.model.tokenizer import Tokenizer
from tiny_llm.pocket.lessons.dialogue import encode_turns
from tiny_llm.pocket.lessons.mix import EVERYTHING
from tiny_llm.views import record
from tiny_llm.views.experts import record_routing

SEED, LESSONS = 987_654, 60


def lesson_tokens(tokenizer: Tokenizer) -> list[int]:
    """Return the tokens of LESSONS lessons, one after the other."""

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text)

    tokens: list[int] = []
    for index in range(LESSONS):
        for dialogue in EVERYTHING.lesson(SEED, index):
            for turn in encode_turns(dialogue, encode):
                tokens += turn[0]
    return tokens


def rows_of(name: str) -> list[Row]:
    """Measure one model."""
    path = hub.resolve(name)
    tokens = lesson_tokens(Tokenizer.from_dir(path))[:4000]
    found = record_routing(record.load(path), tokens)
    rows = []
    for routing in found:
        counts = routing.counts
        idle = int((counts < 0.1 * counts.mean()).sum())
        case = f"{path.name}, layer {routing.layer}"
        rows.append(Row(f"{case}: variation", "", expert_load.variation(counts), None, None, None))
        rows.append(Row(f"{case}: entropy", "", expert_load.entropy(counts), None, None, None))
        rows.append(Row(f"{case}: idle experts", "", idle, None, None, None))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", default=["pocket-moe"])
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    options = parser.parse_args()
    report([row for name in options.models for row in rows_of(name)], options.json, lessons=LESSONS, seed=SEED)


if __name__ == "__main__":
    main()

"""Racing this engine against a peer in one run, turn by turn, so that the machine's moods hit both alike."""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Row:
    """Medians of both sides; `ratio` is ours / peer, the median over the rounds, and `spread` its interquartile range.

    Whether a high ratio is good depends on what is measured: tok/s yes, time and memory no.
    """

    case: str
    ours: float
    peer: float | None
    ratio: float | None
    spread: float | None


def race(case: str, unit: str, ours: Callable[[], float], peer: Callable[[], float], rounds: int = 7) -> Row:
    """Run both in turns, after one round to warm up. Each returns its own figure, in `unit`."""
    return race_many([(case, unit)], lambda: (ours(),), lambda: (peer(),), rounds)[0]


def race_many(
    cases: Sequence[tuple[str, str]],
    ours: Callable[[], Sequence[float]],
    peer: Callable[[], Sequence[float]],
    rounds: int = 7,
) -> list[Row]:
    """The same for runs that give several figures at once; `cases` names each and its unit."""
    ours(), peer()
    mine, theirs = [], []
    for i in range(rounds):
        for engine, figures in ((ours, mine), (peer, theirs))[:: -1 if i % 2 else 1]:
            figures.append(engine())
    return [_row(case, unit, a, b) for (case, unit), a, b in zip(cases, zip(*mine), zip(*theirs), strict=True)]


def _row(case: str, unit: str, ours: Sequence[float], peer: Sequence[float]) -> Row:
    ratios = [a / b for a, b in zip(ours, peer, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    return Row(case, unit, statistics.median(ours), statistics.median(peer), statistics.median(ratios), high - low)


def arguments(description: str, rounds: int) -> argparse.Namespace:
    """The options that every bench script has: `json` and `rounds`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--rounds", type=int, default=rounds, help="measurements of each side (default: %(default)s)")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error(f"--rounds: expected at least 2, found {options.rounds}")
    return options

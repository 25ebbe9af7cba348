"""Racing this engine against a peer in one run, turn by turn, so that the machine's moods hit both alike."""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """Medians of both sides; `ratio` is ours / peer, the median over the rounds, and `spread` its interquartile range.

    Whether a high ratio is good depends on the unit: tok/s yes, time and memory no. None where there is no peer.
    `target` says what the figures are to reach, where something was promised.
    """

    case: str
    unit: str
    ours: float
    peer: float | None
    ratio: float | None
    spread: float | None
    target: str | None = None


def race(
    case: str,
    unit: str,
    ours: Callable[[], float],
    peer: Callable[[], float] | None = None,
    rounds: int = 7,
    warm: bool = True,
) -> Row:
    """Run both in turns, after one round to `warm` up. Each returns its own figure, in `unit`."""
    if peer is None:
        ours()
        return Row(case, unit, statistics.median(ours() for _ in range(rounds)), None, None, None)
    return race_many([(case, unit)], lambda: (ours(),), lambda: (peer(),), rounds, warm)[0]


def race_many(
    cases: Sequence[tuple[str, str]],
    ours: Callable[[], Sequence[float]],
    peer: Callable[[], Sequence[float]],
    rounds: int = 7,
    warm: bool = True,
) -> list[Row]:
    """The same for runs that give several figures at once; `cases` names each and its unit."""
    if warm:
        ours(), peer()
    mine, theirs = [], []
    for i in range(rounds):
        for engine, figures in ((ours, mine), (peer, theirs))[:: -1 if i % 2 else 1]:
            figures.append(engine())
    figures_of = zip(cases, zip(*mine, strict=True), zip(*theirs, strict=True), strict=True)
    return [paired(case, unit, a, b) for (case, unit), a, b in figures_of]


def paired(case: str, unit: str, ours: Sequence[float], peer: Sequence[float], target: str | None = None) -> Row:
    """Make the row of figures that both sides took in the same rounds."""
    ratios = [a / b for a, b in zip(ours, peer, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
    ratio = statistics.median(ratios)
    return Row(case, unit, statistics.median(ours), statistics.median(peer), ratio, high - low, target)


def microseconds(call: Callable[[], object], least: float = 0.01) -> Callable[[], float]:
    """A figure for `race`: the mean time of one call, which does its work to the end, over `least` seconds of calls."""

    def measure() -> float:
        count, begin = 0, time.perf_counter()
        while (spent := time.perf_counter() - begin) < least or not count:
            call()
            count += 1
        return spent / count * 1e6

    return measure


def report(rows: Sequence[Row], as_json: bool, **facts: object) -> None:
    """Print {"rows": [{"case", "unit", "ours", "peer", "ratio", "spread", "target"}], facts…}, or a table and facts."""
    if as_json:
        print(json.dumps({"rows": [asdict(row) for row in rows], **facts}, indent=1, ensure_ascii=False))
        return
    width = max((len(row.case) for row in rows), default=4)
    targets = "  target" if any(row.target for row in rows) else ""
    print(f"{'case':{width}} {'unit':>6} {'ours':>11} {'peer':>11} {'ours/peer':>9} {'spread':>7}{targets}")
    for row in rows:
        ours, peer, ratio, spread = (_digits(x, row.unit) for x in (row.ours, row.peer, row.ratio, row.spread))
        line = f"{row.case:{width}} {row.unit:>6} {ours:>11} {peer:>11} {ratio:>9} {spread:>7}  {row.target or ''}"
        print(line.rstrip())
    print(", ".join(f"{name}: {value}" for name, value in facts.items()))


def _digits(figure: float | None, unit: str) -> str:
    if figure is None:
        return "-"
    if 0 < abs(figure) < 0.001:
        return f"{figure:.1e}"
    return f"{figure:.{4 if unit == 'ppl' else 2}f}"


def arguments(
    description: str, rounds: int, folders: Sequence[str] = (), **choices: Sequence[str]
) -> argparse.Namespace:
    """The options that every bench script has, `json` and `rounds`, and lists of `choices`, all if not given.

    Each of `folders` is an option that names one.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--rounds", type=int, default=rounds, help="measurements of each side (default: %(default)s)")
    for name, known in choices.items():
        parser.add_argument(f"--{name}", nargs="+", choices=known, default=known)
    for name in folders:
        parser.add_argument(f"--{name}", type=Path)
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error(f"--rounds: expected at least 2, found {options.rounds}")
    return options

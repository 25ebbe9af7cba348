"""The "Measure" tables of week 4.

    python bench/week4.py [--chapter 4.3] [--code mine] [--json] [--write]

As bench/week1.py does it. 4.3 reads quantiles from a histogram's buckets, as Prometheus does; the bound is the exact
quantile. The times are those of 300 requests on the simulated clock of week 3, so they are the same on every machine.
"""

import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench.week1 import Count, Makers, main  # noqa: E402
from bench.week3 import MS, ask, serve  # noqa: E402

FINE = tuple(0.004 * 1.15**power for power in range(64))  # from 4 ms to 26 s, each bound 15 % above the last


def observing() -> Iterator[Count]:
    """Quantiles of the times to first token and between tokens, from vLLM's buckets and from finer ones."""
    from tiny_llm.server import metrics  # not before the learner's files are in place

    rng = Random(4)
    now, requests = 0.0, []
    for i in range(300):
        now += rng.expovariate(5)  # five requests a second
        requests.append(ask(i, rng.choice((20, 60, 800)), rng.randint(10, 60), now))
    answers = serve(requests)
    gaps = [gap for answer in answers for gap in answer.gaps]
    firsts = [answer.first for answer in answers]
    for name, values, bounds in (
        ("between tokens", gaps, metrics.NEXT_TOKEN),
        ("first token", firsts, metrics.FIRST_TOKEN),
        ("between tokens, 64 buckets", gaps, FINE),
        ("first token, 64 buckets", firsts, FINE),
    ):
        for share in (0.5, 0.99):
            exact = float(np.quantile(values, share, method="inverted_cdf"))
            case = f"{name}, p{share * 100:g}"
            yield Count(case, lambda v=values, b=bounds, s=share: from_buckets(v, b, s) * 1e3, exact * 1e3, MS)


def from_buckets(values: Sequence[float], bounds: Sequence[float], share: float) -> float:
    """Return what Prometheus' histogram_quantile does: the place in the bucket, as if its values were spread evenly."""
    from tiny_llm.server.metrics import Histogram

    histogram = Histogram(bounds)
    for value in values:
        histogram.observe(value)
    found = [(float(name), count) for name, count in histogram.cumulative()]
    rank = share * found[-1][1]
    for (low, before), (high, count) in pairwise([(0.0, 0.0), *found]):
        if count >= rank:
            return low + (high - low) * (rank - before) / (count - before) if high < float("inf") else low
    raise AssertionError("the last bucket has all values")


MAKERS: Makers = {"4.3": observing}


if __name__ == "__main__":
    main(MAKERS, __doc__)

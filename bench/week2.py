"""The "Measure" tables of week 2: what each chapter builds, beside a bound that no code can beat.

    python bench/week2.py [--chapter 2.2] [--code mine] [--json] [--rounds 3] [--write]

As bench/week1.py does it. Kernels are counted in the simulator where there is no GPU: the bytes that they ask device
memory for, beside those that must be moved; a chip's time follows from its bandwidth.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import tiny_llm  # noqa: E402, F401  activates the BLAS  # isort: skip

import mlx.core as mx  # noqa: E402

from bench.week1 import Count, Makers, main  # noqa: E402


def traffic(name: str, launch: Callable[..., object], *arguments: object) -> Count:
    """Kilobytes that a launch of `launch(*arguments, on=…)` asks device memory for, counted in the simulator."""
    from tiny_llm.kernels.sim import Simulator

    simulator = Simulator(check=True)
    launch(*arguments, on=simulator)
    report = simulator.reports[-1]
    return Count(name, lambda: report.traffic / 1e3, report.minimum / 1e3, "kilobytes")


def first_kernel() -> Iterator[Count]:
    from tiny_llm import kernels

    x, y = mx.ones(100_000), mx.ones(100_000)
    yield traffic("axpby, 100,000 numbers", kernels.axpby, x, y, 2.0, 0.5)


MAKERS: Makers = {"2.2": first_kernel}


if __name__ == "__main__":
    main(MAKERS, __doc__)

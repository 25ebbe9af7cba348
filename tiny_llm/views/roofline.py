"""Kernels on a chip's roofline: where memory and where arithmetic sets their time. (doi:10.1145/1498765.1498785)"""

from collections.abc import Sequence
from math import floor, log10
from typing import NamedTuple

import mlx.core as mx

from tiny_llm.kernels.catalog import CATALOG
from tiny_llm.kernels.chips import CHIPS, Chip
from tiny_llm.kernels.sim import Simulator
from tiny_llm.views.svg import AMBER, BLUE, GREY, RED, Drawing, number

LEFT, TOP, WIDTH, HEIGHT = 70, 30, 380, 230


class Point(NamedTuple):
    """One launch on typical inputs: its arithmetic, the least bytes it could move, and those that it asked for."""

    kernel: str
    operations: float
    least: int
    asked: int


def chip_of(name: str) -> Chip:
    """Raises ValueError for a chip without a figure for its arithmetic, or an unknown one."""
    known = [chip.name for chip in CHIPS if chip.teraflops]
    found = next((chip for chip in CHIPS if chip.name.lower() == name.lower() and chip.teraflops), None)
    if found is None:
        raise ValueError(f"chip: expected one of {', '.join(known)}, found {name!r}")
    return found


def measure(names: Sequence[str] = ()) -> list[Point]:
    """Run kernels in the simulator, all that compute something if none is named, and count. Raises ValueError for
    another name."""
    points, known = [], [name for name, entry in CATALOG.items() if entry.operations]
    for name in names or known:
        if name not in known:
            raise ValueError(f"kernel: expected one of {', '.join(known)}, found {name!r}")
        entry, simulator = CATALOG[name], Simulator(check=True)
        arguments = entry.typical(mx.float32)
        entry.run(arguments, simulator)
        report = simulator.reports[0]
        points.append(Point(name, entry.operations * arguments[0].size, report.minimum, report.traffic))
    return points


def draw(chip: Chip, points: Sequence[Point], name: str = "kernels-roofline") -> Drawing:
    """Operations per second that are possible, over operations for each byte, both logarithmic.

    A line from a point to the left ends where the kernel lies with the bytes that it asked for; caches may answer some
    of them.
    """
    top, speed = chip.teraflops or 1.0, chip.bandwidth / 1e3
    intensity = {p.kernel: (p.operations / p.least, p.operations / p.asked) for p in points}
    low = floor(log10(min(0.1, *(asked for _, asked in intensity.values()))))
    high = max(3.0, log10(max(10 * top / speed, *(least for least, _ in intensity.values()))))
    floor_of_speed = log10(speed * 10**low)

    def place(x: float) -> tuple[float, float]:
        y = log10(min(top, speed * x))
        share = (y - floor_of_speed) / (log10(top) - floor_of_speed)
        return LEFT + WIDTH * (log10(x) - low) / (high - low), TOP + HEIGHT * (1 - 0.92 * share)

    drawing = Drawing(name, LEFT + WIDTH + 230, TOP + HEIGHT + 46, f"Kernels on the roofline of {chip.name}",
                      describe_points(chip, points))  # fmt: skip
    drawing.line([(LEFT, TOP), (LEFT, TOP + HEIGHT), (LEFT + WIDTH, TOP + HEIGHT)], GREY)
    for power in range(low, int(high) + 1):
        drawing.text(place(10.0**power)[0], TOP + HEIGHT + 14, number(10.0**power), 11, colour=GREY)
    drawing.text(LEFT + WIDTH / 2, TOP + HEIGHT + 34, "operations for each byte", 11, colour=GREY)
    drawing.line([place(10.0**low), place(top / speed), place(10.0**high)], BLUE, 2.5)
    drawing.text(LEFT, TOP - 14, f"{chip.name}: {chip.bandwidth:g} GB/s, {chip.teraflops:g} TFLOP/s", 12, "start")
    ordered = sorted(points, key=lambda p: -p.operations / p.least)
    for row, point in enumerate(ordered):
        (least, asked), y = intensity[point.kernel], TOP + 8 + 16 * row
        drawing.line([place(least), place(asked)], RED, 2)
        drawing.add("circle", cx=place(least)[0], cy=place(least)[1], r=4.5, fill=AMBER, stroke="currentColor",
                    stroke_width=0.7, tip=f"{point.kernel}: {number(least)} operations for each byte")  # fmt: skip
        drawing.text(LEFT + WIDTH + 24, y, point.kernel, 11, "start")
        drawing.text(LEFT + WIDTH + 222, y, number(least), 11, "end", GREY)
    return drawing


def describe_points(chip: Chip, points: Sequence[Point]) -> str:
    balance = chip.balance or 0.0
    bound = {p.kernel: "arithmetic" if p.operations / p.least > balance else "memory" for p in points}
    rows = ", ".join(
        f"{p.kernel} {number(p.operations / p.least)} (bound by {bound[p.kernel]}, asks for "
        f"{number(p.asked / p.least)} times the least bytes)"
        for p in points
    )
    return f"{chip.name} has {number(balance)} operations of time for each byte. Operations for each byte: {rows}."

"""Each barrier of each kernel is needed: without it check mode finds a race; and so it does with a weaker one."""

import re

import mlx.core as mx
import pytest

from tiny_llm.kernels.catalog import CATALOG
from tiny_llm.kernels.sim import KernelError, Simulator, Source

BARRIER = re.compile(r"(threadgroup|simdgroup)_barrier\(mem_flags::mem_threadgroup\);")
WEAKER = {
    "removed": "",
    "of one simdgroup": "simdgroup_barrier(mem_flags::mem_threadgroup);",
    "of device memory": "threadgroup_barrier(mem_flags::mem_device);",
}
PLACES = [
    (name, number, weaker)
    for name, entry in CATALOG.items()
    for number, barrier in enumerate(BARRIER.finditer(entry.kernel.path.read_text()))
    for weaker in (WEAKER if barrier[1] == "threadgroup" else ["removed"])
]


def test_there_are_barriers() -> None:
    assert len(PLACES) >= 30


def mutant(name: str, number: int, weaker: str) -> Source:
    """A kernel with one of its barriers replaced."""
    path = CATALOG[name].kernel.path
    text = path.read_text()
    place = list(BARRIER.finditer(text))[number]
    return Source.parse(text[: place.start()] + WEAKER[weaker] + text[place.end() :], path)


@pytest.mark.parametrize(("name", "number", "weaker"), PLACES)
def test_a_weaker_barrier_is_found(name: str, number: int, weaker: str) -> None:
    entry = CATALOG[name]
    text = entry.kernel.path.read_text()
    place = list(BARRIER.finditer(text))[number]
    line = text[: place.start()].count("\n") + 1
    with pytest.raises(KernelError) as caught:
        entry.run(entry.examples(mx.float32)[0], Simulator(check=True, replace={name: mutant(name, number, weaker)}))
    races = [finding for finding in caught.value.findings if finding.kind == "race"]
    assert races
    assert all(finding.file == f"{name}.metal" for finding in races)
    assert any(lines_of_code(text, line, at) <= 12 for finding in races for at in (finding.line, finding.other_line))


def lines_of_code(text: str, one: int, other: int) -> int:
    """How far apart two lines are, remarks left out."""
    between = text.splitlines()[min(one, other) : max(one, other)]
    return sum(bool(line.strip()) and not line.lstrip().startswith("//") for line in between)

"""Pictures of a cache: their numbers are the memory model's, their rings those of the cache itself."""

import re
import xml.dom.minidom
from itertools import pairwise
from pathlib import Path

import mlx.core as mx
import pytest

from tests.cache.kinds import CONFIG, inputs, shape, step
from tiny_llm.cache.contiguous import ContiguousCache
from tiny_llm.cache.quantized import QuantizedCache
from tiny_llm.cache.rotating import RotatingCache
from tiny_llm.cache.rotating_quantized import RotatingQuantizedCache
from tiny_llm.cli import main
from tiny_llm.model.ops import PLAIN
from tiny_llm.views import kv

MAKERS = [
    lambda: ContiguousCache(CONFIG, PLAIN),
    lambda: QuantizedCache(CONFIG, PLAIN, 8),
    lambda: QuantizedCache(CONFIG, PLAIN, 4),
    lambda: RotatingCache(CONFIG, PLAIN, window=300),
    lambda: RotatingQuantizedCache(CONFIG, PLAIN, 4, window=300),
]


@pytest.mark.parametrize("tokens", [1, 256, 257, 600])
def test_the_curves_are_the_bytes_of_real_caches(tokens: int) -> None:
    layer = tuple(x.astype(mx.float16) for x in inputs(CONFIG, tokens))
    drawn = kv.curves(CONFIG, 2, tokens, 300)
    for curve, make in zip(drawn, MAKERS, strict=True):
        cache = make()
        step(cache, [layer, layer], 0, tokens)
        assert curve.points[-1] == (tokens, cache.nbytes), curve.label


def test_heads_that_no_group_divides_have_no_packed_curves() -> None:
    drawn = kv.curves(shape(dim=80), 2, 1000, 300)
    assert [curve.label for curve in drawn] == ["every token, 16 bits", "window 300, 16 bits"]


def test_a_ring_row_by_row() -> None:
    rows = kv.rounds(10, sinks=2, recent=3, slots=6)
    assert rows[0] == ([0, -1, -1, -1, -1, -1], [True, *[False] * 5])
    assert rows[6] == ([0, 1, 6, 3, 4, 5], [True, True, True, False, True, True])
    assert rows[9] == ([0, 1, 6, 7, 8, 9], [True, True, False, True, True, True])


def test_pictures_are_whole_and_say_what_they_show() -> None:
    growth = kv.draw_growth("growth", "KV cache", kv.curves(CONFIG, 2, 1000, 300))
    ring = kv.draw_ring("ring", 10, 2, 3, 6)
    for drawing in (growth, ring):
        xml.dom.minidom.parseString(drawing.svg())
    assert "from 1 to 1,000 tokens" in growth.alt and "every token, 16 bits 0.52 MB" in growth.alt
    assert ring.alt.endswith("the last sees positions 0, 1, 7, 8, 9.")
    labels = [float(y) for y in re.findall(r'y="([\d.]+)" font-size="11" text-anchor="start"', growth.svg())]
    assert len(labels) == 5 and all(b - a >= 14 for a, b in pairwise(labels))


@pytest.mark.parametrize("line", ["--recent 9", "--sinks 8", "--tokens 0", "--window 0"])
def test_sizes_that_make_no_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str) -> None:
    assert main(["viz", "kv", *line.split(), "--out", str(tmp_path / "x.html")]) == 2
    assert "expected" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_ring_takes_at_least_a_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["viz", "kv", "--steps", "0", "--out", str(tmp_path / "x.html")]) == 2
    assert "'--steps': Input should be greater than or equal to 1, found '0'" in capsys.readouterr().err and not list(
        tmp_path.iterdir()
    )


def test_the_command_writes_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["viz", "kv", "--tokens", "2000", "--out", str(tmp_path / "kv.html")]) == 0
    assert capsys.readouterr().out.startswith("Memory of a KV cache from 1 to 2,000 tokens")
    assert (tmp_path / "kv.html").read_text().count("<svg") == 2

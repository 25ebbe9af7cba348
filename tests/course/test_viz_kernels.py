"""Pictures of FlashAttention and of rooflines: their numbers are attention's own and the simulator's."""

import xml.dom.minidom
from pathlib import Path

import numpy as np
import pytest

from tiny_llm.cli import main
from tiny_llm.views import flash, roofline


@pytest.fixture(autouse=True)
def own_cache(kernel_cache: None) -> None:
    """The roofline runs kernels."""


@pytest.mark.parametrize("window", [0, 1, 3])
def test_the_last_step_of_each_query_is_its_attention(window: int) -> None:
    """Values are 0, 1, 2, …, so that the output is the mean position under the weights."""
    tokens, scores = 9, np.array(flash.scores_of(9, 0))
    final = {}
    for step in flash.steps(tokens, 4, 3, window):
        for i, out in enumerate(step.output):
            final[step.first + i] = out
    for query in range(tokens):
        seen = [key for key in range(tokens) if flash.visible(query, key, window)]
        p = np.exp(scores[query][seen])
        assert final[query] == pytest.approx(p @ seen / p.sum())


def test_tiles_that_nobody_sees_are_left_out() -> None:
    assert [(s.first, s.begin) for s in flash.steps(8, 4, 4)] == [(0, 0), (4, 0), (4, 4)]
    assert [(s.first, s.begin) for s in flash.steps(12, 4, 4, window=1)] == [(0, 0), (4, 4), (8, 8)]


def test_kept_is_what_a_new_maximum_leaves() -> None:
    first, second = list(flash.steps(2, 2, 1))
    (before, total), (after, both) = first.state[1], second.state[1]
    assert second.kept[1] == pytest.approx(np.exp(before - after))
    score = flash.scores_of(2, 0)[1][1]
    assert both == pytest.approx(total * second.kept[1] + np.exp(score - after))


def test_frames_are_whole_and_say_what_they_show() -> None:
    drawings = flash.draw(8, 4, 3)
    for drawing in drawings:
        xml.dom.minidom.parseString(drawing.svg())
    assert drawings[0].alt.startswith("Step 1 of 5: queries 0 to 3 meet keys 0 to 2.")
    assert "4 × 3 scores exist, of 8 × 8" in drawings[0].alt


def test_kernels_on_a_roofline() -> None:
    points = roofline.measure(["axpby", "softmax"])
    assert [p.kernel for p in points] == ["axpby", "softmax"]
    assert points[0].operations / points[0].least == pytest.approx(0.25)  # 3 operations on 12 bytes
    drawing = roofline.draw(roofline.chip_of("m1"), points)
    xml.dom.minidom.parseString(drawing.svg())
    assert "axpby 0.25 (bound by memory, asks for 1 times the least bytes)" in drawing.alt
    far = roofline.Point("far", 1e6, 1000, 2000)
    assert "far 1000 (bound by arithmetic, asks for 2 times" in roofline.describe_points(roofline.chip_of("M1"), [far])


def test_the_commands_write_pages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "flash.html"
    assert main(["viz", "flash", "--out", str(page)]) == 0
    assert "Step 5 of 5" in capsys.readouterr().out
    assert page.read_text().count("<figure>") == 5
    picture = tmp_path / "roofline.svg"
    assert main(["viz", "roofline", "axpby", "--chip", "H200", "--out", str(picture)]) == 0
    assert "H200 has" in capsys.readouterr().out
    assert picture.read_text().startswith("<svg")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["flash", "--tokens", "0"], "tokens: expected at least 1"),
        (["flash", "--window", "-1"], "window: expected at least 0"),
        (["roofline", "nothing"], "kernel: expected one of axpby"),
        (["roofline", "copy_blocks"], "kernel: expected one of axpby"),  # it only copies: 0 has no logarithm
        (["roofline", "axpby", "--chip", "M9"], "chip: expected one of M1"),
    ],
)
def test_wrong_usage(line: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["viz", *line]) == 2
    assert words in capsys.readouterr().err

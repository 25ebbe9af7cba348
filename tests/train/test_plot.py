"""The picture of training's losses."""

import json
from pathlib import Path
from xml.etree import ElementTree

from tiny_llm.train.plot import loss_plot


def test_the_plot_draws_each_log(tmp_path: Path) -> None:
    for name, losses in (("with", (8, 2, 0.5)), ("without", (8, 4, 3))):
        lines = [json.dumps({"step": i, "tokens": i * 10**6, "answers": loss}) for i, loss in enumerate(losses)]
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    loss_plot({name: tmp_path / name for name in ("with", "without")}, tmp_path / "loss.svg")
    svg = ElementTree.parse(tmp_path / "loss.svg").getroot()
    curves = [line.get("points", "").split() for line in svg.iter("{http://www.w3.org/2000/svg}polyline")]
    assert [len(points) for points in curves] == [3, 3]
    heights = [[float(point.split(",")[1]) for point in points] for points in curves]
    assert heights[0][2] > heights[1][2] > heights[0][0]  # a lower loss stands lower, so its y is larger


def test_no_log_no_plot(tmp_path: Path) -> None:
    loss_plot({"none": tmp_path / "missing.jsonl"}, tmp_path / "loss.svg")
    assert not (tmp_path / "loss.svg").exists()

"""Pictures of drafts: every guess stands where its tree says, and the kept ones are those of the answer."""

import json
import xml.dom.minidom
from pathlib import Path

import pytest

from tests.support import make_model
from tiny_llm.cli import main
from tiny_llm.engine.events import Event
from tiny_llm.views import speculation
from tiny_llm.views.svg import AMBER, GREEN, RED

TOKENS, PARENTS = [10, 11, 12, 13, 14], [-1, 0, 0, -1, 3]


def event(kept: tuple[int, ...]) -> Event:
    return Event(0.0, "verify", 4, "one", 0, 7, len(TOKENS), kept, json.dumps([TOKENS, PARENTS]))


def word(token: int) -> str:
    return f"w{token}"


def boxes(svg: str) -> dict[str, tuple[float, float, str]]:
    """Text of each guess → its place and its colour."""
    page = xml.dom.minidom.parseString(svg)
    rects = page.getElementsByTagName("rect")
    texts = [text.firstChild.data for text in page.getElementsByTagName("text")][1:]
    return {
        text: (float(rect.getAttribute("x")), float(rect.getAttribute("y")), rect.getAttribute("fill"))
        for text, rect in zip(texts, rects, strict=True)
    }


def test_a_tree_is_drawn_by_depth_and_outcome() -> None:
    drawing = speculation.draw("draft", speculation.tree_of(event((0, 2))), event((0, 2)), word)
    found = boxes(drawing.svg())
    assert drawing.alt == "Step 4: 5 guesses, 2 accepted: 'w10' 'w12'."
    assert {text: box[2] for text, box in found.items()} == {
        "w10": GREEN,
        "w11": AMBER,
        "w12": GREEN,
        "w13": AMBER,
        "w14": RED,
    }
    assert found["w10"][0] == found["w13"][0] < found["w11"][0] == found["w12"][0] == found["w14"][0]
    assert found["w10"][1] == found["w11"][1] < found["w12"][1] < found["w13"][1] == found["w14"][1]


def test_the_words_say_what_was_accepted() -> None:
    assert speculation.describe([event((0, 2)), event(())], word).splitlines() == [
        "step 4: 2 of 5 accepted 'w10w12'",
        "step 4: 0 of 5 accepted ''",
    ]
    with pytest.raises(ValueError, match="expected steps with drafts, found none"):
        speculation.frames([Event(0.0, "step")], word)


def test_the_command_draws_every_draft(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "tree.html"
    assert main(["viz", "speculation", "--out", str(out), "--max-tokens", "30"]) == 0
    said = capsys.readouterr().out
    drafts = said.count("step ")
    assert drafts >= 2 and out.read_text().count("<figure>") == drafts


def test_a_drafter_without_weights_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_model(tmp_path / "model")
    assert main(["viz", "speculation", "--model", str(path), "--out", str(tmp_path / "a.html")]) == 1
    assert "the drafter draft needs a smaller model" in capsys.readouterr().err

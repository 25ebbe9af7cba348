"""What is printed: JSON that every program reads, and tables that lose nothing in a narrow terminal."""

import json
import math
import os
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run
from tests.cli.fake import FakeLLM
from tests.cli.test_terminal import Terminal
from tiny_llm.cli import terminal
from tiny_llm.decode.text import TokenLogprobs
from tiny_llm.engine.answers import Completion, Stats
from tiny_llm.engine.speculation import SpeculationCounts

WORDS = [
    ("\ud800", "\ufffd"),
    ("a\udcffb", "a\ufffdb"),
    ("\ud83d\ude42", "\N{SLIGHTLY SMILING FACE}"),
    ("\ufffd", "\ufffd"),
    ("\ufeffa", "\ufeffa"),
    ("\0\x1b", "\0\x1b"),
]


def strict(text: str) -> Any:
    """Parse JSON as programs do that know no NaN and no half of a surrogate pair."""
    assert not any(0xD800 <= ord(character) <= 0xDFFF for character in text)

    def refuse(name: str) -> None:
        raise AssertionError(name)

    found = json.loads(text, parse_constant=refuse)
    json.dumps(found, ensure_ascii=False).encode()
    return found


@pytest.mark.parametrize(("text", "shown"), WORDS)
def test_every_text_is_json(capsys: pytest.CaptureFixture[str], text: str, shown: str) -> None:
    terminal.print_json({"text": text, text: [text]})
    assert strict(capsys.readouterr().out) == {"text": shown, shown: [shown]}


def test_every_number_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.print_json({"a": (math.inf, -math.inf, math.nan, 1.5, 10**400, True, None), "b": Path("x").name})
    assert strict(capsys.readouterr().out) == {"a": [None, None, None, 1.5, 10**400, True, None], "b": "x"}


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-16", "utf-8", "UTF8"])
def test_json_in_every_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    with (tmp_path / "out").open("wb") as file:
        stream = TextIOWrapper(file, encoding)
        monkeypatch.setattr(sys, "stdout", stream)
        terminal.print_json("é漢🙂")
        stream.flush()
    monkeypatch.undo()
    assert strict((tmp_path / "out").read_bytes().decode(encoding)) == "é漢🙂"


class Likely(FakeLLM):
    """Tokens that a rule forbids have a log-probability of minus infinity, and the clock saw no time pass."""

    def generate(self, prompt: Any, **_: Any) -> Completion:
        logprobs = [TokenLogprobs(-0.5, ((2, -math.inf), (3, math.nan)))]
        return Completion("a\ud800", [1], "stop", 0, logprobs, Stats(5, 0, 2, 0.0, 0.0, 7))


def test_an_answer_without_time_and_with_impossible_tokens_is_json(run: Run) -> None:
    """An answer's JSON was refused after all the work: "Out of range float values", or a division by zero."""
    found = strict(run("generate", "hi", "--json", "--logprobs", "2", llm=Likely()).out)
    assert found["completions"][0]["text"] == "a\ufffd"
    assert found["completions"][0]["logprobs"][0]["top"] == [[2, None], [3, None]]
    assert (found["stats"]["prefill_tps"], found["stats"]["decode_tps"]) == (0, 0)


def test_a_failure_prints_no_half_of_a_json(run: Run) -> None:
    result = run("generate", "hi", "--json", llm=FakeLLM(["par", lambda: 1 / 0]))
    assert (result.code, result.out) == (1, "")


@pytest.mark.parametrize("columns", ["1", "10", "30", "80", "0"])
@pytest.mark.parametrize("kind", ["xterm", "dumb", ""])
def test_a_table_loses_nothing_in_any_terminal(columns: str, kind: str) -> None:
    """A narrow one had columns cut off, with an ellipsis in the place of the rest."""
    program = Terminal(["models", "list"], COLUMNS=columns, TERM=kind, HF_HOME=os.devnull)
    try:
        assert program.wait() == 0
    finally:
        os.close(program.fd)
    shown = "".join(program.text.split())
    assert "qwen2.5-0.5b-4bit" in shown and "mlx-community/Qwen2.5-0.5B-Instruct-4bit" in shown
    assert "…" not in shown


def test_a_row_of_a_pipe_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.table([("a\nb", "c\rd"), ("e" * 300, "f\x1b[31m" * 100)])
    assert capsys.readouterr().out.splitlines()[0].split() == ["a\\nb", "c\\rd"]


def test_figures_are_written_where_they_are_asked_for(run: Run) -> None:
    assert run("generate", "hi", llm=FakeLLM("four")).err == ""
    result = run("generate", "hi", "--stats", llm=FakeLLM("four"))
    assert (result.out, result.err) == ("four\n", "4 tokens · 75.0 tokens/s · first after 0.25 s\n")
    llm = FakeLLM("four")
    llm.speculation = SpeculationCounts(drafts=4, drafted=10, accepted=5)
    result = run("generate", "hi", "--json", "--stats", llm=llm)
    assert "guesses: 50% of 10 guesses accepted, 2.25 tokens a step in 4 steps with guesses" in result.err
    assert json.loads(result.out)["speculative_decoding"]["num_accepted_draft_tokens"] == 5

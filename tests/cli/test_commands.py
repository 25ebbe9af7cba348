"""Slash commands: each does what /help says, and what goes wrong costs nothing."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run
from tests.cli.fake import FakeLLM
from tests.cli.test_chat import said
from tiny_llm.cli.commands import Commands
from tiny_llm.cli.options import SamplingOptions
from tiny_llm.config import EngineConfig
from tiny_llm.config.speculation import SpeculationConfig
from tiny_llm.decode.text import Delta
from tiny_llm.engine.request import PrefixMiss
from tiny_llm.kernels.cpu import build


def test_help_lists_every_command(run: Run) -> None:
    out = run("chat", stdin="/help\n", llm=FakeLLM()).out
    wanted = [
        "/help",
        "/system",
        "/set",
        "/retry",
        "/spec",
        "/tools",
        "/undo",
        "/save",
        "/load",
        "/clear",
        "/stats",
        "/quit",
    ]
    assert Commands.names() == wanted
    assert [line.split()[0] for line in out.splitlines()[: len(wanted)]] == wanted


def test_quit_ends_the_chat(run: Run) -> None:
    llm = FakeLLM()
    assert run("chat", stdin="/quit\nhi\n", llm=llm).code == 0
    assert llm.asked == []


def test_unknown_command(run: Run) -> None:
    llm = FakeLLM("x")
    result = run("chat", stdin="/quti\n /quti\n", llm=llm)
    assert result.code == 1
    assert result.err.startswith("error: /quti: unknown command; known are /help, /system")
    assert llm.asked == [said(" /quti")]


def test_system_is_shown_set_and_removed(run: Run) -> None:
    llm = FakeLLM("x", "y")
    result = run("chat", stdin="/system\n/system be brief\nhi\n/system none\nwell\n", llm=llm)
    assert result.out.splitlines()[:2] == ["system prompt: none", "system prompt: be brief"]
    assert llm.asked == [said("hi", system="be brief"), said("hi", "x", "well")]


@pytest.mark.parametrize(
    ("typed", "name", "value"),
    [
        ("temperature 0.2", "temperature", 0.2),
        ("top_k 7", "top_k", 7),
        ("stop END", "stop", ("END",)),
        ("stop 7", "stop", ("7",)),
        ('stop ["a", "b c"]', "stop", ("a", "b c")),
        ("logit_bias 3=-100 4=2", "logit_bias", {3: -100.0, 4: 2.0}),
        ("seed 5", "seed", 5),
        ("max_tokens 9", "max_tokens", 9),
    ],
)
def test_set_changes_the_next_answer(run: Run, typed: str, name: str, value: object) -> None:
    llm = FakeLLM("x", "y")
    result = run("chat", stdin=f"/set {typed}\nhi\n/set {name} none\nhi\n", llm=llm)
    assert result.code == 0
    assert llm.settings[0][name] == value
    assert llm.settings[1] == {"max_tokens": 4096}


@pytest.mark.parametrize(
    ("typed", "complaint"),
    [
        ("temprature 0.2", "temprature: unknown setting; known are max_tokens, temperature"),
        ("n 3", "n: unknown setting"),
        ("temperature", "temperature: no value given"),
        ("temperature hot", "temperature: expected a number from 0 to 100, found 'hot'"),
        ("temperature -1", "temperature: expected a number from 0 to 100, found -1"),
        ("temperature NaN", "temperature: expected a number from 0 to 100, found nan"),
        ("top_k 1.5", "top_k: expected an integer"),
        ("seed true", "seed: expected "),
        ("logit_bias 3", "logit_bias: expected ID=VALUE"),
        ("stop [1]", "stop: expected a tuple of non-empty strings"),
    ],
)
def test_set_refuses_and_keeps_what_was(run: Run, typed: str, complaint: str) -> None:
    llm = FakeLLM("x")
    result = run("chat", "--temperature", "0.5", stdin=f"/set {typed}\nhi\n", llm=llm)
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert result.err.startswith(f"error: {complaint}")
    assert llm.settings == [{"max_tokens": 4096, "temperature": 0.5}]


def test_set_shows_the_settings_and_where_they_come_from(run: Run) -> None:
    rows = run("chat", "--temperature", "0.5", stdin="/set\n", llm=FakeLLM()).out.splitlines()
    shown = {row.split()[0]: row.split(maxsplit=1)[1] for row in rows}
    assert list(shown) == list(vars(SamplingOptions()))
    assert shown["max_tokens"] == "4096  (default)"
    assert (shown["temperature"], shown["top_k"], shown["top_p"]) == ("0.5", "20  (default)", "1.0  (default)")


def test_retry_answers_the_last_message_again(run: Run) -> None:
    llm = FakeLLM("x", "y", "z")
    run("chat", stdin="one\n/retry\ntwo\n", llm=llm)
    assert llm.asked == [said("one"), said("one"), said("one", "y", "two")]


def test_retry_without_a_message(run: Run) -> None:
    assert run("chat", stdin="/retry\n", llm=FakeLLM()).err == "error: nothing has been asked yet\n"


def test_a_failed_retry_keeps_the_old_answer(run: Run) -> None:
    llm = FakeLLM("x", ValueError("no"), "z")
    run("chat", stdin="one\n/retry\ntwo\n", llm=llm)
    assert llm.asked[2] == said("one", "x", "two")


def test_save_and_load(run: Run, tmp_path: Path) -> None:
    file, llm = tmp_path / "my talk.json", FakeLLM("x", "y", "z")
    result = run("chat", "--system", "s", stdin=f"one\n/save {file}\n/clear\ntwo\n/load {file}\nthree\n", llm=llm)
    assert (result.code, result.err) == (0, "")
    assert f"saved 2 messages to {file}" in result.out
    assert llm.asked[1:] == [said("two", system="s"), said("one", "x", "three", system="s")]


@pytest.mark.parametrize(
    "command", ["/save", "/load", "/load {folder}/none.json", "/load {folder}/bad.json", "/load {folder}"]
)
def test_bad_files_cost_nothing(run: Run, tmp_path: Path, command: str) -> None:
    (tmp_path / "bad.json").write_text('{"messages": 3}')
    llm = FakeLLM("x", "y")
    result = run("chat", stdin=f"one\n{command.format(folder=tmp_path)}\ntwo\n", llm=llm)
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert result.err.startswith("error: /")
    assert llm.asked[1] == said("one", "x", "two")


def test_clear_forgets_the_conversation(run: Run) -> None:
    llm = FakeLLM("x", "y")
    run("chat", stdin="one\n/clear\ntwo\n", llm=llm)
    assert llm.asked[1] == said("two")


def test_stats(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "held_bytes", lambda: 0)  # of models that other tests have loaded
    out = run("chat", stdin="/stats\nhello\n/stats\n", llm=FakeLLM("four")).out.splitlines()
    assert out[:3] == ["messages  0", "context   0 of 10000 tokens", "written   0 tokens in 0 answers"]
    shown = {row[:13].strip(): row[13:] for row in out[4:]}
    assert shown["messages"] == "2"
    assert shown["written"] == "4 tokens in 1 answers"
    assert shown["last answer"] == "4 tokens · 75.0 tokens/s · first after 0.25 s"
    assert shown["peak memory"] == "2 MB"


def test_stats_say_why_a_prefix_was_not_found(run: Run) -> None:
    class Missing(FakeLLM):
        def stream(self, *arguments: Any, **options: Any) -> Iterator[Delta]:
            yield from super().stream(*arguments, **options)
            miss = PrefixMiss(3, "diverged at token 3", "hel\x1blo")
            self.last_stats = replace(self.last_stats, prefix_miss=miss)

    out = run("chat", stdin="hello\n/stats\n", llm=Missing("four")).out
    assert "cache miss   diverged at token 3: 'hel\\x1blo'" in out


def test_saved_files_name_the_model(run: Run, tmp_path: Path) -> None:
    run("chat", stdin=f"one\n/save {tmp_path}/t.json\n", llm=FakeLLM("x"))
    assert json.loads((tmp_path / "t.json").read_text())["model"] == "fake"


def test_guesses_are_coloured_where_there_are_some(run: Run) -> None:
    result = run("chat", stdin="/spec\n", llm=FakeLLM())
    assert "/spec: nothing is guessed here; start the chat with --speculate" in result.err
    llm = FakeLLM()
    llm.engine_config = EngineConfig(speculation=SpeculationConfig("suffix"))
    result = run("chat", stdin="/spec\n/spec\n", llm=llm)
    assert result.out.splitlines() == ["colours of guesses: on", "colours of guesses: off"]

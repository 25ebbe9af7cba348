"""Chat through a pipe: what is shown where, what the model is told, what stays after a failure."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run, without_eos
from tests.cli.fake import FakeLLM

USER, ASSISTANT = "user", "assistant"


def said(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    """Messages of the user and the assistant in turn."""
    first = [{"role": "system", "content": system}] if system else []
    return first + [{"role": (USER, ASSISTANT)[i % 2], "content": content} for i, content in enumerate(contents)]


def test_each_line_is_a_turn_and_the_answers_are_plain_text(run: Run) -> None:
    llm = FakeLLM("first", "second")
    result = run("chat", stdin="one\n\n  \ntwo\n", llm=llm)
    assert (result.code, result.out, result.err) == (0, "first\nsecond\n", "")
    assert llm.asked == [said("one"), said("one", "first", "two")]


def test_a_backslash_joins_lines(run: Run) -> None:
    llm = FakeLLM("x", "y")
    run("chat", stdin="one\\\ntwo\nthree\\\n", llm=llm)
    assert llm.asked == [said("one\ntwo"), said("one\ntwo", "x", "three")]


def test_system_prompt_settings_and_template_reach_the_model(run: Run) -> None:
    llm = FakeLLM("x")
    run("chat", "--system", "brief", "--temperature", "0", "--no-thinking", stdin="hi\n", llm=llm)
    assert llm.asked == [said("hi", system="brief")]
    assert llm.settings == [{"max_tokens": 4096, "temperature": 0.0}]


@pytest.mark.parametrize("flag", ["--thinking", "--no-thinking"])
def test_thinking_switch_reaches_the_template(run: Run, model_dir: Path, flag: str, monkeypatch: Any) -> None:
    from tiny_llm.engine.llm import LLM

    seen: list[Any] = []
    stream = LLM.stream

    def record(self: LLM, *arguments: Any, template: Any, **settings: Any) -> Any:
        seen.append(template)
        return stream(self, *arguments, template=template, **settings)

    monkeypatch.setattr(LLM, "stream", record)
    assert run("chat", "--model", str(model_dir), "--max-tokens", "2", flag, stdin="hi\n").code == 0
    assert seen == [{"enable_thinking": flag == "--thinking"}]


def test_thinking_goes_to_stderr_and_is_kept_apart(run: Run) -> None:
    llm = FakeLLM("<think>\nhm\n</think>\n\nyes", "more")
    result = run("chat", stdin="one\ntwo\n", llm=llm)
    assert result.out == "yes\nmore\n"
    assert result.err == "<think>\nhm\n</think>\n"
    assert llm.asked[1][1] == {"role": ASSISTANT, "content": "yes", "reasoning_content": "hm\n"}


def test_a_failed_turn_is_taken_back_and_the_chat_goes_on(run: Run) -> None:
    llm = FakeLLM(ValueError("too hard"), "fine")
    result = run("chat", stdin="one\ntwo\n", llm=llm)
    assert (result.code, result.out, result.err) == (1, "fine\n", "error: too hard\n")
    assert llm.asked == [said("one"), said("two")]


def test_a_failure_in_mid_answer_keeps_what_was_written(run: Run) -> None:
    def fail() -> None:
        raise MemoryError

    llm = FakeLLM(["par", fail], "fine")
    result = run("chat", stdin="one\ntwo\n", llm=llm)
    assert (result.code, result.out) == (1, "par\nfine\n")
    assert result.err.startswith("error: not enough memory")
    assert llm.asked[1] == said("one", "par", "two")


def test_ctrl_c_stops_the_answer_and_keeps_the_part(run: Run) -> None:
    llm = FakeLLM(["par", lambda: os.kill(os.getpid(), signal.SIGINT), "t", "ly"], "fine")
    before = signal.getsignal(signal.SIGINT)
    result = run("chat", stdin="one\ntwo\n", llm=llm)
    assert (result.code, result.out) == (0, "part\nfine\n")
    assert llm.asked[1] == said("one", "part", "two")
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_does_not_wait_for_the_model(run: Run) -> None:
    def press() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    assert run("chat", stdin="one\n", llm=FakeLLM([press, press, "never"])).code == 130


def test_an_empty_answer_is_no_turn(run: Run) -> None:
    llm = FakeLLM([""], "fine")
    result = run("chat", stdin="one\ntwo\n", llm=llm)
    assert "without a word" in result.err
    assert llm.asked == [said("one"), said("two")]


def test_an_answer_cut_short_says_so(run: Run, model_dir: Path) -> None:
    result = run("chat", "--model", str(model_dir), "--max-tokens", "3", *without_eos(model_dir), stdin="hi\n")
    assert result.err == "(cut short after 3 tokens; /set max_tokens N allows more)\n"


def test_a_full_context_in_mid_answer_says_so(run: Run) -> None:
    result = run("chat", stdin="hi\n", llm=FakeLLM("x" * 100, max_context=50))
    assert "the context of 50 tokens is full" in result.err
    assert result.code == 0


def test_a_full_context_drops_the_oldest_turns(run: Run, tmp_path: Path) -> None:
    llm = FakeLLM("a" * 40, "b" * 40, "c" * 40, max_context=200)
    file = tmp_path / "talk.json"
    result = run("chat", stdin=f"{'1' * 40}\n{'2' * 10}\n{'3' * 10}\n/save {file}\n", llm=llm)
    assert result.code == 0
    assert llm.asked[2] == said("3" * 10)
    assert result.err.startswith("(the context of 200 tokens is full: the model no longer sees the 4 oldest messages")
    assert len(json.loads(file.read_text())["messages"]) == 6, "/save keeps what the model no longer sees"


def test_a_message_longer_than_the_context_is_refused_and_taken_back(run: Run) -> None:
    llm = FakeLLM("x", max_context=100)
    result = run("chat", stdin=f"{'1' * 200}\nhi\n", llm=llm)
    assert (result.code, result.out, result.err.count("\n")) == (1, "x\n", 1)
    assert "the context holds 100; shorten" in result.err
    assert llm.asked == [said("hi")]


def test_no_escape_codes_in_a_pipe(run: Run) -> None:
    result = run("chat", stdin="hi\n/stats\n/help\n/set\n", llm=FakeLLM("<think>a</think>b"))
    assert "\x1b" not in result.out + result.err


def test_input_that_is_no_text(run: Run) -> None:
    result = run("chat", stdin=b"\xff\n", llm=FakeLLM())
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert "UTF-8" in result.err


def test_a_random_model_reuses_its_cache_from_turn_to_turn(run: Run, model_dir: Path) -> None:
    options = ("--temperature", "0", "--max-tokens", "8", *without_eos(model_dir))
    result = run("chat", "--model", str(model_dir), *options, stdin="hi\nwhat is that?\n/stats\n")
    assert result.code == 0
    cached = next(row for row in result.out.splitlines() if row.startswith("its prompt"))
    assert int(cached.split(" tokens, ")[1].split()[0]) > 0


def test_a_message_taken_back_leaves_visible_what_was(run: Run) -> None:
    """Turns left out for a message that then failed stayed out of the model's sight."""
    llm = FakeLLM("x" * 40, "y" * 40, ValueError("no"), "z", max_context=300)
    result = run("chat", stdin=f"one\ntwo\n{'h' * 200}\nthree\n", llm=llm)
    assert result.code == 1
    assert llm.asked[3] == said("one", "x" * 40, "two", "y" * 40, "three")


@pytest.mark.parametrize("command", ["/system {}\nhi", "{}"])
def test_a_hopeless_message_is_refused_before_it_is_tokenized(run: Run, model_dir: Path, command: str) -> None:
    """A message of 10 MB took ten seconds to be refused."""
    line = command.format("long words " * 300_000)
    result = run("chat", "--model", str(model_dir), "--max-context", "100", stdin=f"{line}\n/system none\n/stats\n")
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert result.err.startswith("error: prompt: expected at most 100 tokens, found at least ")
    assert "messages  0" in result.out

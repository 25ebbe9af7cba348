"""tiny-llm agent: tasks, approvals, sessions and undo, with a model that walks a script."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.apps.agent.documents import MILL, make_index
from tests.apps.agent.scripted import ScriptedChat
from tests.cli.conftest import Run
from tests.cli.fake import FakeLLM
from tiny_llm.apps.agent import chat


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`script(reply, …)`: what the model replies next."""

    def use(*replies: Any) -> FakeLLM:
        scripted = ScriptedChat(*replies)
        scripted.close = lambda: None  # type: ignore[attr-defined]
        monkeypatch.setattr(chat, "LLMChat", lambda *_: scripted)
        return FakeLLM()

    return use


WRITE = [("write_file", {"path": "a.txt", "content": "new"})]
READ = [("read_file", {"path": "a.txt"})]


def test_a_task_is_answered(run: Run, script: Any, tmp_path: Path) -> None:
    llm = script([("calculator", {"expression": "6 * 7"})], "It is 42.")
    result = run("agent", "What is 6 * 7?", "--root", str(tmp_path), llm=llm)
    assert (result.code, result.out.strip()) == (0, "It is 42.")
    assert '(calculator {"expression": "6 * 7"})' in result.err
    assert "(calculator → 42)" in result.err


def test_without_a_terminal_nothing_is_approved(run: Run, script: Any, tmp_path: Path) -> None:
    result = run("agent", "Write.", "--root", str(tmp_path), llm=script(WRITE, "Done."))
    assert "was not approved: it has effects" in result.err
    assert not (tmp_path / "a.txt").exists()


@pytest.mark.parametrize("options", [["--yes"], ["--allow", "write_file:*.txt"]])
def test_approvals_of_the_command_line(run: Run, script: Any, tmp_path: Path, options: list[str]) -> None:
    run("agent", "Write.", "--root", str(tmp_path), *options, llm=script(WRITE, "Done."))
    assert (tmp_path / "a.txt").read_text() == "new"
    run("agent", "Write.", "--root", str(tmp_path), *options, llm=script(READ, WRITE, "Done."))
    (tmp_path / "a.txt").write_text("old")
    result = run("agent", "Write.", "--root", str(tmp_path), *options, llm=script(READ, WRITE, "Done."))
    assert "text from outside came before it" in result.err
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_bound_is_told(run: Run, script: Any, tmp_path: Path) -> None:
    llm = script([("calculator", {"expression": "1"})])
    result = run("agent", "Count.", "--root", str(tmp_path), llm=llm)
    assert result.code == 1
    assert "stopped: the model made the same call again and again" in result.err


def test_undo_resume_fork_replay(run: Run, script: Any, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "a.txt").write_text("old")
    run("agent", "Write.", "--root", str(root), "--yes", llm=script(WRITE, "Done."))
    assert run("agent", "undo").out == "a.txt\n"
    assert (root / "a.txt").read_text() == "old"
    assert run("agent", "undo").out == "nothing to take back\n"
    assert run("agent", "run", "And now?", "--resume", "last", llm=script("Nothing.")).out.strip() == "Nothing."
    replayed = run("agent", "replay")
    assert [line.strip() for line in replayed.out.splitlines()] == ["> Write.", "Done.", "> And now?", "Nothing."]
    assert "took back the change of a.txt" in replayed.err
    (line,) = run("agent", "sessions").out.splitlines()
    name = line.split()[0]
    assert run("agent", "Other.", "--fork", name, llm=script("Yes.")).code == 0
    assert len(run("agent", "sessions").out.splitlines()) == 2
    trace = tmp_path / "state" / "tiny-llm" / "sessions" / f"{name}.jsonl"
    assert [json.loads(each)["kind"] for each in trace.read_text().splitlines()][-4:] == [
        "undo",
        "user",
        "assistant",
        "end",
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("agent run", "say what to do"),
        ("agent run x --resume last --fork last", "--resume or --fork"),
        ("agent run --resume nothing", "expected the name of a session"),
        ("agent run x --root /none/such", "expected a folder, found '/none/such'"),
        ("agent run x --steps 0", "greater than or equal to 1"),
        ("agent run x --tool nothing", "unknown tool"),
        ("agent undo nothing", "expected the name of a session"),
    ],
)
def test_wrong_usage(run: Run, script: Any, line: str, message: str) -> None:
    result = run(*line.split(), llm=script("Hi."))
    assert result.code != 0
    assert message in result.err


def test_tools_in_the_chat(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tiny_llm.cli import agent_chat

    scripted = ScriptedChat(WRITE, "Done.")
    scripted.close = lambda: None  # type: ignore[attr-defined]
    monkeypatch.setattr(agent_chat, "LLMChat", lambda *_: scripted)

    async def yes(*_: Any) -> bool:
        return True

    monkeypatch.setattr(agent_chat, "ask_user", yes)
    lines = f"/tools\n/undo\n/tools {tmp_path}\nWrite.\n/tools off\nHello?\n"
    result = run("chat", stdin=lines, llm=FakeLLM("Hi."))
    assert "tools: off" in result.out
    assert "/undo: no tools are on" in result.err
    assert "write_file" in result.out
    assert "Done." in result.out
    assert (tmp_path / "a.txt").read_text() == "new"


def test_undo_in_the_chat(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tiny_llm.cli import agent_chat

    async def yes(*_: Any) -> bool:
        return True

    scripted = ScriptedChat(WRITE, "Done.")
    scripted.close = lambda: None  # type: ignore[attr-defined]
    monkeypatch.setattr(agent_chat, "LLMChat", lambda *_: scripted)
    monkeypatch.setattr(agent_chat, "ask_user", yes)
    result = run("chat", stdin=f"/tools {tmp_path}\nWrite.\n/undo\n", llm=FakeLLM())
    assert result.out.splitlines()[-1] == "a.txt"
    assert not (tmp_path / "a.txt").exists()


SEARCH = [("search_documents", {"query": "height of the red mill"})]


def test_documents_of_an_index_are_searched(run: Run, script: Any, tmp_path: Path) -> None:
    pytest.importorskip("bm25s")
    index = make_index(tmp_path)
    options = ["--root", str(tmp_path), "--documents", str(index)]
    result = run("agent", "How high is the red mill?", *options, llm=script(SEARCH, "38 metres [1]."))
    assert (result.code, result.out.strip()) == (0, "38 metres [1].")
    assert f"(search_documents → [1] (The mill, mill.md) {MILL})" in result.err
    result = run("agent", "Go.", "--documents", str(tmp_path / "none"), llm=script("Hi."))
    assert result.code != 0
    assert "--documents" in result.err and "expected an index of documents, found none" in result.err


def test_the_chat_searches_the_index_of_its_folder(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bm25s")
    from tiny_llm.cli import agent_chat

    make_index(tmp_path).rename(tmp_path / ".tiny-llm-rag")
    scripted = ScriptedChat(SEARCH, "38 metres [1].")
    scripted.close = lambda: None  # type: ignore[attr-defined]
    monkeypatch.setattr(agent_chat, "LLMChat", lambda *_: scripted)
    result = run("chat", stdin=f"/tools {tmp_path}\nHow high?\n", llm=FakeLLM())
    assert "[1] (The mill, mill.md)" in result.err
    assert result.out.splitlines()[-1].strip() == "38 metres [1]."

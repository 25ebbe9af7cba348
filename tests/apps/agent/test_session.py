"""Sessions survive a crash, can be forked, replayed and undone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.apps.agent.scripted import make_agent, reason, results, run
from tiny_llm.apps.agent.chat import ReplayChat
from tiny_llm.apps.agent.files import Root
from tiny_llm.apps.agent.loop import Agent
from tiny_llm.apps.agent.nouns import ApprovalRules
from tiny_llm.apps.agent.session import AgentSession
from tiny_llm.apps.agent.tools import ToolError

ROOT = Path(__file__).parents[3]
ALL = ApprovalRules(everything=True)
WRITE = [("write_file", {"path": "a.txt", "content": "new"})]
CRASH = """
import sys, time
from pathlib import Path
from tests.apps.agent.scripted import make_agent, run
from tiny_llm.apps.agent.nouns import ApprovalRules
from tiny_llm.apps.agent.tools import AgentTool

folder, where = Path(sys.argv[1]), sys.argv[2]

def hang(*_):
    (folder / "ready").write_text("x")
    time.sleep(60)
    return "late"

write = [("write_file", {"path": "a.txt", "content": "new"})]
slow = [("slow", {})]
from tiny_llm.apps.agent import files
if where == "write":
    files.replace = hang
replies = {"write": [write, "Done."], "model": [write, hang], "tool": [write, slow, "Done."]}[where]
agent = make_agent(folder, *replies, path=folder / "s.jsonl", rules=ApprovalRules(everything=True))
agent.tools["slow"] = AgentTool("slow", "", {"type": "object", "properties": {}}, hang, effects=True)
run(agent)
"""


@pytest.mark.parametrize("where", ["write", "model", "tool"])
def test_a_session_goes_on_after_kill_9(tmp_path: Path, where: str) -> None:
    (tmp_path / "a.txt").write_text("old")
    process = subprocess.Popen([sys.executable, "-c", CRASH, str(tmp_path), where], cwd=ROOT)
    end = time.monotonic() + 60
    while not (tmp_path / "ready").exists() and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    agent = make_agent(tmp_path, "Done.", path=tmp_path / "s.jsonl", rules=ALL)
    if where == "tool":
        agent.tools["slow"] = agent.tools["write_file"]
    events = run(agent, None)
    assert reason(events) == "answered"
    if where == "write":
        assert results(events) == ["Error: interrupted: look whether the call took effect"]
        assert (tmp_path / "a.txt").read_text() == "old"
    if where == "tool":
        assert results(events) == ["Error: interrupted: look whether the call took effect"]
    agent.session.undo(Root(tmp_path))
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_harmless_call_that_was_interrupted_runs_again(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    agent = make_agent(tmp_path, [("calculator", {"expression": "6 * 7"})], "Well.", path=path)
    run(agent)
    agent.session.close()
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:4]) + lines[4][:10])  # cut off in the result
    again = make_agent(tmp_path, "Well.", path=path)
    events = run(again, None)
    assert results(events) == ["42"]
    assert reason(events) == "answered"


def test_undo_takes_back_the_last_task(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    edit = [("edit_file", {"path": "a.txt", "old_string": "new", "new_string": "newer"})]
    make = [("write_file", {"path": "b.txt", "content": "b"})]
    path = tmp_path / "s.jsonl"
    agent = make_agent(tmp_path, WRITE, "Done.", edit, make, "Done.", path=path, rules=ALL)
    run(agent, "First.")
    run(agent, "Second.")
    assert (tmp_path / "a.txt").read_text() == "newer"
    agent.session.close()
    session = AgentSession(path)
    assert session.undo(Root(tmp_path)) == ["b.txt", "a.txt"]
    assert ((tmp_path / "a.txt").read_text(), (tmp_path / "b.txt").exists()) == ("new", False)
    session.close()
    session = AgentSession(path)
    assert session.undo(Root(tmp_path)) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"
    assert session.undo(Root(tmp_path)) == []


def test_undo_stops_at_a_change_of_another_program(tmp_path: Path) -> None:
    agent = make_agent(tmp_path, WRITE, "Done.", rules=ALL)
    run(agent)
    (tmp_path / "a.txt").write_text("theirs")
    with pytest.raises(ToolError, match="was changed since then"):
        agent.session.undo(Root(tmp_path))


def test_a_fork_shares_the_beginning(tmp_path: Path) -> None:
    agent = make_agent(tmp_path, "One.", "Two.", path=tmp_path / "s.jsonl")
    run(agent, "First?")
    run(agent, "Second?")
    forked = agent.session.fork(tmp_path / "t.jsonl", users=1)
    assert forked.messages == agent.session.messages[:3]
    assert agent.session.fork(None).messages == agent.session.messages
    with pytest.raises(ValueError, match=r"t\.jsonl: exists already"):
        agent.session.fork(tmp_path / "t.jsonl")


def test_a_replay_gives_the_same_results(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    agent = make_agent(tmp_path, [("read_file", {"path": "a.txt"}), ("clock", {"date": "2026-03-06"})], "Done.")
    events = run(agent)
    again = make_agent(tmp_path, "")
    replayed = Agent(ReplayChat(agent.session.events), list(again.tools.values()), AgentSession(system="Be good."))
    assert results(run(replayed)) == results(events)
    assert replayed.session.messages == agent.session.messages


def test_only_one_process_works_on_a_session(tmp_path: Path) -> None:
    session = AgentSession(tmp_path / "s.jsonl")
    with pytest.raises(ValueError, match="another process works on this session"):
        AgentSession(tmp_path / "s.jsonl")
    session.close()
    AgentSession(tmp_path / "s.jsonl").close()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"kind": "user", "text": "hi"}\n', "expected the session of an agent"),
        ("hello\n", "line 1: expected an event in JSON"),
        ("[1]\n", "line 1: expected an event in JSON"),
        ("[" * 100_000 + "\n", "line 1: expected an event in JSON"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        AgentSession(path)
    assert path.read_text() == text


def test_a_session_is_for_its_user_alone(tmp_path: Path) -> None:
    AgentSession(tmp_path / "s.jsonl").close()
    assert os.stat(tmp_path / "s.jsonl").st_mode & 0o777 == 0o600

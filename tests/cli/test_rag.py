"""`tiny-llm rag`: an index from the command line, with the small model inside."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Run

pytest.importorskip("bm25s")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def index(run: Run, tmp_path: Path) -> str:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "mill.md").write_text("# The mill\nThe height of the red mill is 38 metres.")
    (tmp_path / "docs" / "pool.md").write_text("# The pool\nThe length of the pool is 25 metres.")
    folder = str(tmp_path / "index")
    result = run("rag", "add", str(tmp_path / "docs"), "--index", folder)
    assert (result.code, result.err) == (0, "")
    assert result.out == "2 added, 0 replaced, 0 unchanged, 0 removed; 2 new chunks\n"
    return folder


def test_ask_shows_the_answer_and_its_sources(run: Run, index: str) -> None:
    result = run("rag", "ask", "What is the height of the red mill?", "--index", index)
    assert (result.code, result.err, result.inside) == (0, "", True)
    assert "[1] The mill, " in result.out
    assert "mill.md" in result.out


def test_ask_as_json(run: Run, index: str) -> None:
    data = json.loads(run("rag", "ask", "What is the height of the red mill?", "-i", index, "--json").out)
    assert data["passages"][0]["title"] == "The mill"
    assert data["coverage"] == 1
    assert data["query"] == "What is the height of the red mill?"
    assert {"lexical", "pack", "first_token"} <= set(data["seconds"])


def test_what_the_documents_lack_is_refused(run: Run, index: str) -> None:
    assert run("rag", "ask", "Who is the king of Portugal?", "-i", index).out == "The documents do not say.\n"


def test_chat_takes_each_line(run: Run, index: str) -> None:
    result = run("rag", "chat", "-i", index, stdin="What is the height of the red mill?\n\n/clear\n/quit\nmore\n")
    assert result.code == 0
    assert result.out.count("[1] The mill") == 1


def test_status_and_remove(run: Run, index: str, tmp_path: Path) -> None:
    assert run("rag", "status", "-i", index).out.endswith("2 documents, 2 chunks; embedder: none\n")
    name = str((tmp_path / "docs" / "pool.md").resolve())
    assert run("rag", "remove", name, "-i", index).out == f"removed {name}\n"
    data = json.loads(run("rag", "status", "-i", index, "--json").out)
    assert [Path(document["path"]).name for document in data["documents"]] == ["mill.md"]


def test_what_is_skipped_is_told(run: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.md").write_bytes(b"\0")
    result = run("rag", "add", str(tmp_path / "bad.md"), "-i", str(tmp_path / "index"))
    assert result.code == 1
    assert result.err == f"skipped {(tmp_path / 'bad.md').resolve()}: a binary file\n"


@pytest.mark.parametrize(
    ("command", "complaint", "code"),
    [
        (["ask", "What?", "-i", "{folder}/none"], "expected an index of documents, found none; add documents", 1),
        (["status", "-i", "{folder}/none"], "expected an index of documents, found none; add some", 1),
        (["ask", " ", "-i", "{folder}/index"], "the question is empty", 2),
        (["ask", "What?", "-i", "{folder}/index", "--method", "fused"], "fused needs an embedder", 2),
        (["ask", "What?", "-i", "{folder}/index", "--passages", "0"], "passages: expected a number from 1", 2),
        (["add", "{folder}/nothing", "-i", "{folder}/index"], "expected a file or a folder, found none", 1),
        (["add", "{folder}", "-i", "{folder}/index", "--chunk-tokens", "3"], "size: expected a number of tokens", 2),
        (["remove", "{folder}/nothing", "-i", "{folder}/index"], "expected a document of the index, found none", 1),
        (["eval", "--book", "{folder}"], "expected the book's folder src, found no SUMMARY.md", 2),
    ],
)
@pytest.mark.usefixtures("index")
def test_what_is_wrong_is_told(run: Run, tmp_path: Path, command: list[str], complaint: str, code: int) -> None:
    result = run("rag", *(word.format(folder=tmp_path) for word in command))
    assert result.code == code
    assert complaint in result.err
    assert result.err.count("\n") == 1


def test_eval_prints_each_method(run: Run, tmp_path: Path) -> None:
    result = run("rag", "eval", "--no-answers", "--limit", "20", "--json")
    assert result.code == 0
    sets = json.loads(result.out)["sets"]
    assert set(sets) == {"book", "documents"}
    assert sets["documents"]["methods"]["lexical"]["recall_at_5"] == 1
    assert sets["book"]["default"] == "lexical"


def test_the_learners_packing_runs(tmp_path: Path, index: str) -> None:
    """In a process of its own: the learner's file must come before the engine's module."""
    code = tmp_path / "code"
    shutil.copytree(ROOT / "code", code)
    file = code / "week3" / "rag.py"
    text = file.read_text()
    undone = 'raise NotDone("w3.12.3")'
    assert text.count(undone) == 1
    file.write_text(text.replace(undone, 'print("packed by the learner")\n    return [0]'))
    ask = ["rag", "ask", "What is the height of the red mill?", "-i", index, "--code", str(code)]
    done = subprocess.run([sys.executable, "-m", "tiny_llm", *ask], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("packed by the learner\n")
    assert "[1] The mill" in done.stdout
    docs = ["rag", "add", str(tmp_path / "docs"), "-i", index, "--code", str(code)]
    done = subprocess.run([sys.executable, "-m", "tiny_llm", *docs], cwd=ROOT, capture_output=True, text=True)
    assert "2 unchanged" in done.stdout, done.stderr

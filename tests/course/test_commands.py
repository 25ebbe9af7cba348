"""The learner's commands, in a checkout of their own."""

import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
from watchfiles import Change

from tests.cli.conftest import Run
from tests.course.conftest import Solve
from tiny_llm.cli import main
from tiny_llm.course import progress, quiz, views, watch
from tiny_llm.course.catalog import course
from tiny_llm.course.desk import Desk

LAST = course().tasks[-1].id


@pytest.fixture(autouse=True)
def at_home(checkout: Path) -> None:
    """Every test here runs in a checkout."""


def test_from_nothing_to_the_first_passed_task(run: Run, solve: Solve, checkout: Path) -> None:
    assert run("course", "status").out.splitlines()[:2] == [
        "Week 1 ░░░░░░░░░░ 0/28 · about 360 min left",
        "  1.1 attention        0/2",
    ]
    assert run("course", "next").out.splitlines() == [
        "w1.1.1    which keys each query may see (about 10 min)",
        "write     causal_mask in code/week1/attention.py:16",
        "chapter   1.1 attention",
        "test      tiny-llm course test w1.1.1",
    ]
    result = run("course", "test")
    assert (result.code, result.out) == (0, "to do   w1.1.1 causal_mask: code/week1/attention.py:16\n")
    solve("w1.1.1")
    assert run("course", "test").out.splitlines() == [
        "passed  w1.1.1 causal_mask",
        "to do   w1.1.2 scaled_dot_product_attention: code/week1/attention.py:31",
    ]
    assert run("course", "status").out.splitlines()[0] == "Week 1 ░░░░░░░░░░ 1/28 · about 350 min left"
    assert (checkout / progress.FILE).read_text() == "# made by tiny-llm course\nw1.1.1 passed 0\n"
    assert "builds on" not in run("course", "next").out


def test_a_failed_test_is_told_and_ends_the_run(run: Run, solve: Solve) -> None:
    solve("w1.1.1", changes=(("key <= query", "key < query"),))
    solve("w1.1.2")
    result = run("course", "test")
    assert result.code == 1
    assert result.out.splitlines() == [
        "failed  w1.1.1 causal_mask",
        "w1.1.1 causal_mask: 4 of 16 differ, first at [t0 s0]",
        'yours False · expected True — matches the mistake "the diagonal is masked: a token does not see itself"',
        "row [t0]: yours (False False False False) · expected (True False False False)",
        "try: tiny-llm course hint w1.1.1",
    ]


def test_all_tasks(run: Run, solve: Solve) -> None:
    solve("w1.1.2", "w1.4.3")
    result = run("course", "test", "--all")
    assert result.code == 0
    lines = result.out.splitlines()
    assert len(lines) == len(course().tasks)
    assert [line for line in lines if line.startswith("passed")] == [
        "passed  w1.1.2 scaled_dot_product_attention",
        "passed  w1.4.3 silu",
    ]


def test_one_task(run: Run, solve: Solve) -> None:
    solve("w1.4.3")
    assert run("course", "test", "w1.4.3").out == "passed  w1.4.3 silu\n"
    result = run("course", "test", "w1.4.2")
    assert result.code == 1
    assert result.out.startswith("to do   w1.4.2 softmax: code/week1/ops.py:")
    result = run("course", "test", "w9.9.9")
    assert (result.code, result.err) == (1, f"error: w9.9.9: no such task; the first is w1.1.1, the last {LAST}\n")


def test_a_task_that_passed_and_fails_again_is_open_again(run: Run, solve: Solve, checkout: Path) -> None:
    solve("w1.1.1")
    run("course", "test")
    path = checkout / "code/week1/attention.py"
    path.write_text(path.read_text().replace("key <= query", "key < query"))
    run("course", "test")
    assert run("course", "next").out.startswith("w1.1.1 ")


def test_when_all_is_done(run: Run, checkout: Path) -> None:
    lines = [
        f"{task.id} {state} 0\n"
        for task, state in zip(course().tasks, ["skipped"] + (len(course().tasks) - 1) * ["passed"], strict=True)
    ]
    (checkout / progress.FILE).write_text("".join(lines))
    assert run("course", "next").out == "nothing: every task is passed or skipped\n"
    assert run("course", "status").out.splitlines()[0] == "Week 1 █████████░ 27/28 · all done"
    assert run("course", "hint").err == "error: no open task is left; name one, such as w1.1.1\n"


def test_hints_go_one_level_further_each_time(run: Run) -> None:
    shown = [run("course", "hint", "w1.1.2").out for _ in range(4)]
    assert [line[:20] for line in shown] == [f"w1.1.2 hint {n} of 3: "[:20] for n in (1, 2, 3, 3)]
    assert run("course", "hint", "w1.1.2", "--level", "1").out == shown[0]
    assert run("course", "hint").out.startswith("w1.1.1 hint 1 of 3: With 6 keys and 2 queries")
    assert run("course", "hint", "--level", "4").err == "error: w1.1.1: hints go from 1 to 3, found 4\n"


def test_diff_after_passing_or_giving_up(run: Run, solve: Solve) -> None:
    refused = run("course", "diff", "w1.4.3")
    assert (refused.code, refused.err) == (
        1,
        "error: w1.4.3 is not passed: `tiny-llm course hint w1.4.3`, or --give-up\n",
    )
    shown = run("course", "diff", "w1.4.3", "--give-up").out.splitlines()
    assert shown[:2] == ["--- yours: code/week1/ops.py", "+++ reference: tiny_llm/model/ops.py"]
    assert '-    raise NotDone("w1.4.3")' in shown
    assert "+    return x / (1 + mx.exp(-x))" in shown
    solve("w1.4.3")
    run("course", "test", "w1.4.3")
    assert run("course", "diff", "w1.4.3").out == "w1.4.3: yours is the reference's, word for word\n"


def test_skip_goes_on_and_test_takes_it_up_again(run: Run, solve: Solve) -> None:
    solve("w1.1.1", changes=(("key <= query", "key < query"),))
    assert run("course", "skip").out.startswith("w1.1.1 is skipped: the reference's causal_mask runs; ")
    assert run("course", "next").out.startswith("w1.1.2 ")
    assert run("course", "test").out.startswith("to do   w1.1.2")
    assert run("course", "status").out.splitlines()[:2] == [
        "Week 1 ░░░░░░░░░░ 0/28 · about 350 min left",
        "  1.1 attention        0/2  skipped: w1.1.1",
    ]
    assert run("course", "test", "w1.1.1").code == 1
    assert run("course", "next").out.startswith("w1.1.1 ")


def test_reset_of_a_task_leaves_the_others_and_saves_a_copy(run: Run, solve: Solve, checkout: Path) -> None:
    path = checkout / "code/week1/attention.py"
    solve("w1.1.1", "w1.1.2")
    before = path.read_text()
    run("course", "test")
    result = run("course", "reset", "w1.1.1")
    said = "w1.1.1 is as it was at the beginning; what you had is in code/saved/week1/attention.py"
    assert result.out == f"code/week1/attention.py: {said}\n"
    assert (checkout / "code/saved/week1/attention.py").read_text() == before
    assert path.read_text().count("raise NotDone(") == 3
    assert "(q * scale)" in path.read_text()
    assert run("course", "next").out.startswith("w1.1.1 ")


def test_reset_of_a_file_that_python_cannot_read(run: Run, checkout: Path) -> None:
    path = checkout / "code/week1/attention.py"
    fresh = path.read_text()
    path.write_text("def f(:\n")
    broken = run("course", "reset", "w1.1.1")
    assert (broken.code, broken.err) == (1, "error: code/week1/attention.py:1: syntax error, invalid syntax: def f(:\n")
    assert run("course", "reset", "attention.py").code == 0
    assert path.read_text() == fresh
    assert (checkout / "code/saved/week1/attention.py").read_text() == "def f(:\n"


def test_a_syntax_error_is_one_line(run: Run, checkout: Path) -> None:
    path = checkout / "code/week1/rope.py"
    path.write_text(path.read_text().replace("import math", "import math from here"))
    result = run("course", "test")
    assert (result.code, result.out) == (1, "")
    assert result.err == "error: code/week1/rope.py:6: syntax error, invalid syntax: import math from here\n"


def test_a_broken_file_of_another_chapter_is_told_where_it_is_needed(run: Run, solve: Solve, checkout: Path) -> None:
    """The tests of 1.6 import the sampler, which imports the learner's distribution.py."""
    solve("w1.6.1")
    path = checkout / "code/week1/distribution.py"
    path.write_text(path.read_text().replace("LOG2_E = 1.44", "LOG2_E = nothing + 1.44"))
    result = run("course", "test", "w1.6.1")
    assert result.code == 1
    assert "failed  w1.6.1 generate_naive\ncode/week1/distribution.py:" in result.out
    assert "NameError: name 'nothing' is not defined" in result.out


def test_another_folder(run: Run, solve: Solve, checkout: Path) -> None:
    solve("w1.1.1")
    (checkout / "code").rename(checkout / "mine")
    (checkout / "code/week1").mkdir(parents=True)
    assert run("course", "test", "w1.1.1", "--code", "mine").code == 1, "mine means code/"
    assert run("course", "test", "w1.1.1", "--code", "./mine").out == "passed  w1.1.1 causal_mask\n"
    result = run("course", "test", "--code", "./nowhere")
    assert (result.code, result.err) == (
        1,
        "error: ./nowhere: no such folder; --code mine takes code/ of the checkout\n",
    )


def test_stubs(run: Run, solve: Solve, checkout: Path) -> None:
    assert (run("course", "stubs", "--check").code, run("course", "stubs").out) == (0, "")
    solve("w1.1.1")
    result = run("course", "stubs", "--check")
    assert (result.code, result.out) == (1, "code/week1/attention.py is not what the sources give: solved, or stale\n")
    assert run("course", "stubs").out == (
        "code/week1/attention.py written, its former text is in code/saved/week1/attention.py\n"
    )
    assert run("course", "stubs", "--check").code == 0


def test_doctor(run: Run, checkout: Path) -> None:
    result = run("course", "doctor")
    assert result.code == 0
    lines = dict(line.split(maxsplit=2)[1:] for line in result.out.splitlines())
    assert lines["checkout"] == str(checkout)
    assert f"0 of {len(course().tasks)} tasks written" in result.out
    assert {"kernels", "weights", "MLX", "memory"} <= lines.keys()
    (checkout / "code/week1/rope.py").write_text("def f(:\n")
    result = run("course", "doctor")
    assert result.code == 1
    assert "fail" in result.out


def test_outside_of_a_checkout(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tiny_llm.course.catalog.PACKAGE", tmp_path / "elsewhere")
    result = run("course", "status")
    assert result.code == 1
    assert "the course needs a checkout of tiny-llm" in result.err


def test_a_progress_file_with_nonsense_is_told(run: Run, checkout: Path) -> None:
    (checkout / progress.FILE).write_text("w1.1.1 passed 1\n\nw1.1.2 done\n")
    result = run("course", "status")
    assert result.code == 1
    assert ".tiny-llm-progress:3: expected TASK open|passed|skipped HINTS, found 'w1.1.2 done'" in result.err


def test_help_names_every_command(run: Run) -> None:
    out = run("course", "--help").out
    for command in ("doctor", "status", "next", "test", "watch", "hint", "diff", "skip", "reset", "quiz", "stubs"):
        assert command in out


@pytest.mark.parametrize(
    ("arguments", "environment", "colours"), [([], "", True), ([], "1", False), (["--no-color"], "", False)]
)
def test_colour_only_at_a_terminal_that_wants_it(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], environment: str, colours: bool
) -> None:
    monkeypatch.setenv("NO_COLOR", environment)
    monkeypatch.setenv("TERM", "xterm")
    shown = Terminal()
    monkeypatch.setattr(sys, "stdout", shown)
    main(["course", *arguments, "test"])
    assert ("\x1b[" in shown.getvalue()) is colours


class Terminal(StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_a_hanging_test_can_be_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    def hang() -> None:
        raise KeyboardInterrupt

    watch.told(hang)
    assert capsys.readouterr().out == "stopped; another Ctrl-C ends watching\n"


def test_no_blocks_where_the_output_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ascii:
        encoding = "ascii"

    assert views.bar(8, 10) == "████████░░"
    monkeypatch.setattr(sys, "stdout", Ascii())
    assert views.bar(3, 28) == "#---------"


QUIZ = """
[[question]]
chapter = "1.1"
kind = "predict"
text = "Which?"
options = ["one", "two"]
answer = "two"
reason = "Because."

[[question]]
chapter = "1.2"
kind = "estimate"
text = "How many?"
answer = "7"
reason = "Count."
"""


@pytest.fixture
def questions(checkout: Path) -> Path:
    path = checkout / quiz.FILE
    path.parent.mkdir()
    path.write_text(QUIZ)
    return path


def test_quiz_without_a_terminal_prints_the_answers(run: Run, questions: Path) -> None:
    assert run("course", "quiz", "1.1").out.splitlines() == [
        "1 of 1, predict: Which?",
        "  a) one",
        "  b) two",
        "answer: two",
        "Because.",
        "",
    ]
    assert run("course", "quiz", "3.1").err == "error: 3.1: no questions; there are some for 1.1, 1.2\n"


def test_verdicts(questions: Path) -> None:
    with_options, without = quiz.read(questions)
    assert [quiz.verdict(with_options, reply) for reply in ("b", "B", "two", "a", "")] == ["right"] * 3 + ["not so", ""]
    assert quiz.verdict(without, "7") == ""


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        (
            'kind = "predict"',
            'kind = "guess"',
            "question 1: kind: expected one of predict, debug, estimate, found 'guess'",
        ),
        ('answer = "two"', 'answer = "three"', "question 1: answer: expected one of the options, found 'three'"),
        ('reason = "Count."', 'because = "x"', "question 2: expected"),
        ("[[question]]", "[[question", "cannot be read as TOML"),
        ("[[question]]", "[[query]]", "holds no question"),
    ],
)
def test_a_broken_quiz_is_told(run: Run, questions: Path, old: str, new: str, complaint: str) -> None:
    questions.write_text(QUIZ.replace(old, new))
    result = run("course", "quiz", "1.1")
    assert result.code == 1
    assert complaint in result.err


def test_watch_tests_on_each_save_and_only_then(
    solve: Solve, checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The watcher itself is replaced by a script of saves; a file that can't be read does not end it."""
    path = checkout / "code/week1/attention.py"

    def saves(*_: object, **__: object) -> Iterator[set[str]]:
        yield set()
        solve("w1.1.1")
        yield {"saved"}
        path.write_text(path.read_text() + "def f(:\n")
        yield {"saved"}

    monkeypatch.setattr(watch, "changes", saves)
    watch.watch(Desk.open())
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("(")]
    assert lines == [
        "to do   w1.1.1 causal_mask: code/week1/attention.py:16",
        "watching code",
        "passed  w1.1.1 causal_mask",
        "to do   w1.1.2 scaled_dot_product_attention: code/week1/attention.py:31",
        f"code/week1/attention.py:{len(path.read_text().splitlines())}: syntax error, invalid syntax: def f(:",
    ]


def test_the_filter_of_watch(checkout: Path) -> None:
    files = watch.LearnerFiles(checkout / "code")
    for name in ("week1/rope.py", "week2/kernels/axpby.metal", "week2/row.h"):
        assert files(Change.modified, str(checkout / "code" / name))
    assert not files(Change.modified, str(checkout / "code/week1/rope.py.part"))
    assert not files(Change.modified, str(checkout / "code/week1/__pycache__/rope.py"))
    assert not files(Change.modified, str(checkout / "code/saved/week1/rope.py"))

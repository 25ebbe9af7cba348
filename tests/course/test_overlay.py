"""The learner's files in the engine's place: what is theirs runs, what is missing is borrowed, and nothing else."""

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import mlx.core as mx
import pytest

from tests.course.conftest import ROOT, Solve
from tests.support import make_model
from tiny_llm.config import EngineConfig
from tiny_llm.course import CourseError, NotDone, overlay
from tiny_llm.course.overlay import Overlay, engine_anew

PROMPT = list(range(20, 30))


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "random-qwen3")


def tokens(model_dir: Path, ops: str = "plain") -> list[int]:
    """A greedy answer of the engine as it is imported now, by the loop of week 1."""
    engine = importlib.import_module("tiny_llm.engine.llm")
    llm = engine.load(model_dir, config=EngineConfig(ops=ops), lesson=True)
    return llm.generate(PROMPT, temperature=0, max_tokens=8, ignore_eos=True).tokens


def with_mine(checkout: Path, action: Callable[[], Any], skipped: set[str] | None = None) -> Any:
    with engine_anew(Overlay(checkout / "code", skipped or set())):
        return action()


def learners_attention() -> ModuleType:
    return importlib.import_module("tiny_llm.model.attention")


def test_with_nothing_solved_the_engine_is_the_reference(checkout: Path, model_dir: Path) -> None:
    assert with_mine(checkout, lambda: tokens(model_dir)) == tokens(model_dir)


def test_what_the_learner_wrote_runs_in_the_engine(checkout: Path, solve: Solve, model_dir: Path) -> None:
    """A wrong function, reached through borrowed ones, changes what the model says."""
    solve("w1.1.2", changes=(("(q * scale)", "q"),))
    assert with_mine(checkout, lambda: tokens(model_dir)) != tokens(model_dir)


@pytest.mark.parametrize(
    ("task", "change"),
    [
        ("w1.2.2", ("* self.inverse", "/ self.inverse")),  # a method
        ("w1.4.5", (" * weight", "")),  # behind the table ops.PLAIN
        ("w1.5.3", ("return x + ", "return ")),
        ("w1.6.3", ("position += 1", "sampled = sampled._replace(tokens=sampled.tokens * 0)")),
    ],
)
def test_every_kind_of_symbol_runs(
    checkout: Path, solve: Solve, model_dir: Path, task: str, change: tuple[str, str]
) -> None:
    solve(task)
    assert with_mine(checkout, lambda: tokens(model_dir)) == tokens(model_dir)
    path = checkout / "code" / overlay.course().task(task).file
    path.write_text(path.read_text().replace(*change))
    assert with_mine(checkout, lambda: tokens(model_dir)) != tokens(model_dir)


def test_the_fused_operations_do_not_run_the_learners(checkout: Path, solve: Solve, model_dir: Path) -> None:
    """Why --code chooses the plain ones."""
    solve("w1.3.2", changes=((", window)", ")"), ("scale, mask)", "scale)")))
    assert with_mine(checkout, lambda: tokens(model_dir, "fused")) == tokens(model_dir, "fused")
    assert with_mine(checkout, lambda: tokens(model_dir, "plain")) != tokens(model_dir, "plain")


def test_a_borrowed_function_calls_the_learners_one(checkout: Path, solve: Solve) -> None:
    solve("w1.1.1", changes=(("key <= query", "key >= query"),))
    q, k = mx.random.normal((4, 1, 2)), mx.random.normal((1, 4, 2))
    attention = with_mine(checkout, learners_attention)
    assert attention.causal_attention.__code__.co_filename == str(ROOT / "tiny_llm/model/attention.py")
    assert attention.causal_mask.__code__.co_filename == str(checkout / "code/week1/attention.py")
    whole, last = attention.causal_attention(q, k, k, 1.0), attention.causal_attention(q[3:], k, k, 1.0)
    assert mx.allclose(last[0], k[:, 3]), "the last query sees only itself where the mask looks ahead"
    assert mx.allclose(whole[3], last[0])


def test_a_skipped_task_is_borrowed_though_it_is_written(checkout: Path, solve: Solve, model_dir: Path) -> None:
    solve("w1.1.2", changes=(("(q * scale)", "q"),))
    assert with_mine(checkout, lambda: tokens(model_dir), {"w1.1.2"}) == tokens(model_dir)


def test_part_of_a_solution_that_still_raises_counts_as_not_done(checkout: Path, model_dir: Path) -> None:
    path = checkout / "code/week1/attention.py"
    path.write_text(path.read_text().replace("    # YOUR CODE (w1.1.1)", "    q = 1\n    if q:\n        pass\n    #"))
    assert "w1.1.1" in Overlay(checkout / "code").borrowed
    assert with_mine(checkout, lambda: tokens(model_dir)) == tokens(model_dir)


def test_the_engine_is_as_before_afterwards(checkout: Path) -> None:
    before = {name: module for name, module in sys.modules.items() if name.startswith("tiny_llm")}
    attention = with_mine(checkout, learners_attention)
    assert attention.__file__ == str(checkout / "code/week1/attention.py")
    assert learners_attention() is before["tiny_llm.model.attention"]
    assert {name: sys.modules[name] for name in before} == before
    from tiny_llm.model import attention as again

    assert again is before["tiny_llm.model.attention"]


@pytest.mark.parametrize("name", ["tiny_llm.train.optimizer", "tiny_llm.pocket.lessons.mix"])
def test_rooms_that_hold_no_learners_code_stay(name: str) -> None:
    before = importlib.import_module(name)
    with engine_anew():
        assert importlib.import_module(name) is before


def test_an_edit_in_the_same_second_counts(checkout: Path) -> None:
    """A bytecode cache compares seconds and sizes: a quick edit of the same length would run the old code."""
    path = checkout / "code/week1/attention.py"
    path.write_text(path.read_text() + "\nNUMBER = 1\n")
    stat = path.stat()
    assert with_mine(checkout, lambda: learners_attention().NUMBER) == 1
    path.write_text(path.read_text().replace("NUMBER = 1", "NUMBER = 2"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert with_mine(checkout, lambda: learners_attention().NUMBER) == 2


def test_the_banner(checkout: Path, solve: Solve) -> None:
    assert str(Overlay(checkout / "code")) == "yours: nothing yet · reference: the rest"
    solve("w1.1.1", "w1.1.2", "w1.2.3")
    assert str(Overlay(checkout / "code")) == "yours: attention, apply_rope · reference: the rest"
    assert str(Overlay(checkout / "code", {"w1.1.2"})) == "yours: causal_mask, apply_rope · reference: the rest"


def test_a_folder_with_one_file_is_enough(checkout: Path, solve: Solve, tmp_path: Path) -> None:
    solve("w1.1.1")
    other = tmp_path / "mine" / "week1"
    other.mkdir(parents=True)
    (checkout / "code/week1/attention.py").rename(other / "attention.py")
    mine = Overlay(other.parent)
    assert str(mine) == "yours: causal_mask · reference: the rest"
    with engine_anew(mine):
        assert importlib.import_module("tiny_llm.model.rope").__file__ == str(ROOT / "tiny_llm/model/rope.py")


def test_a_folder_with_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CourseError, match="none of the course's files is here, such as week1/attention.py"):
        Overlay(tmp_path)


BROKEN = [
    ("    raise NotDone(", "    raise NotDone((", "code/week1/attention.py:17: syntax error, '(' was never closed"),
    ("import mlx.core", "import mlx.kernel", "code/week1/attention.py:6: ModuleNotFoundError: No module named"),
    ("def causal_mask", "def causal_musk", "code/week1/attention.py: causal_mask (w1.1.1) is missing"),
    ("import mlx", "\N{NO-BREAK SPACE}import mlx", "code/week1/attention.py:6: syntax error, invalid non-printable"),
]


@pytest.mark.parametrize(("old", "new", "complaint"), BROKEN)
def test_a_file_that_cannot_run_is_told_by_name_and_line(checkout: Path, old: str, new: str, complaint: str) -> None:
    path = checkout / "code/week1/attention.py"
    path.write_text(path.read_text().replace(old, new, 1), encoding="utf-8")
    with pytest.raises(CourseError) as error:
        with_mine(checkout, learners_attention)
    assert str(error.value).startswith(complaint)


def test_the_learners_files_must_come_first(checkout: Path) -> None:
    with pytest.raises(CourseError, match=r"tiny_llm\.\S+ is imported already"):
        overlay.install(Overlay(checkout / "code"))


def test_not_done_needs_no_mlx() -> None:
    code = "import sys; from tiny_llm.course import NotDone; print('mlx' in sys.modules, NotDone('w1.1.1'))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert shown == "False w1.1.1 is not done yet\n"
    assert issubclass(NotDone, NotImplementedError)


def tiny_llm(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tiny_llm", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, env=environment)


def test_chat_on_the_learners_code(checkout: Path, solve: Solve, model_dir: Path) -> None:
    arguments = ["chat", "--model", str(model_dir), "--temperature", "0", "--max-tokens", "6"]
    solve("w1.1.1", "w1.1.2")
    reference, mine = (tiny_llm(*arguments, *more, stdin="hi\n") for more in (["--ops", "plain"], ["--code", "mine"]))
    assert mine.stderr.splitlines()[0] == "yours: attention · reference: the rest"
    assert (mine.returncode, mine.stdout) == (0, reference.stdout)
    path = checkout / "code/week1/attention.py"
    path.write_text(path.read_text().replace("(q * scale)", "(q * 9)"))
    wrong = tiny_llm(*arguments, "--code", "mine", stdin="hi\n")
    assert wrong.returncode == 0
    assert wrong.stdout != reference.stdout
    path.write_text(path.read_text().replace("(q * 9)", "(q * 9"))
    broken = tiny_llm(*arguments, "--code", "mine", stdin="hi\n")
    assert (broken.returncode, broken.stdout) == (1, "")
    assert broken.stderr.startswith("error: code/week1/attention.py:31: syntax error")
    assert len(broken.stderr.splitlines()) == 1


ANSWER = ["--temperature", "0", "--max-tokens", "6"]
SPOILED_GENERATE = ("position += 1", "sampled = sampled._replace(tokens=sampled.tokens * 0)")


def chat_and_generate(model_dir: Path, *options: str) -> list[subprocess.CompletedProcess[str]]:
    """The answers of both commands, each in a process of its own."""
    arguments = ["--model", str(model_dir), *ANSWER, *options]
    chat = tiny_llm("chat", *arguments, stdin="hi\nand the fox\n")
    return [chat, tiny_llm("generate", *arguments, "the quick brown fox")]


def spoil(checkout: Path, file: str, change: tuple[str, str]) -> None:
    path = checkout / "code" / file
    text = path.read_text()
    assert change[0] in text
    path.write_text(text.replace(*change))


def test_the_learners_generate_answers_chat_and_generate(checkout: Path, solve: Solve, model_dir: Path) -> None:
    solve("w1.6.2", "w1.6.3")
    reference = chat_and_generate(model_dir, "--ops", "plain")
    mine = chat_and_generate(model_dir, "--code", "mine")
    for theirs, done in zip(reference, mine, strict=True):
        assert done.stderr.splitlines()[0] == "yours: prefill, generate_tokens · reference: the rest"
        assert (done.returncode, done.stdout) == (0, theirs.stdout)
    spoil(checkout, "week1/generate.py", SPOILED_GENERATE)
    for theirs, wrong in zip(reference, chat_and_generate(model_dir, "--code", "mine"), strict=True):
        assert wrong.returncode == 0
        assert wrong.stdout != theirs.stdout


def test_once_the_learners_scheduler_runs_the_loop_answers(checkout: Path, solve: Solve, model_dir: Path) -> None:
    """A generate that is wrong no longer matters then, and a wrong scheduler does."""
    solve("w1.6.2", "w1.6.3", "w3.1.4", "w3.2.2")
    spoil(checkout, "week1/generate.py", SPOILED_GENERATE)
    reference = chat_and_generate(model_dir, "--ops", "plain")
    mine = chat_and_generate(model_dir, "--code", "mine")
    banner = "yours: prefill, generate_tokens, Scheduler.finish, Scheduler.schedule · reference: the rest"
    for theirs, done in zip(reference, mine, strict=True):
        assert done.stderr.splitlines()[0] == banner
        assert (done.returncode, done.stdout) == (0, theirs.stdout)
    spoil(checkout, "week3/continuous_batching.py", ("self._decode(plan)", "raise ValueError('my schedule')"))
    for wrong in chat_and_generate(model_dir, "--code", "mine"):
        assert "my schedule" in wrong.stderr


@pytest.mark.parametrize(
    ("tasks", "lesson"),
    [
        ((), False),
        (("w1.1.1", "w1.6.1"), False),
        (("w1.6.2",), True),
        (("w1.6.3",), True),
        (("w1.6.2", "w1.6.3", "w3.1.1", "w3.1.2"), True),
        (("w1.6.2", "w1.6.3", "w3.1.4"), False),
        (("w1.6.3", "w3.2.2"), False),
        (("w3.1.4", "w3.2.2"), False),
    ],
)
def test_which_loop_answers(checkout: Path, solve: Solve, tasks: tuple[str, ...], lesson: bool) -> None:
    solve(*tasks)
    assert Overlay(checkout / "code").runs_lesson is lesson


def test_a_skipped_generate_is_not_the_learners(checkout: Path, solve: Solve) -> None:
    solve("w1.6.2", "w1.6.3")
    assert not Overlay(checkout / "code", {"w1.6.2", "w1.6.3"}).runs_lesson
    solve("w3.1.4", "w3.2.2")
    assert not Overlay(checkout / "code").runs_lesson
    assert Overlay(checkout / "code", {"w3.1.4", "w3.2.2"}).runs_lesson


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ops", "fused"], "--ops: fused operations are not the exercises"),
        (["--activations", "int8"], "--activations: products in int8 are not the exercises"),
    ],
)
def test_what_would_replace_the_code_is_refused(run: Any, options: list[str], message: str) -> None:
    """int8 activations took the CPU kernels for the whole model, and none of the learner's code ran."""
    result = run("generate", "x", *options, "--code", "mine", "--model", "nowhere")
    assert result.code == 2
    assert message in result.err


def pytest_in(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    options = ["-p", "no:cacheprovider", "--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml"), "--tb=short"]
    command = [sys.executable, "-m", "pytest", *options, str(ROOT / "tests/week1/test_1_1_attention.py"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    return subprocess.run(command, capture_output=True, text=True, cwd=checkout, env=environment)


def test_pytest_on_the_learners_code(checkout: Path, solve: Solve) -> None:
    solve("w1.1.1", changes=(("key <= query", "key < query"),))
    done = pytest_in(checkout, "--code", "mine")
    assert done.returncode == 1
    assert "yours: causal_mask · reference: the rest" in done.stdout
    assert "7 failed" in done.stdout
    assert 'matches the mistake "the diagonal is masked' in done.stdout
    assert "NotDone: w1.1.2 is not done yet" in done.stdout
    assert "course/check.py" not in done.stdout, "frames of the checker are hidden"
    path = checkout / "code/week1/attention.py"
    path.write_text(path.read_text() + "def f(:\n")
    broken = pytest_in(checkout, "--code", "mine")
    assert broken.returncode == 4
    assert broken.stderr.startswith("ERROR: code/week1/attention.py:")

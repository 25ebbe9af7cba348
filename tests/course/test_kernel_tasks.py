"""Exercises in .metal files: in the engine, half done, wrong, and told as a lesson."""

import importlib
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from tests.cli.conftest import Run
from tests.course.conftest import ROOT
from tests.support import make_model
from tiny_llm.config import EngineConfig
from tiny_llm.course import CourseError, NotDone, kernel, learner, markers, mistakes, runner
from tiny_llm.course.catalog import course, read_source
from tiny_llm.course.kernel import Launchers
from tiny_llm.course.overlay import Overlay, engine_anew

KERNELS = [task for task in course().tasks if task.is_kernel and not task.is_native]


@pytest.fixture(autouse=True)
def own_cache(kernel_cache: None) -> None:
    """Every test here runs kernels."""


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "random-qwen3")


def mine(checkout: Path, name: str, *changes: tuple[str, str], done: bool = True) -> Path:
    """The learner's file of a kernel: solved (or as it is) and then changed."""
    path = checkout / "code/week2/kernels" / f"{name}.metal"
    source = f"tiny_llm/kernels/metal/{name}.metal"
    text = markers.without_markers(read_source(source), source) if done else path.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return path


def logits(checkout: Path, model_dir: Path, kernels: str | None = "sim") -> mx.array:
    """What the model says on the learner's files."""
    with engine_anew(Overlay(checkout / "code")):
        llm = importlib.import_module("tiny_llm.engine.llm").load(
            model_dir, config=EngineConfig("plain", kernels=kernels)
        )
        return llm.model(mx.arange(9), llm.kept()[0])


def test_the_learners_kernel_runs_in_the_real_model(checkout: Path, model_dir: Path) -> None:
    unsolved = logits(checkout, model_dir)
    mine(checkout, "rms_norm")
    assert mx.allclose(logits(checkout, model_dir), unsolved, atol=1e-5)
    mine(checkout, "rms_norm", ("* scale[k]", "* scale[k] * T(0.5)"))
    assert not mx.allclose(logits(checkout, model_dir), unsolved, atol=1e-2)
    assert mx.allclose(logits(checkout, model_dir, kernels=None), unsolved, atol=1e-4), "not asked for, not run"


def test_half_of_a_file_is_the_learners(checkout: Path, model_dir: Path) -> None:
    """Two exercises in one file: what is not done is the reference's, between the learner's own lines."""
    path = checkout / "code/week2/kernels/rms_norm.metal"
    solution = """  value = simd_sum(value);
  if (lane == 0) {
    parts[simdgroup] = 4 * value;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  value = simd_sum(lane < SIMDGROUPS ? parts[lane] : 0.0f);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  return value;"""
    before = logits(checkout, model_dir)
    mine(checkout, "rms_norm", ('#error "NotDone: w2.2.2"', solution), done=False)
    overlay = Overlay(checkout / "code")
    assert "w2.2.2" not in overlay.undone and "w2.2.3" in overlay.undone
    assert not mx.allclose(logits(checkout, model_dir), before, atol=1e-2), "four times the squares"
    text = kernel.filled(path.read_text(), course().of_file("week2/kernels/rms_norm.metal"), overlay.borrowed)
    assert "held[k] * held[k]" in text and "4 * value" in text
    assert len(text.splitlines()) == len(path.read_text().splitlines()), "lines keep their numbers"


def test_lines_are_the_learners_where_a_part_is_borrowed(checkout: Path, run: Run) -> None:
    """The part above is longer in the reference than its stub."""
    path = mine(checkout, "rms_norm", ('#error "NotDone: w2.2.3"', "  float held[EACH];\n  x = 1;"), done=False)
    line = path.read_text().splitlines().index("  x = 1;") + 1
    result = run("course", "test", "w2.2.3")
    assert result.code == 1
    assert f"does not compile\ncode/week2/kernels/rms_norm.metal:{line}: " in result.out
    assert f"  {line} | x = 1;" in result.out


def test_a_skipped_kernel_is_the_references(checkout: Path, model_dir: Path) -> None:
    """With one task of a file skipped though it is written, all of that file: nobody can tell whose line is whose."""
    mine(checkout, "rms_norm", ("* scale[k]", "* scale[k] * T(0.5)"))
    overlay = Overlay(checkout / "code", {"w2.2.3"})
    assert {"w2.2.2", "w2.2.3"} <= overlay.borrowed and overlay.own_kernels == []
    with engine_anew(overlay):
        launch = importlib.import_module("tiny_llm.kernels.launch")
        text = launch.Kernel("rms_norm", "x", "out").source.body
    assert "T(0.5)" not in text


def test_not_done_is_told_by_the_compiler() -> None:
    task = course().task("w2.2.1")
    launchers = Launchers(task, markers.stub(read_source(task.source), task.source))
    with pytest.raises(NotDone, match=r"w2\.2\.1 is not done yet"):
        launchers.axpby(mx.ones(4), mx.ones(4), 1.0, 1.0)


def test_an_undone_exercise_in_kernels_check(checkout: Path, run: Run) -> None:
    result = run("kernels", "check", "code/week2/kernels/rms_norm.metal")
    assert (result.code, result.out) == (1, "rms_norm: to do: w2.2.2, w2.2.3\n")


FAULTS = [  # task, mistake, the kind, a line of the reference's solution that is blamed, a part of the advice
    ("w2.2.1", "the last group is not guarded", "out of bounds", "out[i] =", "Guard the index"),
    ("w2.2.1", "the place within the threadgroup", "race", "out[i] =", "No barrier orders threadgroups"),
    ("w2.2.2", "the barrier before reading", "race", "parts[simdgroup] =", "Put threadgroup_barrier("),
    (
        "w2.2.2",
        "the barrier is for one simdgroup",
        "race",
        "value = simd_sum(lane",
        "simdgroup_barrier orders the lanes",
    ),
    (
        "w2.2.2",
        "the barrier orders device memory",
        "race",
        "value = simd_sum(lane",
        "does not order threadgroup memory",
    ),
    ("w2.2.2", "all 32 lanes read", "out of bounds", "value = simd_sum(parts", "Guard the index"),
    (
        "w2.2.3",
        "threads without a column",
        "barrier divergence",
        "threadgroup_barrier",
        "Every thread of a threadgroup",
    ),
    ("w2.2.3", "columns beyond D are written", "out of bounds", "out[row * D + c] =", "Guard the index"),
    ("w2.3.2", "the sum is not written", "output not written", "", "Let a thread write each element"),
]


@pytest.mark.parametrize(("task_id", "mistake", "kind", "blamed", "advice"), FAULTS)
def test_a_fault_is_a_lesson(
    checkout: Path, run: Run, task_id: str, mistake: str, kind: str, blamed: str, advice: str
) -> None:
    """Kind, file and line as the learner has them, the line itself, why it matters, what to do, and the mistake."""
    task = course().task(task_id)
    name = next(name for name in mistakes.names(task) if name.startswith(mistake))
    text = markers.without_markers(mistakes.mistaken_source(task, name), task.source)
    path = checkout / "code" / task.file
    path.write_text(text)
    result = run("course", "test", task_id)
    assert result.code == 1
    head, *rest = result.out.splitlines()[1:]
    assert f"{kind} at code/{task.file}" in head
    if blamed:
        number = int(head.rpartition(":")[2])
        assert text.splitlines()[number - 1].strip().startswith(blamed)
        assert any(line.startswith(f"  {number} | {blamed}") for line in rest)
    assert f'— matches the mistake "{name}"' in result.out
    assert kernel.LESSONS[kind] in rest and any(advice in line for line in rest)


def test_an_endless_loop_ends(checkout: Path) -> None:
    """The simulator's time limit, told as a lesson."""
    task = course().task("w2.2.1")
    text = "// BODY\nvolatile int k = 0;\nwhile (k == 0) {\n}\nout[0] = x[0];\n"
    launchers = Launchers(task, text)
    simulator = launchers._simulator()
    simulator.seconds = 0.3
    with pytest.raises(ValueError) as error:
        launchers.axpby(mx.ones(4), mx.ones(4), 1.0, 1.0, on=simulator)
    lines = kernel.lesson(error.value, None)
    assert lines is not None and lines[0].startswith("time limit at axpby.metal")
    assert kernel.LESSONS["time limit"] in lines


def test_an_error_that_is_no_kernels_has_no_lesson() -> None:
    assert kernel.lesson(ValueError("axpby x: expected float32"), None) is None


def test_every_fault_of_the_simulator_has_words() -> None:
    """Some need no lesson beyond the remedy: what they say is plain."""
    from tiny_llm.kernels.sim.findings import KINDS

    plain = {"", "misaligned access", "too much threadgroup memory", "memory fault", "stack overflow"}
    assert set(KINDS) - kernel.LESSONS.keys() == plain


def test_two_mistakes_of_one_kind_have_two_names() -> None:
    """A race before the barrier and one after it differ in who reads and who writes, not in the places."""
    task = course().task("w2.2.2")
    x, weight = mx.random.normal((64, 300)), mx.ones(300)
    seen = []
    for name in mistakes.names(task)[:4]:
        with pytest.raises(ValueError) as error:
            mistakes.mistaken(task, name).rms_norm(x, weight, 1e-6)
        seen.append(kernel.signature(error.value))
    assert all(a != b for i, a in enumerate(seen) for b in seen[:i])


def test_reset_diff_and_place(checkout: Path, run: Run) -> None:
    path = mine(checkout, "axpby")
    assert run("course", "test", "w2.2.1").out == "passed  w2.2.1 axpby\n"
    assert run("course", "diff", "w2.2.1").out == "w2.2.1: yours is the reference's, word for word\n"
    path.write_text(path.read_text().replace("uint i", "const uint i"))
    shown = run("course", "diff", "w2.2.1").out
    assert "-const uint i = thread_position_in_grid.x;\n+uint i = thread_position_in_grid.x;" in shown
    said = run("course", "reset", "w2.2.1").out
    assert said.endswith("what you had is in code/saved/week2/kernels/axpby.metal\n")
    assert learner.undone(path.read_text(), path) == {"w2.2.1"}
    assert run("course", "test", "w2.2.1").out == "to do   w2.2.1 axpby: code/week2/kernels/axpby.metal:4\n"


def test_a_reset_takes_all_tasks_of_a_kernels_file(checkout: Path, run: Run) -> None:
    mine(checkout, "rms_norm")
    assert run("course", "test", "w2.2.2").code == run("course", "test", "w2.2.3").code == 0
    run("course", "reset", "w2.2.2")
    assert (checkout / ".tiny-llm-progress").read_text().splitlines()[1:] == ["w2.2.2 open 0", "w2.2.3 open 0"]


def test_the_banner_says_when_kernels_do_not_run(checkout: Path, run: Run, model_dir: Path) -> None:
    import subprocess
    import sys

    mine(checkout, "swiglu")

    def banner(*more: str) -> list[str]:
        options = ["--model", str(model_dir), "--max-tokens", "1", "--code", "mine", *more]
        code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tiny_llm.cli import main; sys.exit(main())"
        command = [sys.executable, "-c", code, "generate", "hi", *options]
        return subprocess.run(command, capture_output=True, text=True, cwd=checkout).stderr.splitlines()

    assert banner()[:2] == [
        "yours: swiglu · reference: the rest",
        "swiglu: not in use; --kernels sim runs them",
    ]
    assert banner("--kernels", "sim")[:1] == ["yours: swiglu · reference: the rest"]
    assert banner("--kernels", "sim")[1].startswith(
        "kernels on sim: norm, rotation, gate, attention · MLX's operations"
    )


def test_a_file_that_is_no_text(checkout: Path) -> None:
    (checkout / "code/week2/kernels/axpby.metal").write_bytes(b"\xff\xfe")
    with pytest.raises(CourseError, match=r"axpby\.metal: expected UTF-8 text"):
        Overlay(checkout / "code")


def test_two_bodies_in_one_file(checkout: Path, run: Run) -> None:
    path = mine(checkout, "axpby")
    path.write_text(path.read_text() + "// BODY\n")
    result = run("course", "test", "w2.2.1")
    assert result.code == 1
    assert "found 2 lines `// BODY`" in result.out + result.err


@pytest.mark.parametrize("task", KERNELS, ids=lambda task: task.id)
def test_each_runs_in_check_mode(task: Any) -> None:
    """The launchers under test are in check mode, with whole groups."""
    simulator = Launchers(task)._simulator()
    assert simulator.check and simulator.whole_groups
    assert runner.tests_of(task)

"""Exercises in C++: in the engine, wrong, endless, crashing, and told as a lesson."""

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from tests.cli.conftest import Run
from tests.course.conftest import ROOT
from tests.support import make_model
from tests.week2.test_2_11_row import matrix
from tiny_llm.course import CourseError, NotDone, kernel, learner, markers, mistakes, native, runner
from tiny_llm.course.catalog import course, read_source
from tiny_llm.course.native import CodedRows, Native
from tiny_llm.course.overlay import Overlay, engine_anew
from tiny_llm.kernels.cpu import build
from tiny_llm.kernels.sim import compiler

TASK = course().task("w2.11.1")
SOLVED = markers.without_markers(read_source(TASK.source), TASK.source)
LINES = SOLVED.splitlines()
try:
    WIDTHS = list(native.widths())
except CourseError as error:
    pytest.skip(str(error), allow_module_level=True)


@pytest.fixture(autouse=True)
def own_cache(kernel_cache: None) -> None:
    """Every test here compiles."""


def changed(*changes: tuple[str, str]) -> str:
    text = SOLVED
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def mine(checkout: Path, *changes: tuple[str, str]) -> Path:
    """The learner's file: solved and then changed."""
    path = checkout / "code/week2/row.h"
    path.write_text(changed(*changes))
    return path


def number_of(part: str) -> int:
    """The line of the solved file that has `part`."""
    (number,) = (i for i, line in enumerate(LINES, 1) if part in line)
    return number


def test_unsolved_it_is_told_before_anything_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "compiled", None)
    stub = Native(TASK, markers.stub(read_source(TASK.source), TASK.source))
    with pytest.raises(NotDone, match=r"w2\.11\.1 is not done yet"):
        stub.row_product(matrix(16, 32, 4, 32), 0, np.ones(32, np.float32), 8)


def test_every_width_of_this_machine_is_compiled() -> None:
    """Eight rows at a time everywhere, sixteen where the processor has AVX-512."""
    known = Path("/proc/cpuinfo").read_text() if sys.platform == "linux" else ""
    assert ([8, 16] if "avx512f" in known else [8]) == WIDTHS
    w = matrix(16, 32, 4, 32)
    for lanes in WIDTHS:
        assert Native(TASK).row_product(w, 0, np.ones(32, np.float32), lanes).shape == (lanes,)


def test_words_and_scalings_lie_as_the_engine_lays_them_out() -> None:
    """Against MLX's own packing: a word of row r at (block r / lanes, word, lane r % lanes)."""
    dense = mx.random.normal((19, 64), key=mx.random.key(0)).astype(mx.float16)
    words, scales, biases = mx.quantize(dense, group_size=32, bits=4)
    codes = (np.array(words)[:, :, None] >> (4 * np.arange(8, dtype=np.uint32)) & 15).reshape(19, 64)
    w = CodedRows(codes, 4, scales, biases)
    numbers, scalings = w.numbers(8), w.scalings(8)
    assert numbers.shape == (3, 8, 8) and scalings.shape == (3, 2, 2, 8)
    assert (numbers[2, :, 1] == np.array(words)[17]).all() and not numbers[2, :, 3:].any()
    assert (scalings[1, :, 0, 4].view(np.float16) == np.array(scales)[12]).all()
    assert (scalings[1, :, 1, 4].view(np.float16) == np.array(biases)[12]).all()


FAULTS = [  # what the learner wrote in place of what, the kind, the line that is blamed, what is told
    (
        ("x.sums[group]", "x.sums[group + 30]"),
        "an array's end is passed",
        "total += ",
        "touches sums[30], of an array of 1 numbers",
    ),
    (
        ("x.x[k + n]", "x.x[k + n + 40]"),
        "an array's end is passed",
        "for (int n",
        "touches x[44], of an array of 32 numbers",
    ),
    (
        ("scaling_of(w, block, group)", "scaling_of(w, block + 9, group)"),
        "an array's end is passed",
        "Scaling s",
        "touches scalings[",
    ),
    (
        ("Floats total = {};", "Floats total = {}; ((float*)x.x)[3] = 0;"),
        "an input is written",
        "Floats total",
        "writes x[3]",
    ),
    (
        (", words += LANES)", ", words -= LANES)"),
        "a word of another block is read",
        "Words v",
        "before those of block 0",
    ),
    (("words += LANES", "words += LANES / 2"), "a word is read again", "Words v", "of which some were read before"),
    (
        ("Floats total = {};", "Floats total = {}; for (volatile int i = 0;; i++) {}"),
        "does not end",
        "Floats total",
        "was still running after 1 s",
    ),
    (
        ("Floats total = {};", "Floats total = {}; *(volatile int*)8 = 1;"),
        "crashes",
        "Floats total",
        "SIGSEGV, Segmentation fault",
    ),
    (("Floats total = {};", "Floats total = {}; __builtin_abort();"), "crashes", "", "SIGABRT"),
]


@pytest.mark.parametrize(("change", "kind", "blamed", "told"), FAULTS, ids=lambda value: str(value)[:40])
def test_a_fault_is_a_lesson(
    checkout: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    change: tuple[str, str],
    kind: str,
    blamed: str,
    told: str,
) -> None:
    """Kind, file and line as the learner has them, and the line itself; and the test goes on to its end.

    clang does not tell of reads of whole vectors, and joins what the functions for 4 and 8 bits have in common.
    """
    monkeypatch.setattr(native, "SECONDS", 1)
    mine(checkout, change)
    result = run("course", "test", "w2.11.1")
    assert result.code == 1
    assert "Traceback" not in result.out + result.err
    if compiler.is_clang() and kind.startswith("a word"):
        return
    head, *rest = result.out.splitlines()[1:]
    assert f"8 lanes: {kind} at code/week2/row.h" in head
    assert told in rest[0]
    if blamed and shutil.which("addr2line") and not compiler.is_clang():
        number = int(head.rpartition(":")[2])
        assert number == number_of(blamed)
        assert any(line.startswith(f"  {number} | {blamed}") for line in rest)


def test_a_file_that_does_not_compile_is_told_with_its_lines(checkout: Path, run: Run) -> None:
    mine(checkout, ("fetch_ahead(words);", "fetch_ahed(words);"), ("return total;", "return total"))
    result = run("course", "test", "w2.11.1")
    assert result.code == 1
    head, *rest = result.out.splitlines()[1:]
    assert head.endswith("8 lanes: does not compile")
    number = number_of("fetch_ahead(words)")
    assert rest[0].startswith(f"code/week2/row.h:{number}: ") and "fetch_ahed" in rest[0]
    assert rest[1] == f"  {number} | fetch_ahed(words);"
    assert "matches the mistake" not in result.out


def test_a_missing_return_does_not_compile(checkout: Path, run: Run) -> None:
    """Left to run, such a function would go on into whatever stands behind it."""
    mine(checkout, ("  return total;\n", ""))
    assert "does not compile\ncode/week2/row.h:" in run("course", "test", "w2.11.1").out


def test_a_program_that_ends_early_is_a_fault() -> None:
    text = changed(("Floats total = {};", "Floats total = {}; __builtin_exit(0);"))
    text = text.replace('#include "weight.h"', '#include "weight.h"\n#include <cstdlib>').replace("__builtin_", "")
    with pytest.raises(ValueError) as error:
        Native(TASK, text).row_product(matrix(16, 32, 4, 32), 0, np.ones(32, np.float32), 8)
    lines = kernel.lesson(error.value, None)
    assert lines is not None and "without a result" in lines[1]


MUTANTS = [
    ("group < w.groups()", "group < w.groups() - (w.groups() > 1)"),
    ("int group = 0", "int group = w.groups() > 2"),
    ("k < (group + 1) * w.group", "k < (group + 1) * w.group - CODES"),
    ("(32 - BITS)", "(31 - BITS)"),
    ("(32 - BITS)", "(33 - BITS)"),
    ("CODES - 1]", "CODES - 2]"),
    ("x.x[k + n]", "x.x[k + n + 1]"),
    ("x.x[k + n]", "x.x[k + CODES - 1 - n]"),
    ("n < CODES - 1", "n < CODES - 2"),
    ("int n = 0", "int n = 1"),
    ("sums[n % 4] +=", "sums[n % 4] ="),
    ("sums[n % 4] +=", "sums[n % 4] -="),
    ("sums[n % 4] +=", "sums[n % 3] -="),
    ("sums[3] +=", "sums[3] ="),
    ("(sums[0] + sums[1])", "(sums[0] - sums[1])"),
    ("(sums[0] + sums[1])", "sums[0]"),
    ("+ s.bias *", "- s.bias *"),
    ("s.scale * (", "(float)1 * ("),
    ("total += s.scale", "total -= s.scale"),
    ("scaling_of(w, block, group)", "scaling_of(w, block, w.groups() - 1)"),
    ("x.sums[group]", "x.sums[w.groups() - 1]"),
    ("s.bias * x.sums[group]", "(s.bias[0] - Floats{}) * x.sums[group]"),
    ("s.scale * (", "(s.scale[1] - Floats{}) * ("),
    ("return total;", "for (int i = 0; i < LANES; i++) total[i] = (float)(_Float16)total[i];\n  return total;"),
    ("return total;", "for (int i = 0; i < LANES; i++) total[i] = total[LANES - 1 - i];\n  return total;"),
    ("Scaling s =", "for (Floats& c : sums) c = load_rounded(c);\n    Scaling s ="),
    ("total += s.scale", "total = load_rounded(total);\n    total += s.scale"),
    ("to_floats(v & (CODE << (BITS * n)))", "to_floats(v & (CODE << (BITS * n))) * (n % 3 ? 1.f : 1.0001f)"),
    ("Words v = load_as<Words>(words)", "Words v = load_as<Words>(words) & 0x7fffffff"),
    ("Words v = load_as<Words>(words)", "Words v = load_as<Words>(words) | 1"),
]
ROUNDED = """
inline Floats load_rounded(Floats v) {
  for (int i = 0; i < LANES; i++) v[i] = (float)(_Float16)v[i];
  return v;
}
"""


@pytest.fixture(scope="module")
def mutants() -> str:
    """All of them in one header."""
    return native.together([ROUNDED + changed(mutant) for mutant in MUTANTS])


@pytest.mark.parametrize("number", range(len(MUTANTS)), ids=lambda i: " → ".join(MUTANTS[i])[:60])
def test_a_mutant_does_not_pass(mutants: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparisons, ±1, dropped terms, swapped operands, other axes, half precision."""
    monkeypatch.setattr(mistakes, "names", lambda task: [])
    result = runner.run_task(TASK, Native(TASK, mutants, number))
    assert result.state == "failed", MUTANTS[number]


def test_the_learners_row_is_compiled_into_the_engine(checkout: Path) -> None:
    """In the place of the reference's, and as a part of the key; but not while it is not done, or skipped."""
    usual = build.folder()
    path = checkout / "code/week2/row.h"

    def folder(*skipped: str) -> Path:
        with engine_anew(Overlay(checkout / "code", set(skipped))):
            module = importlib.import_module("tiny_llm.kernels.cpu.build")
            assert module.replaced == ({} if skipped or "NotDone" in path.read_text() else {"row.h": path})
            return module.folder()

    assert folder() == usual
    mine(checkout, ("s.bias *", "2.f * s.bias *"))
    doubled = folder()
    assert doubled != usual and folder("w2.11.1") == usual
    mine(checkout, ("s.bias *", "3.f * s.bias *"))
    assert folder() not in (usual, doubled)


def tiny_llm(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tiny_llm", *arguments, "--code", "mine"]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=checkout)


def test_the_learners_row_answers(checkout: Path, tmp_path: Path) -> None:
    """With --kernels cpu, and not without it; a wrong one answers wrongly."""
    try:
        build.kernels()
    except build.NoKernelsError as error:
        pytest.skip(str(error))
    model = make_model(tmp_path / "packed", quantize={"bits": 4, "group_size": 32})
    arguments = ["generate", "hello", "--model", str(model), "--temperature", "0", "--max-tokens", "8"]
    path = mine(checkout)
    path.write_text(read_source(TASK.source))  # with its markers it is the engine's own, which is compiled already
    right = tiny_llm(checkout, *arguments, "--kernels", "cpu")
    assert right.returncode == 0, right.stderr
    assert right.stderr.splitlines()[:2] == [
        "yours: the same product on a CPU · reference: the rest",
        f"kernels on cpu: layers, products, attention, embedding ({build.threads()} threads)",
    ]
    mine(checkout, ("total += s.scale", "total -= s.scale"))
    wrong = tiny_llm(checkout, *arguments, "--kernels", "cpu")
    assert wrong.returncode == 0, wrong.stderr
    assert wrong.stdout != right.stdout
    idle = tiny_llm(checkout, *arguments)
    assert idle.stderr.splitlines()[1] == "row_product: not in use; --kernels cpu runs it"
    assert idle.stdout == right.stdout


def test_a_header_that_does_not_compile_is_one_line_in_the_chat(checkout: Path, tmp_path: Path) -> None:
    mine(checkout, ("fetch_ahead(words);", "fetch_ahed(words);"))
    done = tiny_llm(checkout, "generate", "hello", "--kernels", "cpu")
    assert done.returncode == 1
    number = number_of("fetch_ahead(words)")
    assert done.stderr.splitlines()[-1].startswith(f"error: code/week2/row.h:{number}: ")
    assert "fetch_ahed" in done.stderr


@pytest.mark.parametrize(
    ("trial", "complaint"),
    [
        ("while True: pass", "it had not ended after 0.5 s"),
        ("import os; os.abort()", "it crashed, signal 6"),
        ("raise SystemExit(7)", "exit 7"),
        ("assert False, 'far off'", "AssertionError: far off"),
    ],
)
def test_a_trial_that_fails_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trial: str, complaint: str
) -> None:
    """Nothing is loaded that hangs or crashes, nor tried again."""
    monkeypatch.setattr(build, "TRIAL", trial)
    monkeypatch.setattr(build, "TRIAL_SECONDS", 0.5)
    monkeypatch.setitem(build.replaced, "row.h", Path.cwd() / "code/week2/row.h")
    fault = tmp_path / "fault"
    with pytest.raises(build.NoKernelsError) as error:
        build._try(tmp_path / "kernels.so", fault)
    assert str(error.value) == fault.read_text()
    assert str(error.value) == f"a trial of the compiled kernels, with code/week2/row.h, failed: {complaint}"


def test_pytest_on_the_learners_row(checkout: Path) -> None:
    """The tests' own files must not import the engine before the learner's files take its place."""
    mine(checkout, (" + s.bias * x.sums[group]", ""))
    options = ["-p", "no:cacheprovider", "--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml"), "-n0"]
    command = [sys.executable, "-m", "pytest", *options, str(ROOT / TASK.test), "--code", "mine"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=checkout, env=environment)
    assert done.returncode == 1, done.stderr
    assert "yours: the same product on a CPU · reference: the rest" in done.stdout
    assert 'matches the mistake "the bias is forgotten"' in done.stdout


def test_a_trial_that_was_killed_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the system does where memory runs out."""
    monkeypatch.setattr(build, "TRIAL", "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(build.NoKernelsError, match="was killed"):
        build._try(tmp_path / "kernels.so", tmp_path / "fault")
    assert not (tmp_path / "fault").exists()


def test_reset_diff_and_place(checkout: Path, run: Run) -> None:
    path = mine(checkout)
    assert run("course", "test", "w2.11.1").out == "passed  w2.11.1 row_product\n"
    assert run("course", "diff", "w2.11.1").out == "w2.11.1: yours is the reference's, word for word\n"
    path.write_text(path.read_text().replace("Floats total = {};", "Floats total{};"))
    assert "-  Floats total{};\n+  Floats total = {};" in run("course", "diff", "w2.11.1").out
    said = run("course", "reset", "w2.11.1").out
    assert said.endswith("what you had is in code/saved/week2/row.h\n")
    assert learner.undone(path.read_text(), path) == {"w2.11.1"}
    place = path.read_text().splitlines().index('#error "NotDone: w2.11.1"')
    assert run("course", "test", "w2.11.1").out == f"to do   w2.11.1 row_product: code/week2/row.h:{place}\n"


def test_a_compiler_without_a_message_is_told(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its words used to be taken for two lines: IndexError. So was the line of an error behind the file's end."""
    silent = native.first_errors("", SOLVED)
    assert silent == "the compiler failed without a message"
    behind = native.first_errors(f"row.h:{len(LINES) + 1}: error: expected a brace", SOLVED)
    assert behind.startswith(f"row.h:{len(LINES) + 1}: expected a brace")

    def compiled(text: str, tuned: tuple[str, ...]) -> Path:
        raise native.NativeError("row.h does not compile:\n", [])

    monkeypatch.setattr(native, "compiled", compiled)
    with pytest.raises(CourseError, match=r"row.h does not compile"):
        native.compile_header(mine(checkout))

"""Exercises in headers of the CPU kernels (C++): compiled alone, run in a process of their own, and watched."""

import hashlib
import importlib
import os
import platform
import re
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from tiny_llm._blas import cache_dir
from tiny_llm.course import CourseError, NotDone, learner
from tiny_llm.course.catalog import Task, read_source, source_path

HEADER = "row.h"  # the one exercise of this kind
CPP = Path(__file__).parent / "cpp"
BUILD = "tiny_llm.kernels.cpu.build"
SECONDS = 5  # for one product of a small block
FLAGS = ("-std=gnu++20", "-O1", "-g1", "-gdwarf-4", "-fno-strict-aliasing", "-Werror=return-type")
FORMATS = {mx.float32: 2, mx.float16: 3, mx.bfloat16: 4}  # as the C++ enum Format counts them
BLOCK = "Block b begins at word b · (columns / CODES) · LANES; from there on take LANES words at a time, to its end"
ONCE = "Load LANES words once, take all their codes, and go on by LANES words"
FAULTS = {  # the watcher's word → what is told: kind, text, remedy
    "before": (
        "a word of another block is read",
        "reads word {index} of w.numbers, before those of block {block}, which are {first} to {last}",
        BLOCK,
    ),
    "behind": (
        "a word of another block is read",
        "reads word {index} of w.numbers, behind those of block {block}, which are {first} to {last}",
        BLOCK,
    ),
    "again": (
        "a word is read again",
        "reads word {index} of w.numbers, which was read before",
        ONCE,
    ),
    "overlap": (
        "a word is read again",
        "reads from word {index} of w.numbers on, of which some were read before",
        ONCE,
    ),
    "outside": (
        "an array's end is passed",
        "touches {name}[{index}], of an array of {count} numbers",
        "Find the loop that takes one too many, or the index that counts something else",
    ),
    "write": (
        "an input is written",
        "writes {name}[{index}]",
        "Weights and x belong to other products, too: sum in variables of your own, and return the result",
    ),
    "time": ("does not end", "was still running after {seconds} s", "Does a loop ever reach its end?"),
    "crash": ("crashes", "was stopped by the system: {signal}", "Look at the pointers, and at divisions"),
}


@dataclass(frozen=True)
class NativeFault:
    """What the watcher saw, as `kernel.lesson` tells it. Line 0 where it is unknown."""

    kind: str
    line: int
    text: str
    remedy: str
    file: str = HEADER


class NativeError(ValueError):
    """An exercise in C++ does not compile (then `findings` is empty), or does what it must not."""

    def __init__(self, text: str, findings: list[NativeFault]):
        super().__init__(text)
        self.findings = findings


@dataclass(frozen=True)
class CodedRows:
    """A matrix in few bits: `codes` (rows, columns) below 2^bits, `scales` and `biases` (rows, groups)."""

    codes: npt.NDArray[Any]
    bits: int
    scales: mx.array
    biases: mx.array

    def numbers(self, lanes: int) -> npt.NDArray[np.uint32]:
        """The words (blocks, columns · bits / 32, lanes), the first code of a word in its lowest bits."""
        per_word = 32 // self.bits
        split = self.codes.astype(np.uint32).reshape(len(self.codes), -1, per_word)
        places = np.arange(per_word, dtype=np.uint32) * np.uint32(self.bits)
        return side_by_side(np.bitwise_or.reduce(split << places, axis=2), lanes)

    def scalings(self, lanes: int) -> npt.NDArray[Any]:
        """Scales and biases (blocks, groups, 2, lanes); 16-bit numbers as their bits."""
        parts = []
        for part in (self.scales, self.biases):
            bits = part if part.dtype == mx.float32 else part.view(mx.uint16)
            parts.append(side_by_side(np.array(bits), lanes))
        return np.stack(parts, axis=2)


def side_by_side(rows: npt.NDArray[Any], lanes: int) -> npt.NDArray[Any]:
    """(rows, n) as (blocks, n, lanes); rows that are missing at the end are zeros."""
    missing = -len(rows) % lanes
    filled = np.pad(rows, ((0, missing), (0, 0)))
    return np.ascontiguousarray(filled.reshape(-1, lanes, rows.shape[1]).swapaxes(1, 2))


def widths() -> dict[int, tuple[str, ...]]:
    """The vectors that can be compiled and run here: LANES → the compiler's options. The narrowest comes first.

    Raises CourseError where there are none.
    """
    if platform.machine() in ("aarch64", "arm64"):
        return {8: ()}  # NEON is always there
    build = importlib.import_module(BUILD)
    try:
        known = build.processor()
    except build.NoKernelsError as error:
        raise CourseError(f"exercises in C++ can't be checked here: {error}") from error
    found: dict[int, tuple[str, ...]] = {8: ("-march=x86-64-v3",)}
    if "avx512f" in known:
        found[16] = ("-march=native",)
    return found


class Native(ModuleType):
    """What the tests of a C++ exercise call.

    text: of the task's header, in place of the one that is in use; version: which one of `together`. A call raises
    NotDone for what is to be written still, and NativeError.
    """

    def __init__(self, task: Task, text: str | None = None, version: int = 0):
        super().__init__(f"native {task.symbol}")
        self.of, self.text, self.version = task, text, version

    def row_product(self, w: CodedRows, block: int, x: npt.NDArray[np.float32], lanes: int) -> mx.array:
        """The product of rows `block · lanes …` with x (columns), as the header computes it on vectors of `lanes`."""
        program = self._program(lanes)
        data = message(w, block, x, lanes, self.version)
        done = subprocess.run([program], input=data, capture_output=True, check=False, timeout=SECONDS + 10)
        if done.returncode or len(done.stdout) != 4 * lanes:
            words = w.codes.shape[1] * w.bits // 32 * lanes
            last = (block + 1) * words - 1
            raise fault(done, program, {"block": block, "first": block * words, "last": last, "seconds": SECONDS})
        return mx.array(np.frombuffer(done.stdout, np.float32))

    def _program(self, lanes: int) -> Path:
        text = self.text
        if text is None:
            build = importlib.import_module(BUILD)
            name = Path(self.of.source).name
            text = learner.read(build.replaced[name]) if name in build.replaced else read_source(self.of.source)
        for task in learner.undone(text, Path(self.of.source)):
            raise NotDone(task)
        return compiled(text, widths()[lanes])


def message(w: CodedRows, block: int, x: npt.NDArray[np.float32], lanes: int, version: int) -> bytes:
    """What watch.cpp reads: a Job, words, scalings, and x as `Ready` wants it."""
    rows, columns = w.codes.shape
    group = columns // w.scales.shape[1]
    job = struct.pack("9i", w.bits, FORMATS[w.scales.dtype], rows, columns, group, block, lanes, version, SECONDS)
    ready = x.astype(np.float32) * places(w.bits, columns)
    sums = x.astype(np.float64).reshape(-1, group).sum(axis=1)
    arrays = (w.numbers(lanes), w.scalings(lanes), ready, sums.astype(np.float32))
    return job + b"".join(array.tobytes() for array in arrays)


def places(bits: int, columns: int) -> npt.NDArray[np.float32]:
    """What makes x ready for codes that stay at their place in a word: 1, 1/16, 1/256, … and 1 for the last."""
    per_word = 32 // bits
    of_word = 2.0 ** -(bits * np.arange(per_word))
    of_word[-1] = 1.0
    return np.tile(of_word, columns // per_word).astype(np.float32)


def fault(done: subprocess.CompletedProcess[bytes], program: Path, values: dict[str, object]) -> NativeError:
    """What the watcher's line on stderr says, in words."""
    found = re.search(r"^(\w+) (\S+) (-?\d+) (-?\d+) (\w+) (\w+)$", done.stderr.decode(errors="replace"), re.MULTILINE)
    if found is None:
        kind, line = "crash", 0
        values["signal"] = f"it ended with {done.returncode} and without a result"
    else:
        kind, name, index, count, *addresses = found.groups()
        line = line_of(program, [int(address, 16) for address in addresses])
        values |= {"name": name, "index": index, "count": count}
        if kind == "crash":
            number = signal.Signals(int(index))
            values["signal"] = f"{number.name}, {signal.strsignal(number)}"
    title, text, remedy = FAULTS[kind]
    told = NativeFault(title, line, text.format(**values), remedy)
    return NativeError(f"{title}: {told.text}", [told])


def line_of(program: Path, addresses: list[int]) -> int:
    """The header's line at the first of these addresses of code that belongs to one; 0 where none does."""
    tools = importlib.import_module("tiny_llm.kernels.sim.compiler")
    lines = tools.lines_of(program, addresses, HEADER)
    return next((lines[address] for address in addresses if address in lines), 0)


def together(texts: Sequence[str]) -> str:
    """One header with several versions of an exercise, since compiling them one by one takes ten times as long."""
    parts = ['#include "weight.h"', "#define VERSIONS(f) " + " ".join(f"f({i})" for i in range(len(texts)))]
    for i, text in enumerate(texts):
        body = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
        parts.append(f"namespace v{i} {{\n{body}\n}}")
    return "\n".join(parts) + "\n"


def compiled(text: str, tuned: tuple[str, ...]) -> Path:
    """The program that runs a header's text, from the cache directory. Raises NativeError with the compiler's words."""
    compiler = Path(importlib.import_module("tiny_llm.kernels.sim.compiler").compiler())
    kernels = source_path("tiny_llm/kernels/cpu")
    digest = hashlib.sha256(repr((text, FLAGS, tuned, compiler, compiler.stat().st_mtime_ns)).encode())
    for path in (*sorted(CPP.iterdir()), *sorted(kernels.glob("*.h"))):
        digest.update(path.read_bytes())
    program = cache_dir() / "course" / digest.hexdigest()[:24]
    if not program.exists():
        program.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=program.parent) as folder:
            making = Path(folder)
            (making / HEADER).write_text(text, encoding="utf-8")
            for step in steps(compiler, tuned, kernels, making):
                command = [str(word) for word in step]
                done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
                if done.returncode:
                    raise NativeError(f"{HEADER} does not compile:\n{first_errors(done.stderr, text)}", [])
            os.replace(making / "program", program)
    return program


def steps(compiler: Path, tuned: tuple[str, ...], kernels: Path, making: Path) -> Iterator[Sequence[object]]:
    """The commands that make `making`/program of the header that lies there."""
    command = [compiler, *FLAGS, "-fPIE"]
    linked = () if sys.platform == "darwin" else ("-pie",)
    watched = "-fsanitize=thread"  # a call at each access to memory, which watch.cpp receives
    folders = [f"-I{making}", f"-I{kernels}"]
    yield [*command, "-c", CPP / "watch.cpp", "-o", making / "watch.o"]
    yield [*command, watched, *tuned, *folders, "-c", CPP / "row.cpp", "-o", making / "row.o"]
    yield [*command, *linked, making / "watch.o", making / "row.o", "-o", making / "program"]


def compile_header(path: Path) -> None:
    """Compile a learner's header for this machine's widest vectors. Raises CourseError with its file and line."""
    widest = list(widths().values())[-1]
    try:
        compiled(learner.read(path), widest)
    except NativeError as error:
        words = str(error).splitlines()
        first = words[1] if len(words) > 1 else words[0]
        raise CourseError(first.replace(f"{HEADER}:", f"{learner.short(path)}:")) from error


def first_errors(stderr: str, text: str) -> str:
    """The compiler's first three errors in the header with its lines; its own words where none is there."""
    lines = text.splitlines()
    found = re.findall(rf"{HEADER}:(\d+)(?::\d+)?: (?:fatal )?error: (.*)$", stderr, re.MULTILINE)
    if not found:  # as where a helper is called with the wrong type
        errors = [line for line in stderr.splitlines() if "error" in line]
        return "\n".join(errors[:3]) or stderr.strip() or "the compiler failed without a message"
    told = []
    for number, message in dict(found).items():  # the last of a line is the plainest
        plain = re.sub(r" \[-[\w=-]+\]$", "", message)
        line = lines[int(number) - 1].strip() if int(number) <= len(lines) else ""  # an error at the file's end
        told.append(f"{HEADER}:{number}: {plain}\n  {number} | {line}")
    return "\n".join(told[:3])

"""Compile the CPU kernels with this machine's compiler, once, against the headers and the library of MLX's wheel.

They are an extension of MLX by its documented route: nanobind hands arrays over, in MLX's own domain, so that a kernel
is a lazy operation among MLX's. The result lies in the cache directory, under a name made from everything that it
depends on. It is tried in a process of its own before any other loads it.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
from functools import cache
from importlib.machinery import ExtensionFileLoader
from importlib.metadata import version
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import mlx.core  # noqa: F401  (the kernels need its library)

from tiny_llm._blas import available_cores, cache_dir, flush_denormals

HERE = Path(__file__).parent
NAME = "tiny_llm_cpu_kernels"
NEEDED = {"x86_64": {"avx2", "fma", "f16c"}, "aarch64": set[str]()}  # what the processor must know
FLAGS = ("-std=gnu++20", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing", "-pthread", "-w")
DEFINES = ("-DNDEBUG", "-DNB_DOMAIN=mlx", f"-DMODULE={NAME}")
TRIAL = """
import sys
sys.path[:] = [place for place in sys.path if place]  # nothing from the user's folder
import mlx.core as mx
from tiny_llm.kernels.cpu.build import imported
module = imported(sys.argv[1])
codes, scales, biases = mx.quantize(mx.arange(64 * 24.0).reshape(24, 64) / 64, group_size=32, bits=4)
mx.eval(codes, scales, biases)
matrix = module.Matrix(module.Arena(), codes, scales, biases, None, 64, 4)
for rows in (1, 2):
    x = mx.ones((rows, 64))
    want = x @ mx.dequantize(codes, scales, biases, group_size=32, bits=4).T
    error = mx.abs(matrix.product(x, False) - want).max().item()
    assert error < 1e-2 or sys.argv[2:] == ["--replaced"], error
mx.clear_streams()
"""
OWN_TRIAL_SECONDS = 120
TRIAL_SECONDS = 30  # a learner's version of a header may hold an endless loop
replaced: dict[str, Path] = {}  # a learner's version of a header, by its name: compiled in the place of ours


_ONE_AT_A_TIME = threading.Lock()


class NoKernelsError(Exception):
    """Why the CPU kernels can't be used here, and what would help."""


def kernels() -> Any:
    """Return the module of the CPU kernels. Raises NoKernelsError where they can't be had.

    Takes some ten seconds on their first use on a machine, when they are compiled, and a millisecond later.
    """
    with _ONE_AT_A_TIME:
        return _kernels()


@cache
def _kernels() -> Any:
    place = folder()
    try:
        return imported(str(_built(place)))
    except OSError as error:
        raise NoKernelsError(
            f"{place} can't be used: {error.strerror}; set TINY_LLM_CACHE to another folder"
        ) from error


def _built(place: Path) -> Path:
    """Return the compiled library in a folder. One process compiles and tries it, and others wait for that one."""
    path = place / f"{NAME}.so"
    if path.exists():
        return path
    place.mkdir(parents=True, exist_ok=True)
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        fault = place / "fault"
        if fault.exists():
            raise NoKernelsError(f"{fault.read_text()} (remove {fault} to try again)")
        if not path.exists():
            with tempfile.TemporaryDirectory(dir=place) as making:
                made = _compiled(Path(making))
                _try(made, fault)
                os.replace(made, path)
    return path


def imported(path: str) -> Any:
    """Import the compiled module and start its threads; nanobind allows one in a process, so that is kept."""
    if NAME in sys.modules:
        module = sys.modules[NAME]
        if module.__file__ != path:
            raise NoKernelsError("this process has loaded another version of them already")
        return module
    loader = ExtensionFileLoader(NAME, path)
    spec = spec_from_file_location(NAME, path, loader=loader)
    assert spec is not None
    try:
        module = module_from_spec(spec)
        loader.exec_module(module)
    except ImportError as error:
        raise NoKernelsError(f"the compiled kernels can't be loaded: {error}") from error
    with flush_denormals():  # the threads that start now keep the mode
        module.start(threads())
    sys.modules[NAME] = module
    return module


def threads() -> int:
    """Return how many threads share a product: all cores, or as many as OPENBLAS_NUM_THREADS says."""
    asked = os.environ.get("OPENBLAS_NUM_THREADS", "")
    return int(asked) if asked.isdigit() and int(asked) > 0 else available_cores()


def folder() -> Path:
    """Return the folder of the compiled kernels for this machine, these sources and these versions."""
    digest = hashlib.sha256()
    for path in _sources():
        digest.update(path.read_bytes())
    compiler_file = Path(compiler())
    facts = (
        str(compiler_file),
        compiler_file.stat().st_mtime_ns,
        sorted(processor()),
        version("mlx"),
        version(_nanobind().name),
        sysconfig.get_config_var("EXT_SUFFIX"),
        str(_mlx()),
    )
    digest.update(repr(facts).encode())
    return cache_dir() / "cpu" / digest.hexdigest()[:16]


def _sources() -> list[Path]:
    own = [HERE / "build.py", *sorted(HERE.glob("*.h")), *sorted(HERE.glob("*.cpp"))]
    return [replaced.get(path.name, path) for path in own]


@cache
def processor() -> frozenset[str]:
    """Return the names of what the processor knows. Raises NoKernelsError where it lacks what the kernels need."""
    machine = platform.machine()
    if sys.platform != "linux" or machine not in NEEDED:
        raise NoKernelsError(f"there are no CPU kernels for {sys.platform} on {machine}")
    known = set[str]()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, values = line.partition(":")
        if name.strip().lower() in ("flags", "features"):
            known.update(values.split())
    missing = NEEDED[machine] - known
    if missing:
        raise NoKernelsError(f"the processor lacks {', '.join(sorted(missing))}")
    return frozenset(known)


@cache
def compiler() -> str:
    """Return the C++ compiler: the one that CXX names, else g++ or clang++."""
    for name in (os.environ.get("CXX", ""), "g++", "clang++"):
        path = name and shutil.which(name)
        if path:
            return path
    raise NoKernelsError("no C++ compiler: install g++ (apt install g++)")


def _mlx() -> Path:
    spec = find_spec("mlx")
    for place in spec.submodule_search_locations or () if spec else ():
        if (Path(place) / "include" / "mlx" / "mlx.h").is_file():
            return Path(place)
    raise NoKernelsError("MLX's headers are missing: install mlx from its wheel")


def _nanobind() -> Path:
    spec = find_spec("nanobind")
    if spec is None or spec.origin is None:
        raise NoKernelsError("the package nanobind is missing: pip install nanobind")
    return Path(spec.origin).parent


def _compiled(making: Path) -> Path:
    """Compile both sources at once and link them, in a folder. Raises NoKernelsError with the compiler's words."""
    if sys.stderr.isatty():
        print("tiny-llm: compiling the CPU kernels, once for this machine (10 to 20 s)", file=sys.stderr)
    mlx, nanobind = _mlx(), _nanobind()
    python = Path(sysconfig.get_paths()["include"])
    if not (python / "Python.h").is_file():
        raise NoKernelsError(f"{python}/Python.h is missing: install Python's headers (apt install python3-dev)")
    learners = [path.parent for path in replaced.values()]
    of_nanobind = [nanobind / "include", nanobind / "ext" / "robin_map" / "include"]
    includes = [*learners, HERE, mlx / "include", *of_nanobind, python]
    tuned = "-march=native" if platform.machine() == "x86_64" else "-mcpu=native"
    flags = [*FLAGS, *DEFINES, tuned, *(f"-I{place}" for place in includes)]
    sources = [nanobind / "src" / "nb_combined.cpp", HERE / "module.cpp"]
    objects = [making / f"{source.stem}.o" for source in sources]
    running = []
    for source, made in zip(sources, objects, strict=True):
        command = [compiler(), *flags, "-c", str(source), "-o", str(made)]
        running.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
    for process in running:
        _check(process.communicate()[1], process.returncode)
    library = mlx / "lib"
    made = making / f"{NAME}.so"
    link = [compiler(), "-shared", "-pthread", *map(str, objects), f"-L{library}", "-lmlx", f"-Wl,-rpath,{library}"]
    linked = subprocess.run([*link, "-o", str(made)], capture_output=True, text=True, check=False)
    _check(linked.stderr, linked.returncode)
    return made


def _check(words: str, code: int) -> None:
    if code:
        errors = [line for line in words.splitlines() if "error" in line]
        first = (errors or words.splitlines() or ["no message"])[0]
        raise NoKernelsError(f"{Path(compiler()).name} can't compile them: {first}")


def _try(path: Path, fault: Path) -> None:
    """Run the compiled kernels in a process of its own. Raises NoKernelsError, and remembers it, where that fails."""
    command = [sys.executable, "-c", TRIAL, str(path)]
    seconds = OWN_TRIAL_SECONDS
    if replaced:
        command.append("--replaced")
        seconds = TRIAL_SECONDS
    try:
        tried = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        last = f"it had not ended after {seconds} s"
        if not replaced:  # perhaps the machine was busy: the next process tries again
            raise NoKernelsError(f"a trial of the compiled kernels failed: {last}") from None
    else:
        if tried.returncode == 0:
            return
        if tried.returncode == -signal.SIGKILL:  # from outside, perhaps for want of memory
            raise NoKernelsError("a trial of the compiled kernels was killed")
        ended = f"it crashed, signal {-tried.returncode}" if tried.returncode < 0 else f"exit {tried.returncode}"
        last = (tried.stderr.strip().splitlines() or [ended])[-1]
    learners = "".join(f", with {header},".replace(f"{Path.cwd()}/", "") for header in replaced.values())
    fault.write_text(f"a trial of the compiled kernels{learners} failed: {last}")
    raise NoKernelsError(fault.read_text())

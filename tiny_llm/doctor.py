"""What this machine offers to the engine: facts for `tiny-llm doctor`, each with its remedy. Uses no network."""

import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from huggingface_hub.constants import HF_HUB_CACHE

from tiny_llm import _blas, _machine

GB = 1e9
EXTRAS = {"server": "uvicorn", "rag": "chromadb", "mcp": "mcp", "otel": "opentelemetry.sdk"}
CUDA_PACKAGES = ("mlx-cuda-12", "mlx-cuda-13")
MATRIX_ROWS, MATRIX_COLUMNS = 65536, 4096  # 128 MiB in 4 bits, more than a cache holds
CACHED = 16 << 20  # bytes that are kept in the cache: a copy of OpenBLAS, the CPU kernels
SLOW_GFLOPS = 20.0  # the reference BLAS stays below 10


@dataclass(frozen=True)
class Fact:
    """One thing found: `state` "fail" keeps the engine from running, "warn" makes it slower or smaller."""

    name: str
    state: Literal["ok", "warn", "fail"]
    value: str
    remedy: str = ""


def collect() -> list[Fact]:
    """Return all facts, in the order in which they depend on each other. Takes about a second: a product is timed."""
    return [_python(), _system(), *_mlx(), _memory(), _cache(), _models(), _extras()]


def _python() -> Fact:
    return Fact("Python", "ok", f"{platform.python_version()} ({platform.python_implementation()}, {sys.executable})")


def _system() -> Fact:
    value = f"{platform.system()} {platform.mac_ver()[0] or platform.release()}, {platform.machine()}"
    if sys.platform == "darwin":
        if platform.machine() != "arm64":
            return Fact("system", "fail", value, "use a native arm64 Python on Apple silicon; MLX has no other wheels")
        return Fact("system", "ok", value)
    if sys.platform != "linux":
        return Fact("system", "fail", value, "use macOS on Apple silicon or Linux")
    name, libc = platform.libc_ver()
    if name != "glibc" or tuple(map(int, libc.split("."))) < (2, 35):
        return Fact("system", "warn", f"{value}, {name or 'no glibc'} {libc}", "MLX's wheels want glibc 2.35 or later")
    return Fact("system", "ok", f"{value}, {name} {libc}")


def _mlx() -> Iterator[Fact]:
    try:
        import mlx.core as mx
    except ImportError as error:
        yield Fact("MLX", "fail", str(error), "pip install 'mlx[cpu]' on Linux, 'mlx' on macOS")
        return
    yield Fact("MLX", "ok", version("mlx"))
    yield _back_end(mx)
    yield _blas_fact(gflops(mx, mx.cpu))
    yield _compiler(back_end(mx))
    if back_end(mx) == "cpu":
        yield _cpu_kernels(mx)


def back_end(mx: Any) -> str:
    """Return metal, cuda or cpu: where MLX computes unless told otherwise."""
    if mx.default_device().type != mx.gpu:
        return "cpu"
    return "metal" if mx.metal.is_available() else "cuda"


def _back_end(mx: Any) -> Fact:
    kind = back_end(mx)
    value = f"{kind}, {mx.device_info().get('device_name', 'unknown device')}"
    if kind != "cpu":
        return Fact("back end", "ok", f"{value}, {gflops(mx, mx.gpu, size=2048):.0f} GFLOP/s in float32")
    if sys.platform == "darwin":
        return Fact("back end", "warn", value, "Metal is not available: run outside of a virtual machine or sandbox")
    if package := next(filter(_installed, CUDA_PACKAGES), None):
        remedy = f"check nvidia-smi; if it works: pip install --force-reinstall --no-deps {package}"
        return Fact("back end", "warn", f"{value}, though {package} is installed", remedy)
    return Fact("back end", "ok", value)


def _blas_fact(speed: float) -> Fact:
    blas = _blas.status()
    threads = f", {blas.threads} threads" if blas.threads else ""
    value = f"{blas.name}, {speed:.0f} GFLOP/s in float32{threads}" + (f" ({blas.reason})" if blas.reason else "")
    if blas.name == "mlx":
        return Fact("BLAS", "warn", value, blas.remedy or "")
    if speed < SLOW_GFLOPS:
        return Fact("BLAS", "warn", value, "slow: close other programs, or set OPENBLAS_NUM_THREADS to the free cores")
    return Fact("BLAS", "ok", value)


def gflops(mx: Any, device: Any, size: int = 768) -> float:
    """Time float32 products of two (size, size) matrices on `device`; return the best of five, in GFLOP/s."""
    with mx.stream(device):
        matrix = mx.ones((size, size))
        mx.eval(matrix @ matrix)
        best = float("inf")
        for _ in range(5):
            start = time.perf_counter()
            mx.eval(matrix @ matrix)
            best = min(best, time.perf_counter() - start)
    return float(2 * size**3 / best / 1e9)


def _compiler(kind: str) -> Fact:
    if kind != "cpu":
        return Fact("C++ compiler", "ok", f"not needed on {kind}")
    if path := shutil.which("g++"):
        other = " for MLX's own kernels; CXX is for tiny-llm's" if os.environ.get("CXX") else ""
        return Fact("C++ compiler", "ok", path + other)
    return Fact("C++ compiler", "warn", "no g++: MLX compiles no fused kernels", "install g++ for faster decoding")


def _cpu_kernels(mx: Any) -> Fact:
    """Say whether the CPU kernels can be used, and how much of the memory's speed their products reach."""
    from tiny_llm.kernels.cpu import build

    try:
        module = build.kernels()
    except build.NoKernelsError as error:
        return Fact("CPU kernels", "warn", "none: quantized models are slow", str(error))
    product = product_speed(mx, module)
    read = max(product, module.read_speed(MATRIX_ROWS * MATRIX_COLUMNS // 2))
    value = f"{module.LANES} lanes, {build.threads()} threads; 4-bit products read {product:.0f} GB/s of {read:.0f}"
    return Fact("CPU kernels", "ok", value)


def product_speed(mx: Any, module: Any) -> float:
    """Return how fast a 4-bit matrix is read by a product with one row, in GB/s; the best of five."""
    words = mx.ones((MATRIX_ROWS, MATRIX_COLUMNS // 8), mx.uint32)
    scales = mx.ones((MATRIX_ROWS, MATRIX_COLUMNS // 64), mx.float16)
    mx.eval(words, scales)
    matrix = module.Matrix(module.Arena(), words, scales, scales, None, MATRIX_COLUMNS, 4)
    x = mx.ones((1, MATRIX_COLUMNS))
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        mx.eval(matrix.product(x, False))
        best = min(best, time.perf_counter() - start)
    return float(matrix.nbytes / best / 1e9)


def _memory() -> Fact:
    total, free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), _machine.available_bytes()
    value = f"{total / GB:.1f} GB" + (f", {free / GB:.1f} GB available" if free is not None else "")
    if (total if free is None else free) < 2 * GB:
        return Fact("memory", "warn", value, "close other programs, or choose a small or 4-bit model")
    return Fact("memory", "ok", value)


def _cache() -> Fact:
    path = _blas.cache_dir()
    fault = _cache_fault(path)
    if fault:
        return Fact("cache", "warn", f"{path} can't be used: {fault}", "set TINY_LLM_CACHE to another folder")
    return Fact("cache", "ok", str(path))


def _cache_fault(path: Path) -> str:
    """Return why nothing can be kept in a folder, which need not exist yet; "" where all is well."""
    if os.path.islink(path) and not os.path.exists(path):
        return "it is a link that leads nowhere"
    place = _existing(path)
    if not place.is_dir():
        return f"{place} is a file"
    if not os.access(place, os.W_OK | os.X_OK):
        return f"nothing can be written to {place}"
    if shutil.disk_usage(place).free < CACHED:
        return "its disk is full"
    return ""


def _models() -> Fact:
    path = Path(HF_HUB_CACHE)
    free = shutil.disk_usage(_existing(path)).free
    value = f"{path}, {free / GB:.0f} GB free"
    if free < 5 * GB:
        return Fact(
            "downloads", "warn", value, "make room, or set HF_HOME to a larger disk; a 4-bit 4B model takes 2.5 GB"
        )
    return Fact("downloads", "ok", value)


def _extras() -> Fact:
    found = [name for name, module in EXTRAS.items() if _importable(module)]
    missing = [name for name in EXTRAS if name not in found]
    remedy = f"optional: pip install 'tiny-llm[{','.join(missing)}]'" if missing else ""
    return Fact("extras", "ok", ", ".join(found) or "none", remedy)


def _importable(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


def _existing(path: Path) -> Path:
    """Return `path`, or the nearest folder above it that exists and may be looked into."""
    return next(folder for folder in (path, *path.absolute().parents) if os.path.exists(folder))

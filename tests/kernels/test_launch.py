"""Which back end runs a kernel, and what is handed to it."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from tiny_llm.kernels import axpby, launch
from tiny_llm.kernels.launch import choose_back_end
from tiny_llm.kernels.sim import Simulator, Source

X = mx.arange(5).astype(mx.float32)


def test_the_twin_runs_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TINY_LLM_KERNELS", raising=False)
    monkeypatch.setattr(mx, "default_device", lambda: mx.cpu)
    assert choose_back_end() == "plain"


@pytest.mark.parametrize("gpu", ["metal", "cuda"])
def test_a_gpu_is_taken_where_it_is_the_device(gpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TINY_LLM_KERNELS", raising=False)
    monkeypatch.setattr(getattr(mx, gpu), "is_available", lambda: True)
    monkeypatch.setattr(mx, "default_device", lambda: mx.gpu)
    assert choose_back_end() == gpu
    monkeypatch.setattr(mx, "default_device", lambda: mx.cpu)
    assert choose_back_end() == "plain"


def test_the_environment_and_the_argument_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    real = Simulator.launch
    monkeypatch.setattr(Simulator, "launch", lambda self, *call: ran.append("sim") or real(self, *call))
    monkeypatch.setenv("TINY_LLM_KERNELS", "sim")
    axpby(X, X, 1, 1)
    assert ran == ["sim"]
    axpby(X, X, 1, 1, on="plain")
    assert ran == ["sim"]
    monkeypatch.setenv("TINY_LLM_KERNELS", "plain")
    axpby(X, X, 1, 1)
    assert ran == ["sim"]
    axpby(X, X, 1, 1, on="sim")
    assert ran == ["sim", "sim"]


def test_unknown_and_missing_back_ends_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="expected one of metal, cuda, .*found 'opencl'"):
        choose_back_end("opencl")
    for gpu in ("metal", "cuda"):
        monkeypatch.setattr(getattr(mx, gpu), "is_available", lambda: False)
        with pytest.raises(ValueError, match=f"no {gpu} here; use cpu, mlx, sim or plain"):
            axpby(X, X, 1, 1, on=gpu)


@pytest.mark.parametrize("gpu", ["metal", "cuda"])
def test_what_a_gpu_is_given(gpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The back ends are not here: their kernel objects are replaced by one that looks."""
    made: dict[str, Any] = {}

    def fake(**options: Any) -> Any:
        made.update(options)
        return lambda **call: made.update(call) or [mx.zeros((5,))]

    launch.compiled.cache_clear()
    monkeypatch.setattr(getattr(mx, gpu), "is_available", lambda: True)
    monkeypatch.setattr(mx.fast, f"{gpu}_kernel", fake)
    axpby(X, X, 2, 3, on=gpu)
    launch.compiled.cache_clear()
    assert made["input_names"] == ["x", "y", "a", "b", "n"]
    assert made["output_names"] == ["out"]
    assert [x.tolist() for x in made["inputs"][2:]] == [2, 3, 5]
    assert (made["grid"], made["threadgroup"]) == ((5, 1, 1), (256, 1, 1))
    assert made["template"] == [("T", mx.float32)]
    assert ("a[0] * float" in made["source"]) == (gpu == "cuda")


def test_a_file_is_header_and_body(tmp_path: Path) -> None:
    path = tmp_path / "k.metal"
    path.write_text("// help\ninline float f();\n// BODY\nout[0] = 1;\nout[1] = 2;\n")
    source = Source.read(path)
    assert (source.header, source.body) == ("// help\ninline float f();\n", "out[0] = 1;\nout[1] = 2;\n")
    assert [source.line(n) for n in (2, 4, 5, 9)] == ["inline float f();", "out[0] = 1;", "out[1] = 2;", ""]
    path.write_text("out[0] = 1;")
    assert (Source.read(path).header, Source.read(path).body_line) == ("", 1)


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "k.metal"
    path.write_text("// BODY\n// BODY\n")
    with pytest.raises(ValueError, match=r"found 2 lines `// BODY` \(line 2\)"):
        Source.read(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="not UTF-8 text"):
        Source.read(path)
    with pytest.raises(ValueError, match="No such file"):
        Source.read(tmp_path / "none.metal")

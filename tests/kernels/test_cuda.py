"""The CUDA text of Metal bodies; nvcc compiles it where there is one."""

import shutil
import subprocess
from pathlib import Path

import mlx.core as mx
import pytest

from tiny_llm.course import markers
from tiny_llm.kernels.catalog import CATALOG
from tiny_llm.kernels.cuda import PRELUDE, translate
from tiny_llm.kernels.sim import Source
from tiny_llm.kernels.sim.recorder import Recorder

AXPBY = """uint i = thread_position_in_grid.x;
if (i >= uint(n[0])) {
  return;
}
out[i] = T(a[0] * float(x[i]) + b[0] * float(y[i]));
"""
SUM_OF_GROUP = """template <int SIMDGROUPS>
__device__ inline float sum_of_group(float value, float* parts, uint simdgroup, uint lane) {
  value = simd_sum(value);
  if (lane == 0) {
    parts[simdgroup] = value;
  }
"""


def bare(name: str) -> Source:
    """A kernel's source without the marks of the exercises in it."""
    path = CATALOG[name].kernel.path
    return Source.parse(markers.without_markers(path.read_text(), path.name), path)


def test_scalars_are_read_through_their_pointers() -> None:
    text = bare("axpby")
    assert translate(text.body, ("a", "b", "n")) == AXPBY


def test_helpers_are_device_functions_without_address_spaces() -> None:
    text = bare("rms_norm")
    assert SUM_OF_GROUP in translate(text.header, (), functions=True)
    assert translate(text.body, ()).startswith("__shared__ float parts[THREADS / 32];\nconst uint t =")


@pytest.mark.parametrize(
    ("metal", "cuda"),
    [
        ("threadgroup float a[4], b;", "__shared__ float a[4], b;"),
        ("const device float4* p = (const device float4*)x;", "const float4* p = (const float4*)x;"),
        ("v.n = n; // n", "v.n = n[0]; // n"),
        ("threadgroup_barrier(mem_flags::mem_threadgroup);", "threadgroup_barrier(mem_flags::mem_threadgroup);"),
        ("thread float a[2];", "float a[2];"),
    ],
)
def test_rewriting(metal: str, cuda: str) -> None:
    assert translate(metal, ("n",)) == cuda
    assert translate(metal, ("n",)).count("\n") == metal.count("\n")


def test_what_cuda_kernels_of_mlx_lack_is_refused() -> None:
    with pytest.raises(ValueError, match="atomic_"):
        translate("atomic_fetch_add_explicit(&out[0], 1, memory_order_relaxed);", ())


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
@pytest.mark.parametrize("name", CATALOG)
def test_nvcc_takes_it(name: str, tmp_path: Path) -> None:
    types = {mx.float32: "float", mx.float16: "__half", mx.bfloat16: "__nv_bfloat16", mx.int32: "int"}
    for dtype in (mx.float32, mx.float16, mx.bfloat16):
        recorder = Recorder()
        CATALOG[name].run(CATALOG[name].examples(dtype)[0], recorder)
        interface, text, arrays, dispatch = recorder.calls[0]
        scalars = [n for n, x in zip(interface.inputs, arrays, strict=True) if x.ndim == 0]
        kinds = [(f"const {types[x.dtype]}*", n) for n, x in zip(interface.inputs, arrays, strict=True)]
        kinds += [(f"{types[d]}*", n) for n, d in zip(interface.outputs, dispatch.output_dtypes, strict=True)]
        constants = "".join(
            f"using {n} = {types[v]};\n"
            if isinstance(v, mx.Dtype)
            else f"constexpr {type(v).__name__} {n} = {int(v)};\n"
            for n, v in dispatch.template
        )
        path = tmp_path / f"{name}.cu"
        path.write_text(
            "#include <cuda_fp16.h>\n#include <cuda_bf16.h>\n#include <cstdint>\n"
            + PRELUDE.read_text()
            + translate(text.header, (), functions=True)
            + f"__global__ void probe({', '.join(f'{kind} {n}' for kind, n in kinds)}) {{\n{constants}"
            + translate(text.body, scalars)
            + "}\n"
        )
        command = ["nvcc", "-std=c++17", "-arch=sm_80", "-cubin", "-o", str(tmp_path / "out"), str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

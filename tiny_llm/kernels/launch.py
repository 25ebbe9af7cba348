"""A kernel and the choice of what runs it."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx

from tiny_llm.config.engine import KERNELS
from tiny_llm.kernels import cuda
from tiny_llm.kernels.sim import Dispatch, Interface, Simulator, Source

FOLDER = Path(__file__).parent / "metal"
BACK_ENDS = ("metal", "cuda", "sim", "plain")
On = str | Simulator | None
replaced: dict[str, Source] = {}  # other sources by kernel, such as a learner's; put here before the first launch


@dataclass(frozen=True)
class Kernel:
    """`metal/{name}.metal` with its inputs and outputs by name, each a word of `inputs` and `outputs`."""

    name: str
    inputs: str
    outputs: str

    @property
    def path(self) -> Path:
        return FOLDER / f"{self.name}.metal"

    @property
    def source(self) -> Source:
        return replaced.get(self.name) or source(self.path)

    @property
    def interface(self) -> Interface:
        return Interface(self.name, tuple(self.inputs.split()), tuple(self.outputs.split()))

    def __call__(
        self,
        *inputs: mx.array | float,
        plain: Callable[[], Sequence[mx.array]],
        like: Sequence[tuple[tuple[int, ...], mx.Dtype]],
        grid: tuple[int, int, int],
        threadgroup: tuple[int, int, int],
        template: Mapping[str, Any] | None = None,
        on: On = None,
    ) -> list[mx.array]:
        """Run on the back end that `on` names (see `choose_back_end`).

        `plain` is the twin; `like` has each output's shape and dtype; `grid` counts threads.
        """
        back_end = on if isinstance(on, Simulator) else choose_back_end(on)
        if back_end == "plain" or not any(math.prod(shape) for shape, _ in like):
            return list(plain())
        shapes, dtypes = [shape for shape, _ in like], [dtype for _, dtype in like]
        arguments = tuple((template or {}).items())
        if back_end == "sim" or isinstance(back_end, Simulator):
            simulator = back_end if isinstance(back_end, Simulator) else Simulator()
            dispatch = Dispatch(shapes, dtypes, grid, threadgroup, arguments)
            return simulator.launch(self.interface, self.source, inputs, dispatch)
        arrays = [x if isinstance(x, mx.array) else mx.array(x) for x in inputs]
        scalars = tuple(name for name, x in zip(self.interface.inputs, arrays, strict=True) if x.ndim == 0)
        outputs: list[mx.array] = compiled(self, back_end, scalars)(
            inputs=arrays,
            output_shapes=shapes,
            output_dtypes=dtypes,
            grid=grid,
            threadgroup=threadgroup,
            template=list(arguments),
        )
        return outputs


@cache
def source(path: Path) -> Source:
    return Source.read(path)


@cache
def compiled(kernel: Kernel, back_end: str, scalars: tuple[str, ...]) -> Any:
    """MLX's kernel object; MLX compiles it once for each set of dtypes and template arguments."""
    text, interface = kernel.source, kernel.interface
    if back_end == "cuda":
        return cuda.kernel(interface, text, scalars)
    return mx.fast.metal_kernel(
        name=interface.name,
        input_names=list(interface.inputs),
        output_names=list(interface.outputs),
        source=text.body,
        header=text.header,
    )


def choose_back_end(on: str | None = None) -> str:
    """Return the back end of a Metal kernel: `on`, else TINY_LLM_KERNELS, else that of MLX's default device.

    The default is never the simulator. Raises ValueError for an unknown name, and for a GPU that this machine lacks.
    """
    name = on or os.environ.get("TINY_LLM_KERNELS") or None
    if name in ("cpu", "mlx"):  # these name the operations of a whole model, which no Metal kernel runs
        name = None
    available = {"metal": mx.metal.is_available(), "cuda": mx.cuda.is_available(), "sim": True, "plain": True}
    if name is None:
        on_gpu = mx.default_device() == mx.gpu
        return next((gpu for gpu in ("metal", "cuda") if on_gpu and available[gpu]), "plain")
    if name not in BACK_ENDS:
        raise ValueError(
            f"kernels: expected one of {', '.join(KERNELS)} (--kernels, TINY_LLM_KERNELS or on=), found {name!r}"
        )
    if not available[name]:
        raise ValueError(f"kernels: no {name} here; use cpu, mlx, sim or plain (--kernels, TINY_LLM_KERNELS or on=)")
    return name


def expect_array(name: str, x: mx.array, shape: tuple[int | None, ...], dtype: mx.Dtype | None = None) -> None:
    """Raises ValueError unless `x` has this shape (None: any length) and dtype."""
    fits = x.ndim == len(shape) and all(want in (None, have) for want, have in zip(shape, x.shape, strict=True))
    if not fits or (dtype is not None and x.dtype != dtype):
        wanted = "(" + ", ".join("any" if n is None else str(n) for n in shape) + ")"
        of = f" of {short(dtype)}" if dtype else ""
        raise ValueError(f"{name}: expected shape {wanted}{of}, found {x.shape} of {short(x.dtype)}")


def expect_float(name: str, x: mx.array) -> None:
    if x.dtype not in (mx.float32, mx.float16, mx.bfloat16):
        raise ValueError(f"{name}: expected float32, float16 or bfloat16, found {short(x.dtype)}")


def short(dtype: mx.Dtype) -> str:
    return str(dtype).removeprefix("mlx.core.")

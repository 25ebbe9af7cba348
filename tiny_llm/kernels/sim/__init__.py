"""Metal kernels on any CPU: the body is compiled as C++, each GPU thread is a fiber.

`Simulator` runs a launch, in check mode with every access looked at; `metal_kernel` is the drop-in for
`mx.fast.metal_kernel`. It simulates what Metal promises, not a certain chip: no timing, no register limits.
"""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from tiny_llm.kernels.sim.report import CompileError, KernelError, Report
from tiny_llm.kernels.sim.signature import Interface
from tiny_llm.kernels.sim.simulator import Dispatch, Simulator
from tiny_llm.kernels.sim.source import Source

__all__ = ["CompileError", "Dispatch", "Interface", "KernelError", "Report", "Simulator", "Source", "metal_kernel"]


def metal_kernel(
    name: str,
    input_names: Sequence[str],
    output_names: Sequence[str],
    source: str,
    header: str = "",
    ensure_row_contiguous: bool = True,
    atomic_outputs: bool = False,
) -> Callable[..., list[mx.array]]:
    """`mx.fast.metal_kernel` in the simulator: the same arguments here and in the call that is returned.

    The call takes one more, `simulator`, with which to check, count or shuffle. Raises ValueError for wrong
    arguments, KernelError for what goes wrong within the kernel.
    """
    interface = Interface(name, tuple(input_names), tuple(output_names), atomic_outputs, ensure_row_contiguous)
    text = Source(f"{name}.metal", source, header)

    def call(
        *,
        inputs: Sequence[Any],
        output_shapes: Sequence[Sequence[int]],
        output_dtypes: Sequence[mx.Dtype],
        grid: tuple[int, int, int],
        threadgroup: tuple[int, int, int],
        template: Sequence[tuple[str, Any]] | None = None,
        init_value: float | None = None,
        verbose: bool = False,
        stream: Any = None,
        simulator: Simulator | None = None,
    ) -> list[mx.array]:
        shapes = [tuple(shape) for shape in output_shapes]
        dispatch = Dispatch(shapes, list(output_dtypes), grid, threadgroup, tuple(template or ()), init_value)
        return (simulator or Simulator()).launch(interface, text, inputs, dispatch, verbose)

    return call

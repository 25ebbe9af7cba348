"""Metal kernels on any CPU: the body is compiled as C++, each GPU thread is a fiber.

`Simulator` runs a launch, in check mode with every access looked at; `metal_kernel` is the drop-in for
`mx.fast.metal_kernel`. It simulates what Metal promises, not a certain chip: no timing, no register limits.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mlx.core as mx

from tiny_llm.kernels.sim.compiler import MATH_MODES
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
    compile_options: Mapping[str, Any] | None = None,
) -> Callable[..., list[mx.array]]:
    """`mx.fast.metal_kernel` in the simulator: the same arguments here and in the call that is returned.

    The call takes one more, `simulator`, with which to check, count or shuffle. `compile_options`:
    `{"math_mode": "safe"}` (or "relaxed", "fast") says which rules of floating-point numbers the compiler may break.
    Raises ValueError for wrong arguments, KernelError for what goes wrong within the kernel.
    """
    math_mode = math_mode_of(name, compile_options)
    interface = Interface(
        name, tuple(input_names), tuple(output_names), atomic_outputs, ensure_row_contiguous, math_mode
    )
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


def math_mode_of(kernel: str, options: Mapping[str, Any] | None) -> str:
    """The math mode that MLX's `compile_options` name. Raises ValueError for any other option and an unknown mode."""
    if options is None:
        return "safe"
    if not isinstance(options, Mapping):
        raise ValueError(f"kernel {kernel}: compile_options: expected a dict, found {options!r}")
    unknown = [option for option in options if option != "math_mode"]
    if unknown:
        raise ValueError(f"kernel {kernel}: compile_options: no option {unknown[0]!r}; there is math_mode only")
    mode = options.get("math_mode", "safe")
    if not isinstance(mode, str) or mode not in MATH_MODES:
        raise ValueError(f"kernel {kernel}: math_mode: expected {', '.join(MATH_MODES)}, found {mode!r}")
    return mode

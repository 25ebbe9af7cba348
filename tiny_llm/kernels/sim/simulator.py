"""Launch a kernel in the simulator."""

import ctypes
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx

from tiny_llm.kernels.sim import compiler
from tiny_llm.kernels.sim.buffers import Memory, memory, to_numpy
from tiny_llm.kernels.sim.findings import describe, without_consequences
from tiny_llm.kernels.sim.report import BufferCount, KernelError, Report, SiteCount
from tiny_llm.kernels.sim.signature import FEW, Interface, Signature, TemplateArguments, generate, type_name
from tiny_llm.kernels.sim.source import Source, cpp
from tiny_llm.kernels.sim.structures import CBuffer, CFinding, CLaunch, CSite

MAX_THREADS = 1024  # in a threadgroup, on all Apple GPUs
MAX_GRID = 2**31
FINDINGS, SITES = 64, 512
_one_launch = threading.Lock()  # the runtime's state is one


@dataclass(frozen=True)
class Dispatch:
    """What one call says: outputs, `grid` in threads, template arguments, the value that outputs start with."""

    output_shapes: Sequence[tuple[int, ...]]
    output_dtypes: Sequence[mx.Dtype]
    grid: tuple[int, int, int]
    threadgroup: tuple[int, int, int]
    template: TemplateArguments = ()
    init_value: float | None = None


@dataclass
class Simulator:
    """How launches run, and `reports` of those that did.

    check: look at every access, for faults and byte counts. trace: also count requests by line (implies check).
    seed: 0 runs threads in their order, others shuffle threads, simdgroups and groups. seconds: the time limit.
    strict: raise KernelError for findings; otherwise they are in the report only, unless the launch could not go on.
    replace: other sources for kernels, by name, as a file or as text that was read already. whole_groups: enlarge the
    grid until no group is smaller than others, as CUDA does: a body must check its bounds.
    """

    check: bool = False
    trace: bool = False
    seed: int = 0
    seconds: float = 20.0
    strict: bool = True
    threadgroup_limit: int = 32 * 1024
    whole_groups: bool = False
    replace: Mapping[str, Path | Source] = field(default_factory=dict)
    reports: list[Report] = field(default_factory=list)

    def launch(
        self, interface: Interface, source: Source, inputs: Sequence[Any], dispatch: Dispatch, verbose: bool = False
    ) -> list[mx.array]:
        """Run one kernel; inputs are arrays or Python scalars. Raises ValueError, KernelError, CompileError."""
        source = self.replacement(interface.name) or source
        arrays = [as_array(x) for x in inputs]
        validate(interface, arrays, dispatch)
        signature = generate(interface, source.body, arrays, dispatch.output_dtypes, dispatch.template)
        if verbose:
            print(signature.text(source.header, source.body))
        runtime = load_runtime()
        check = self.check or self.trace
        library_path = compiler.compile_kernel(cpp(source, signature, check), source, check, interface.math_mode)
        library = compiler.load_kernel(library_path)
        with memory(runtime) as buffers:
            arguments, outputs = place(interface, signature, arrays, dispatch, buffers)
            run, completed, seconds = self._run(runtime, library, arguments, buffers.buffers, dispatch)
            report = make_report(interface.name, run, seconds, buffers.names, source, library_path)
            self.reports.append(report)
            if report.findings and (self.strict or not completed):
                raise KernelError(report.findings)
            shapes = zip(outputs, dispatch.output_shapes, dispatch.output_dtypes, strict=True)
            return [buffers.read(address, shape, dtype) for address, shape, dtype in shapes]

    def replacement(self, kernel: str) -> Source | None:
        other = self.replace.get(kernel)
        return Source.read(other) if isinstance(other, Path) else other

    def _run(
        self,
        runtime: ctypes.CDLL,
        library: ctypes.CDLL,
        arguments: Sequence[int],
        buffers: Sequence[CBuffer],
        dispatch: Dispatch,
    ) -> tuple[CLaunch, bool, float]:
        run = CLaunch(
            entry=ctypes.cast(library.sim_entry, ctypes.c_void_p),
            grid=whole(dispatch) if self.whole_groups else dispatch.grid,
            threadgroup=dispatch.threadgroup,
            buffers=(CBuffer * len(buffers))(*buffers),
            buffer_count=len(buffers),
            arguments=(ctypes.c_void_p * len(arguments))(*arguments),
            check=self.check or self.trace,
            trace=self.trace,
            seed=self.seed,
            threadgroup_limit=self.threadgroup_limit,
            seconds=self.seconds,
            findings=(CFinding * FINDINGS)(),
            finding_capacity=FINDINGS,
            sites=(CSite * SITES)(),
            site_capacity=SITES,
        )
        with _one_launch:
            begin = time.perf_counter()
            completed = runtime.sim_launch(ctypes.byref(run)) == 0
            return run, completed, time.perf_counter() - begin


def whole(dispatch: Dispatch) -> tuple[int, ...]:
    sizes = zip(dispatch.grid, dispatch.threadgroup, strict=True)
    return tuple(-(-threads // group) * group for threads, group in sizes)


def load_runtime() -> ctypes.CDLL:
    runtime = compiler.load_runtime(compiler.runtime_path())
    runtime.sim_guarded.restype = ctypes.c_void_p
    runtime.sim_guarded.argtypes = [ctypes.c_uint64, ctypes.POINTER(ctypes.c_uint64)]
    runtime.sim_protect.argtypes = [ctypes.c_void_p, ctypes.c_uint64]
    runtime.sim_release.argtypes = [ctypes.c_void_p, ctypes.c_uint64]
    return runtime


def as_array(x: Any) -> mx.array:
    if isinstance(x, mx.array):
        return x
    if isinstance(x, (bool, int, float)):
        return mx.array(x)
    raise ValueError(f"kernel input {x!r}: expected an mx.array or a number")


def validate(interface: Interface, inputs: Sequence[mx.array], dispatch: Dispatch) -> None:
    """Raises ValueError for a call that does not fit the interface or any GPU."""
    for what, given, wanted in (
        ("inputs", inputs, interface.inputs),
        ("output_shapes", dispatch.output_shapes, interface.outputs),
        ("output_dtypes", dispatch.output_dtypes, interface.outputs),
    ):
        if len(given) != len(wanted):
            raise ValueError(f"kernel {interface.name}: expected {len(wanted)} {what} ({', '.join(wanted)}), "
                             f"found {len(given)}")  # fmt: skip
    for what, size in (("grid", dispatch.grid), ("threadgroup", dispatch.threadgroup)):
        if len(size) != 3 or any(not isinstance(n, int) or not 1 <= n < MAX_GRID for n in size):
            raise ValueError(f"kernel {interface.name}: {what} {tuple(size)}: expected three integers of at least 1")
    x, y, z = dispatch.threadgroup
    if x * y * z > MAX_THREADS:
        raise ValueError(f"kernel {interface.name}: a threadgroup of {x}·{y}·{z} = {x * y * z} threads; "
                         f"the most is {MAX_THREADS}")  # fmt: skip
    for name, shape, dtype in zip(interface.outputs, dispatch.output_shapes, dispatch.output_dtypes, strict=True):
        type_name(dtype)
        if not shape or any(not isinstance(n, int) or n < 0 for n in shape):
            raise ValueError(f"kernel {interface.name}: output {name} has shape {tuple(shape)}; expected one or more "
                             "dimensions, none negative")  # fmt: skip


def place(
    interface: Interface, signature: Signature, inputs: Sequence[mx.array], dispatch: Dispatch, buffers: Memory
) -> tuple[list[int], list[int]]:
    """Addresses of all arguments in the signature's order, and those of the outputs."""
    arrays = {}
    for name, x in zip(interface.inputs, inputs, strict=True):
        arrays[name] = to_numpy(mx.contiguous(x) if interface.ensure_row_contiguous else x)
    shapes = dict(zip(interface.outputs, zip(dispatch.output_shapes, dispatch.output_dtypes, strict=True), strict=True))
    arguments, outputs = [], []
    for argument in signature.arguments:
        name = argument.name
        if argument.kind == "in":
            arguments.append(buffers.place_input(name, arrays[name]))
        elif argument.kind == "out":
            arguments.append(buffers.place_output(name, *shapes[name], dispatch.init_value))
            outputs.append(arguments[-1])
        else:
            arguments.append(buffers.metadata(argument, arrays[name]))
    return arguments, outputs


def make_report(
    kernel: str, run: CLaunch, seconds: float, names: Sequence[str], source: Source, library: Path
) -> Report:
    findings = without_consequences(run.findings[: run.finding_count])
    sites = run.sites[: run.site_count]
    offsets = [f.pc for f in findings] + [f.other_pc for f in findings] + [site.pc for site in sites]
    lines = compiler.lines_of(library, offsets, source.label)
    full = [min(t, g) for t, g in zip(run.threadgroup, run.grid, strict=True)]
    counters = {name: getattr(run.counters, name) for name, _ in run.counters._fields_}
    buffers = [
        BufferCount(name, b.read, b.written, b.unique_read, b.unique_written, b.role == 0 and b.size < FEW * b.item)
        for name, b in zip(names, run.buffers[: run.buffer_count], strict=True)
        if b.role != 2
    ]
    counted = [
        SiteCount(
            lines.get(site.pc, 0),
            names[site.buffer] if site.buffer >= 0 else "threadgroup",
            bool(site.write),
            *(site.requests, site.bytes, site.sectors, site.size, tuple(site.offsets)),
        )
        for site in sites
    ]
    described = [describe(f, source.label, names, lines, full) for f in findings]
    return Report(kernel, described, seconds, **counters, buffers=buffers if run.check else [], sites=counted)

"""A launch's buffers: MLX arrays copied between guard pages, and back."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from tiny_llm.kernels.sim.signature import Argument
from tiny_llm.kernels.sim.structures import ROLES, CBuffer

HostArray = NDArray[np.generic]
POISON = 0xFF  # what is not written is NaN


def to_numpy(x: mx.array) -> HostArray:
    """The memory of `x` as numpy sees it, strides kept; bfloat16 as its bits."""
    mx.eval(x)
    return np.array(x.view(mx.uint16) if x.dtype == mx.bfloat16 else x, copy=False)


def to_mlx(x: HostArray, dtype: mx.Dtype) -> mx.array:
    made = mx.array(x)
    return made.view(dtype) if dtype == mx.bfloat16 else made


def numpy_dtype(dtype: mx.Dtype) -> np.dtype[np.generic]:
    return to_numpy(mx.zeros((1,), dtype)).dtype


@dataclass
class Memory:
    """Owns what a launch maps; `place` returns the address, `describe` the buffer for the runtime."""

    runtime: ctypes.CDLL
    mapped: list[tuple[int, int]] = field(default_factory=list)
    buffers: list[CBuffer] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    def allocate(self, size: int) -> int:
        length = ctypes.c_uint64()
        address: int | None = self.runtime.sim_guarded(size, ctypes.byref(length))
        if not address:
            raise MemoryError(f"the simulator could not map {size} bytes")
        self.mapped.append((address, length.value))
        return address

    def place_input(self, name: str, x: HostArray, role: str = "in") -> int:
        """Copy the memory that `x` spans, strides kept, and make it read-only; the address of its first element."""
        item = x.itemsize
        reach = [(n - 1) * stride for n, stride in zip(x.shape, x.strides, strict=True) if n > 1] if x.size else []
        low, high = sum(r for r in reach if r < 0), sum(r for r in reach if r > 0)
        size = high - low + item if x.size else 0
        address = self.allocate(size)
        ctypes.memmove(address, x.ctypes.data + low, size)
        self.runtime.sim_protect(address, size)
        self.add(name, address, size, item, role)
        first: int = address - low
        return first

    def place_output(self, name: str, shape: tuple[int, ...], dtype: mx.Dtype, init: float | None) -> int:
        kind = numpy_dtype(dtype)
        size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        address = self.allocate(size)
        if init is None:
            ctypes.memset(address, POISON, size)
        else:
            filled = to_numpy(mx.full(shape, init, dtype))
            ctypes.memmove(address, filled.ctypes.data, size)
        self.add(name, address, size, kind.itemsize, "out" if init is None else "initialised")
        return address

    def add(self, name: str, address: int, size: int, item: int, role: str) -> None:
        self.names.append(name)
        self.buffers.append(CBuffer(address, size, item, ROLES[role]))

    def read(self, address: int, shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
        out = np.empty(shape, numpy_dtype(dtype))
        ctypes.memmove(out.ctypes.data, address, out.nbytes)
        return to_mlx(out, dtype)

    def metadata(self, argument: Argument, x: HostArray) -> int:
        values: dict[str, HostArray] = {
            "shape": np.array(x.shape, np.int32),
            "strides": np.array([s // x.itemsize for s in x.strides], np.int64),
            "ndim": np.array([x.ndim], np.int32),
        }
        return self.place_input(f"{argument.name}_{argument.kind}", values[argument.kind], "metadata")


@contextmanager
def memory(runtime: ctypes.CDLL) -> Iterator[Memory]:
    made = Memory(runtime)
    try:
        yield made
    finally:
        for address, length in made.mapped:
            runtime.sim_release(address, length)

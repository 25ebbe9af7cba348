"""All that can be said about a kernel without a GPU: `tiny-llm kernels check`."""

from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx
import numpy as np

from tiny_llm.kernels.catalog import DTYPES, Arguments, KernelEntry
from tiny_llm.kernels.launch import short
from tiny_llm.kernels.sim import KernelError, Simulator

TOLERANCES = {mx.float32: 1e-4, mx.float16: 4e-3, mx.bfloat16: 3e-2}  # of the largest value; the twin has errors, too


def check_kernel(entry: KernelEntry, replace: Mapping[str, Path], seed: int) -> list[str]:
    """Every fault of a kernel on its examples, in words; empty when it is clean. `replace`: another source for it.

    float16 runs in whole groups, as CUDA would, the others in the groups of Metal.
    """
    faults: dict[str, None] = {}
    for dtype in DTYPES:
        for arguments in entry.examples(dtype):
            simulator = Simulator(check=True, seed=seed, replace=replace, whole_groups=dtype == mx.float16)
            faults |= dict.fromkeys(faults_of(entry, arguments, dtype, simulator))
    return list(faults)


def faults_of(entry: KernelEntry, arguments: Arguments, dtype: mx.Dtype, simulator: Simulator) -> list[str]:
    try:
        outputs = entry.run(arguments, simulator)
    except KernelError as error:
        return [str(finding) for finding in error.findings] or [str(error)]
    wrong = []
    names = entry.kernel.outputs.split()
    for name, ours, plain in zip(names, outputs, entry.run(arguments, "plain"), strict=True):
        ours, plain = ours.astype(mx.float32), plain.astype(mx.float32)
        apart = mx.abs(ours - plain)
        bad = np.array(~(apart <= TOLERANCES[dtype] * mx.abs(plain).max())).reshape(-1)  # NaN is bad, too
        if bad.any():
            first = int(bad.argmax())
            wrong.append(
                f"{entry.kernel.name}.metal: wrong result: `{name}`[{first}] is {ours.reshape(-1)[first].item():.6g}, "
                f"the plain twin has {plain.reshape(-1)[first].item():.6g} ({bad.sum()} of {bad.size} "
                f"differ, shape {tuple(ours.shape)}, {short(dtype)})"
            )
    return wrong

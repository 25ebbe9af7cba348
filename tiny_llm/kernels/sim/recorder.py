"""Launches kept instead of run: for tools that look at a kernel's source."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from tiny_llm.kernels.sim.signature import Interface
from tiny_llm.kernels.sim.simulator import Dispatch, Simulator, as_array
from tiny_llm.kernels.sim.source import Source


@dataclass
class Recorder(Simulator):
    """Runs nothing: keeps what each launch would have been, and returns zeros."""

    calls: list[tuple[Interface, Source, list[mx.array], Dispatch]] = field(default_factory=list)

    def launch(
        self, interface: Interface, source: Source, inputs: Sequence[Any], dispatch: Dispatch, verbose: bool = False
    ) -> list[mx.array]:
        source = self.replacement(interface.name) or source
        self.calls.append((interface, source, [as_array(x) for x in inputs], dispatch))
        return [mx.zeros(s, d) for s, d in zip(dispatch.output_shapes, dispatch.output_dtypes, strict=True)]

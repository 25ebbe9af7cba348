"""How the engine runs a model."""

from dataclasses import dataclass
from typing import Literal

from tiny_llm.config.fields import require


@dataclass(frozen=True)
class EngineConfig:
    """How the engine runs a model.

    `ops`: "fused" (the fastest implementation of each operation) or "plain" (the readable ones).
    `dtype`: of weights and arithmetic; "auto" is float32 on a CPU and the files' own on a GPU.
    `prefill_chunk`: prompt tokens per forward pass. `max_context`: tokens a sequence may hold, None for the model's.
    `kernels`: the back end on which norm, rotation and gate run as our Metal kernels; None leaves them to `ops`.
    """

    ops: Literal["fused", "plain"] = "fused"
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    prefill_chunk: int = 2048
    max_context: int | None = None
    kernels: Literal["metal", "cuda", "sim", "plain"] | None = None

    def __post_init__(self) -> None:
        require(self.ops in ("fused", "plain"), f"ops: expected fused or plain, found {self.ops!r}")
        dtypes = ("auto", "float32", "float16", "bfloat16")
        require(self.dtype in dtypes, f"dtype: expected one of {', '.join(dtypes)}, found {self.dtype!r}")
        for name in ("prefill_chunk", "max_context"):
            value = getattr(self, name)
            ok = (value is None and name == "max_context") or (isinstance(value, int) and value >= 1)
            require(ok, f"{name}: expected an integer of at least 1, found {value!r}")
        back_ends = ("metal", "cuda", "sim", "plain")
        require(
            self.kernels is None or self.kernels in back_ends,
            f"kernels: expected one of {', '.join(back_ends)}, found {self.kernels!r}",
        )

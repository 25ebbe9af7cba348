"""How the engine runs a model."""

from dataclasses import dataclass, field
from typing import Any, Literal

from tiny_llm.config.fields import is_integer, require
from tiny_llm.config.model import GROUP_SIZES
from tiny_llm.config.speculation import SpeculationConfig

CACHES = ("contiguous", "rotating", "quantized")
KV_BITS = (8, 4)
KERNELS = ("metal", "cuda", "cpu", "sim", "plain", "mlx")
WINDOW, SINKS = 1024, 4  # of a rotating cache, if not set; the sinks are StreamingLLM's
RING, FEW_BITS = ("rotating",), ("quantized", "rotating")
BELONGS = {"window": RING, "sinks": RING, "kv_bits": FEW_BITS, "kv_group_size": FEW_BITS}


@dataclass(frozen=True)
class EngineConfig:
    """How the engine runs a model.

    `ops`: "fused" (the fastest implementation of each operation) or "plain" (the readable ones), for the operations
    that `kernels` leaves to MLX.
    `dtype`: of weights and arithmetic; "auto" is float32 on a CPU and the files' own on a GPU.
    `prefill_chunk`: prompt tokens per forward pass of a single prompt; `SchedulerConfig.token_budget` bounds the steps
    of many. `max_context`: tokens a sequence may hold, None for the model's; more than these are refused when the model
    loads.
    `kernels`: "metal", "cuda", "sim" and "plain" are back ends on which our Metal kernels run the whole model; "cpu"
    stands for our CPU kernels, "mlx" for MLX's operations alone; None takes the fastest, see `kernels.table`.
    `activations`: "int8" rounds activations to 8 bits in the CPU kernels' products of few rows with packed weights:
    faster, but texts change (of 200 greedy answers of SmolLM2-135M, 88 stayed equal).
    `expert_bytes`: leave experts in the files, and keep at most this many bytes of them in memory; None loads all.
    `cache`: "contiguous" keeps every token; "rotating" the first `sinks` and the newest, `window` in all (1024 and 4
    if not set); "quantized" keeps `kv_bits` (8 or 4, 8 if not set) for each number, in groups of `kv_group_size`
    (64 if not set and head_dim allows it). With one of these two a rotating cache is packed as well.
    `speculation`: who guesses the next tokens, if anyone.
    """

    ops: Literal["fused", "plain"] = "fused"
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    prefill_chunk: int = 2048
    max_context: int | None = None
    kernels: Literal["metal", "cuda", "cpu", "sim", "plain", "mlx"] | None = None
    activations: Literal["float32", "int8"] = "float32"
    expert_bytes: int | None = None
    cache: Literal["contiguous", "rotating", "quantized"] = "contiguous"
    window: int | None = None
    sinks: int | None = None
    kv_bits: int | None = None
    kv_group_size: int | None = None
    speculation: SpeculationConfig = field(default_factory=SpeculationConfig)

    def __post_init__(self) -> None:
        require(self.ops in ("fused", "plain"), f"ops: expected fused or plain, found {self.ops!r}")
        dtypes = ("auto", "float32", "float16", "bfloat16")
        require(self.dtype in dtypes, f"dtype: expected one of {', '.join(dtypes)}, found {self.dtype!r}")
        for name in ("prefill_chunk", "max_context", "expert_bytes"):
            value = getattr(self, name)
            ok = (value is None and name != "prefill_chunk") or (is_integer(value) and value >= 1)
            require(ok, f"{name}: expected an integer of at least 1, found {value!r}")
        require(
            self.kernels is None or self.kernels in KERNELS,
            f"kernels: expected one of {', '.join(KERNELS)}, found {self.kernels!r}",
        )
        require(
            self.speculation.drafter == "none" or self.cache != "rotating",
            "speculation: a full rotating cache can't forget rejected guesses; choose another cache, or leave it out",
        )
        require(
            self.activations in ("float32", "int8"),
            f"activations: expected float32 or int8, found {self.activations!r}",
        )
        self._check_cache()

    def _check_cache(self) -> None:
        require(self.cache in CACHES, f"cache: expected one of {', '.join(CACHES)}, found {self.cache!r}")
        for name, kinds in BELONGS.items():
            value = getattr(self, name)
            require(
                value is None or self.cache in kinds,
                f"{name}: {value!r} is for the {kinds[0]} cache, found the {self.cache} one; "
                f"set cache to {' or '.join(kinds)}",
            )
        check_window(**self.cache_settings("window", "sinks"))
        check_packing(self.kv_bits, self.kv_group_size)

    @property
    def packed_bits(self) -> int | None:
        """Bits of each number of keys and values; None where they are not packed."""
        packed = self.cache == "quantized" or self.kv_bits or self.kv_group_size
        return (self.kv_bits or 8) if packed else None

    def cache_settings(self, *names: str) -> dict[str, Any]:
        """Those of the named settings that are set; the caches know what holds for the others."""
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def check_window(window: int = WINDOW, sinks: int = SINKS) -> None:
    """Refuse a window that holds no token besides the sinks."""
    for name, value, least in (("sinks", sinks, 0), ("window", window, 1)):
        require(
            type(value) is int and value >= least, f"{name}: expected an integer of at least {least}, found {value!r}"
        )
    require(window > sinks, f"window: expected more than the {sinks} sinks that it includes, found {window}")


def check_packing(bits: int | None, group_size: int | None) -> None:
    """Refuse bits and groups that keys and values can't be packed into."""
    require(bits is None or bits in KV_BITS, f"kv_bits: expected 8 or 4, found {bits!r}")
    sizes = ", ".join(map(str, GROUP_SIZES))
    require(
        group_size is None or group_size in GROUP_SIZES, f"kv_group_size: expected one of {sizes}, found {group_size!r}"
    )

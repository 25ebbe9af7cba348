"""The figures of `tiny-llm bench`: what was measured, and what the machine allows at most."""

from dataclasses import dataclass, replace
from statistics import median

from tiny_llm.cache.choose import slot_bytes
from tiny_llm.config.engine import WINDOW
from tiny_llm.engine.answers import Stats
from tiny_llm.engine.llm import LLM
from tiny_llm.kernels.cpu import build
from tiny_llm.kernels.cpu.layout import laid_out_bytes
from tiny_llm.kernels.roofline import bound, matrix_weights, step_bytes, step_operations, this_machine, weight_bits
from tiny_llm.views.answers import peak_memory
from tiny_llm.views.units import size


@dataclass(frozen=True)
class Figure:
    """One quantity over the runs. `unit` is tokens/s, s or bytes."""

    case: str
    median: float
    low: float
    high: float
    unit: str

    def row(self) -> tuple[str, str, str]:
        """Name, median and spread as text."""
        return self.case, self._show(self.median), f"{self._show(self.low)} to {self._show(self.high)}"

    def _show(self, value: float) -> str:
        if self.unit == "bytes":
            return size(value)
        return f"{value:,.0f} {self.unit}" if value >= 100 else f"{value:.3g} {self.unit}"


def at_most(llm: LLM, context: int) -> Figure:
    """Return the tokens per second that this machine's memory and arithmetic, as measured now, allow one sequence."""
    moved = bytes_read(llm, context)
    chip = this_machine(moved)
    if llm.model.ops.native:
        chip = replace(chip, bandwidth=build.kernels().read_speed(int(moved)))  # they read faster than MLX's product
    least = bound(chip, moved, step_operations(llm.config, context))
    return Figure(f"decode by {least.by}", *3 * (1 / least.seconds,), "tokens/s")


def bytes_read(llm: LLM, context: int) -> float:
    """Return the bytes that a decode step reads at the end of `context` tokens: all matrices, and keys and values."""
    config, engine = llm.config, llm.engine_config
    width = llm.model.weights["norm"]["weight"].dtype.size  # of the activations
    bits = weight_bits(config, 8 * width)
    if llm.model.ops.native:
        bits = 8 * laid_out_bytes(llm.model.weights, config) / matrix_weights(config)
    numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim  # of a token's K and V
    kv_bits = 8 * slot_bytes(config, engine, width) / numbers
    if engine.cache == "rotating":
        context = min(context, engine.window or WINDOW)
    return step_bytes(config, context, 1, bits, kv_bits)


def summarize(stats: list[Stats]) -> list[Figure]:
    """Return the figures of all runs."""
    quantities = {
        "prefill": ("tokens/s", [each.prefill_tps for each in stats]),
        "decode": ("tokens/s", [each.decode_tps for each in stats]),
        "time to first token": ("s", [each.time_to_first_token for each in stats]),
        "peak memory": ("bytes", [float(peak_memory(each)) for each in stats]),
    }
    return [Figure(case, median(v), min(v), max(v), unit) for case, (unit, v) in quantities.items()]

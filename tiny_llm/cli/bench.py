"""`tiny-llm bench`: how fast a model is on this machine."""

import random
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tiny_llm.cli.options import EngineOptions, option, with_options
from tiny_llm.cli.session import peak_memory
from tiny_llm.cli.terminal import note, print_json, size, table

if TYPE_CHECKING:
    from tiny_llm.engine.llm import LLM, Stats


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


@with_options
def bench(
    engine: EngineOptions,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Length of the prompt.")] = 512,
    max_tokens: Annotated[int, typer.Option(min=2, help="Tokens to write.")] = 128,
    runs: Annotated[int, typer.Option(min=1, max=10_000, help="Measured runs, after one that warms up.")] = 5,
    as_json: Annotated[bool, option("Print one JSON object.", "--json")] = False,
) -> None:
    """Measure prefill, decoding, time to first token and memory of a model."""
    llm = engine.load()
    if prompt_tokens + max_tokens > llm.max_context:
        raise typer.BadParameter(
            f"prompt-tokens + max-tokens: expected at most the context of {llm.max_context}, "
            f"found {prompt_tokens} + {max_tokens}"
        )
    stats = [run(llm, prompt_tokens, max_tokens, seed) for seed in range(runs + 1)][1:]
    figures = [*summarize(stats), at_most(llm, prompt_tokens + max_tokens)]
    if as_json:
        about = {"model": llm.name, "prompt_tokens": prompt_tokens, "max_tokens": max_tokens, "runs": runs}
        print_json(about | {"rows": [vars(figure) for figure in figures]})
        return
    print(f"{llm.name}: prompt {prompt_tokens}, {max_tokens} written, median and range of {runs} runs")
    table([figure.row() for figure in figures])


def run(llm: "LLM", prompt_tokens: int, max_tokens: int, seed: int) -> "Stats":
    """Run one request with a prompt of its own, so that nothing comes from the cache of the last request."""
    draw = random.Random(seed)
    prompt = [(seed + 1) % llm.config.vocab_size]
    prompt += [draw.randrange(llm.config.vocab_size) for _ in range(prompt_tokens - 1)]
    settings: dict[str, Any] = {"max_tokens": max_tokens, "temperature": 0.0, "ignore_eos": True}
    for _ in llm.stream(prompt, **settings):
        pass
    assert llm.last_stats is not None
    note(f"run {seed}" if seed else "warm-up")
    return llm.last_stats


def at_most(llm: "LLM", context: int) -> Figure:
    """Return the tokens per second that this machine's memory and arithmetic, as measured now, allow one sequence."""
    from tiny_llm.kernels.roofline import bound, step_operations, this_machine

    moved = bytes_read(llm, context)
    chip = this_machine(moved)
    if llm.model.ops.native:
        from tiny_llm.kernels.cpu import build

        chip = replace(chip, bandwidth=build.kernels().read_speed(int(moved)))  # they read faster than MLX's product
    least = bound(chip, moved, step_operations(llm.config, context))
    return Figure(f"decode by {least.by}", *3 * (1 / least.seconds,), "tokens/s")


def bytes_read(llm: "LLM", context: int) -> float:
    """Return the bytes that a decode step reads at the end of `context` tokens: all matrices, and keys and values."""
    from tiny_llm.cache.choose import slot_bytes
    from tiny_llm.config.engine import WINDOW
    from tiny_llm.kernels.cpu.layout import laid_out_bytes
    from tiny_llm.kernels.roofline import matrix_weights, step_bytes, weight_bits

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


def summarize(stats: "list[Stats]") -> list[Figure]:
    """Return the figures of all runs."""
    quantities = {
        "prefill": ("tokens/s", [each.prefill_tps for each in stats]),
        "decode": ("tokens/s", [each.decode_tps for each in stats]),
        "time to first token": ("s", [each.time_to_first_token for each in stats]),
        "peak memory": ("bytes", [float(peak_memory(each)) for each in stats]),
    }
    return [Figure(case, median(v), min(v), max(v), unit) for case, (unit, v) in quantities.items()]

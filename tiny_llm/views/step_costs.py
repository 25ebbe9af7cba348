"""The table of `tiny-llm kernels roofline`: what a decode step costs, and what chips allow."""

from pathlib import Path

from tiny_llm.kernels import roofline
from tiny_llm.kernels.chips import CHIPS
from tiny_llm.kernels.profile import table
from tiny_llm.model import loader


def describe_step(path: Path, name: str, context: int, rows: int, bits: float | None = None) -> str:
    """Return the costs of a step that gives each of `rows` sequences a token, with the tokens per second of chips.

    `bits`: of a weight; None for those in the model's files.
    """
    config = loader.load_config(path)
    width = bits or roofline.weight_bits(config)
    moved = roofline.step_bytes(config, context, rows, width)
    if config.moe:
        moved += config.moe.further_weights(config.hidden_size, rows) * width / 8
    operations = roofline.step_operations(config, context, rows)
    weights = f"{roofline.matrix_weights(config):,} weights of {width:g} bits"
    each = f"{operations / moved:.2f} for each byte"
    found: list[tuple[object, ...]] = [("chip", "GB/s", "TFLOP/s", "bound by", "tokens/s at most")]
    for chip in (*CHIPS, roofline.this_machine(moved)):
        least = roofline.bound(chip, moved, operations)
        flops = f"{chip.teraflops:.3g}" if chip.teraflops else "-"
        found.append((chip.name, f"{chip.bandwidth:,.4g}", flops, least.by, int(rows / least.seconds)))
    lines = [
        f"{name}: {weights}, {rows} · {context} tokens",
        f"{moved / 1e6:,.1f} MB and {operations / 1e6:,.1f} million operations: {each}",
        table(found),
    ]
    return "\n".join(lines)

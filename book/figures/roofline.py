"""Chapter 2.1: the roofline with steps of a model on it, and what a step reads."""

from math import log10

from tiny_llm.config import ModelConfig, RopeConfig
from tiny_llm.kernels.chips import CHIPS
from tiny_llm.kernels.roofline import bound, matrix_weights, step_bytes, step_operations
from tiny_llm.views.svg import AMBER, BLUE, GREEN, GREY, Drawing

QWEN3_06B = ModelConfig("qwen3", 1024, 28, 3072, 16, 8, 128, 151_936, 40_960, 1e-6, RopeConfig(1e6), True, False, True)
CHIP = next(chip for chip in CHIPS if chip.name == "M1")
CONTEXT = 500


def roofline() -> Drawing:
    """Operations per second over operations per byte, both logarithmic."""
    steps = [(f"{rows} sequence{'s' if rows > 1 else ''}", *_intensity(rows)) for rows in (1, 8, 64)]
    weights = matrix_weights(QWEN3_06B)
    steps.append(("prompt of 500", 2 * 500 * weights / (2 * weights), bound(CHIP, 2 * weights, 1000 * weights).by))
    balance = CHIP.balance or 0
    alt = (
        f"The roofline of {CHIP.name}: it rises with {CHIP.bandwidth:g} GB/s up to {balance:.0f} operations per byte, "
        f"then stays at {CHIP.teraflops:g} TFLOP/s. Steps of Qwen3-0.6B on it: "
        + ", ".join(f"{name} at {x:.3g} operations per byte, bound by {by}" for name, x, by in steps)
        + "."
    )
    drawing = Drawing("roofline", 620, 250, "A roofline, and where steps of a model lie on it", alt)

    def place(intensity: float) -> tuple[float, float]:
        speed = min(CHIP.bandwidth * intensity / 1e3, CHIP.teraflops or 0)  # TFLOP/s
        return 70 + 150 * (log10(intensity) + 0.3), 200 - 62 * (log10(speed) + 1.5)

    drawing.line([(62, 205), (605, 205)], GREY, 0.7)
    drawing.line([(62, 205), (62, 20)], GREY, 0.7)
    for x in (1, 10, 100, 1000):
        drawing.text(place(x)[0], 216, f"{x}", 11, colour=GREY)
    drawing.text(330, 236, "operations for each byte read", 12, colour=GREY)
    for speed in (0.1, 1):
        drawing.text(56, 200 - 62 * (log10(speed) + 1.5), f"{speed:g}", 11, "end", GREY)
    drawing.text(70, 12, "TFLOP/s", 12, "start", GREY)
    drawing.line([place(0.6), place(balance), place(1800)], BLUE, 2.5)
    drawing.text(place(5)[0] - 12, place(5)[1] - 12, f"memory: {CHIP.bandwidth:g} GB/s", 12, "end")
    drawing.text(place(300)[0], place(300)[1] - 14, f"arithmetic: {CHIP.teraflops:g} TFLOP/s", 12)
    for name, intensity, _ in steps:
        x, y = place(intensity)
        drawing.add("circle", cx=x, cy=y, r=5, fill=AMBER, stroke="currentColor", stroke_width=0.7)
        drawing.text(x + 10, y + 16, name, 12, "middle" if intensity > 100 else "start", bold=True)
    return drawing


def _intensity(rows: int) -> tuple[float, str]:
    moved, operations = step_bytes(QWEN3_06B, CONTEXT, rows), step_operations(QWEN3_06B, CONTEXT, rows)
    return operations / moved, bound(CHIP, moved, operations).by


def reads() -> Drawing:
    """Bytes of weights and of keys and values, for four kinds of step."""
    cases = [
        ("1 sequence, 1,000 tokens", 1, 1000, 16.0),
        ("the same, weights of 4.5 bits", 1, 1000, 4.5),
        ("1 sequence, 16,000 tokens", 1, 16_000, 16.0),
        ("16 sequences, 1,000 tokens", 16, 1000, 16.0),
    ]
    rows = []
    for name, sequences, context, bits in cases:
        weights = matrix_weights(QWEN3_06B) * bits / 8
        rows.append((name, weights / 1e9, (step_bytes(QWEN3_06B, context, sequences, bits) - weights) / 1e9))
    alt = "Gigabytes that a step of Qwen3-0.6B reads. " + "; ".join(
        f"{name}: weights {weights:.2f}, keys and values {cache:.2f}" for name, weights, cache in rows
    )
    drawing = Drawing("step-reads", 640, 34 + 38 * len(rows), "What a step reads", alt + ".")
    scale = 105.0
    for i, (name, weights, cache) in enumerate(rows):
        y = 26 + 38 * i
        drawing.text(206, y + 13, name, 12, "end")
        drawing.rect(214, y, scale * weights, 26, BLUE, 0.35)
        drawing.rect(214 + scale * weights, y, scale * cache, 26, GREEN, 0.35)
        drawing.text(222 + scale * (weights + cache), y + 13, f"{weights + cache:.2f} GB", 12, "start", bold=True)
    drawing.text(214, 10, "blue: weights, green: keys and values", 11, "start", GREY)
    return drawing


def drawings() -> list[Drawing]:
    return [roofline(), reads()]

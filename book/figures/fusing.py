"""Chapter 2.3: passes over memory, apart and fused."""

from tiny_llm.views.svg import AMBER, BLUE, GREEN, GREY, Drawing

CASES = {  # name → (kernel, arrays read, arrays written) in units of one row of the result
    "SwiGLU": (
        [("silu", ["gate"], ["silu(gate)"]), ("product", ["silu(gate)", "up"], ["out"])],
        [("swiglu", ["gate", "up"], ["out"])],
    ),
    "sum and norm": (
        [("add", ["x", "residual"], ["sum"]), ("rms_norm", ["sum"], ["out"])],
        [("residual_rms_norm", ["x", "residual"], ["sum", "out"])],
    ),
}


def count(kernels: list) -> int:
    return sum(len(reads) + len(writes) for _, reads, writes in kernels)


def passes(name: str, slug: str) -> Drawing:
    """Kernels as boxes, each array that crosses to memory as an arrow."""
    apart, fused = CASES[name]
    alt = f"{name}. " + " ".join(
        f"{title}: "
        + "; ".join(
            f"{kernel} reads {', '.join(reads)} and writes {', '.join(writes)}" for kernel, reads, writes in side
        )
        + f": {count(side)} arrays cross to memory and back."
        for title, side in (("Apart", apart), ("Fused", fused))
    )
    drawing = Drawing(f"fuse-{slug}", 660, 176, f"{name}: apart and fused", alt)
    x = 20.0
    for title, side in (("apart", apart), ("fused", fused)):
        width = 190.0 * len(side)
        drawing.text(x + width / 2, 12, f"{title}: {count(side)} arrays moved", 13, bold=True)
        for k, (kernel, reads, writes) in enumerate(side):
            left = x + 190 * k
            drawing.rect(left + 20, 34, 150, 34, AMBER, 0.3, rx=6)
            drawing.text(left + 95, 51, kernel, 13)
            names = [(array, BLUE, True) for array in reads] + [(array, GREEN, False) for array in writes]
            for i, (array, colour, up) in enumerate(names):
                at = left + 20 + 150 * (i + 0.5) / len(names)
                ends = [(at, 118), (at, 70)] if up else [(at, 68), (at, 116)]
                drawing.line(ends, colour, 1.8, arrow=True)
                drawing.text(at, 130 if i % 2 == 0 else 144, array, 11)
        x += width + 30
    drawing.rect(20, 154, 620, 18, GREY, 0.15, rx=3)
    drawing.text(330, 163, "device memory", 11)
    return drawing


def drawings() -> list[Drawing]:
    return [passes("SwiGLU", "swiglu"), passes("sum and norm", "norm")]

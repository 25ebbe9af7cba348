"""Chapter 1.4: RMSNorm and the gate of the MLP."""

import mlx.core as mx

from tiny_llm.model import ops
from tiny_llm.views.svg import AMBER, BLUE, GREEN, GREY, Drawing, number


def norm() -> Drawing:
    """The same direction at three lengths, before and after."""
    rows = [[3.0, -4.0, 0.0, 0.0], [0.3, -0.4, 0.0, 0.0], [30.0, -40.0, 0.0, 0.0]]
    after = ops.rms_norm(mx.array(rows), mx.ones(4), 1e-6).tolist()
    alt = (
        "Three vectors in one direction, of lengths 5, 0.5 and 50, all become "
        + ", ".join(number(round(value, 2)) for value in after[0])
        + " after RMSNorm: the length is gone, the direction stays."
    )
    drawing = Drawing("rms-norm", 560, 130, "RMSNorm removes the length", alt)
    drawing.text(120, 12, "x", 13, bold=True)
    drawing.text(280, 12, "root mean square", 13, bold=True)
    drawing.text(440, 12, "x / root mean square", 13, bold=True)
    for i, (x, y) in enumerate(zip(rows, after, strict=True)):
        top = 28 + 34 * i
        rms = (sum(value * value for value in x) / 4) ** 0.5
        for j in range(4):
            drawing.rect(30 + 46 * j, top, 42, 26, BLUE, 0.15, rx=3)
            drawing.text(51 + 46 * j, top + 13, number(x[j]), 12)
            drawing.rect(350 + 46 * j, top, 42, 26, GREEN, 0.25, rx=3)
            drawing.text(371 + 46 * j, top + 13, number(y[j]), 12)
        drawing.text(282, top + 13, number(rms), 12)
        drawing.line([(222, top + 13), (258, top + 13)], arrow=True)
        drawing.line([(306, top + 13), (342, top + 13)], arrow=True)
    return drawing


def gate() -> Drawing:
    """SiLU beside ReLU and the identity."""
    xs = [i / 4 for i in range(-24, 17)]
    ys = ops.silu(mx.array(xs)).tolist()
    low = min(zip(ys, xs, strict=True))
    alt = (
        f"Curve of SiLU from -6 to 4: near 0 for very negative x, lowest with {low[0]:.2f} near x = {low[1]:.2f}, "
        "0 at 0, close to x for large x. ReLU, dashed, is 0 up to 0 and x from there."
    )
    drawing = Drawing("silu", 480, 210, "SiLU: a smooth gate", alt)

    def place(x: float, y: float) -> tuple[float, float]:
        return 40 + 40 * (x + 6), 170 - 36 * y

    drawing.line([place(-6, 0), place(4, 0)], GREY, 0.7)
    drawing.line([place(0, -0.6), place(0, 4)], GREY, 0.7)
    for x in range(-6, 5, 2):
        drawing.text(*place(x, -0.35), str(x), 10, colour=GREY)
    for y in (1, 2, 3, 4):
        drawing.text(place(0, y)[0] - 8, place(0, y)[1], str(y), 10, "end", GREY)
    drawing.line([place(-6, 0), place(0, 0), place(4, 4)], AMBER, 1.5, dash="5 4")
    drawing.line([place(x, y) for x, y in zip(xs, ys, strict=True)], BLUE, 2.5)
    drawing.text(*place(2.4, 3.4), "ReLU", 12, "end")
    drawing.text(*place(3.1, 2.2), "SiLU", 12, "start")
    return drawing


def drawings() -> list[Drawing]:
    return [norm(), gate()]

"""Chapter 2.6: a group's ladder of values, values in words of 32 bits, and what a weight takes."""

import mlx.core as mx

from tiny_llm.quantize.affine import quantize_groups
from tiny_llm.quantize.plan import stored_bits
from tiny_llm.views.svg import AMBER, BLUE, GREEN, GREY, RED, Drawing, number

WEIGHTS = (2.0, -0.7, 0.1, 1.0)
HUES = (BLUE, GREEN, AMBER)


def ladder() -> Drawing:
    """The chapter's four weights, on evenly spread rungs and on those that reach zero."""
    values, scales, biases = (array[0].tolist() for array in quantize_groups(mx.array([WEIGHTS]), 4, 2))
    (scale,), (bias,) = scales, biases
    low, high = min(WEIGHTS), max(WEIGHTS)
    spread = [high - i * (high - low) / 3 for i in range(4)]
    stretched = [bias + scale * i for i in range(4)]
    alt = (
        f"A number line with the weights {', '.join(map(number, WEIGHTS))}. Four evenly spread rungs, "
        f"{', '.join(map(number, spread))}, miss zero. Stretched to {', '.join(map(number, stretched))}, one is zero; "
        f"the weights take the values {', '.join(map(str, values))}."
    )
    drawing = Drawing("quantize-ladder", 560, 190, "Two ladders for four weights", alt)

    def at(x: float) -> float:
        return 300 + 110 * x

    drawing.line([(at(0), 10), (at(0), 180)], GREY, 0.7, dash="3 3")
    drawing.text(at(0), 184, "0", 11, colour=GREY)
    for top, rungs, name in ((50, spread, "spread evenly"), (130, stretched, "zero on a rung")):
        drawing.text(8, top - 26, name, 12, "start", bold=True)
        drawing.line([(at(min(rungs)), top), (at(max(rungs)), top)], GREY, 0.7)
        for value, rung in enumerate(rungs):
            drawing.line([(at(rung), top - 9), (at(rung), top + 9)], BLUE, 2.5)
            drawing.text(at(rung), top + 20, f"{value}: {number(rung)}", 11)
        for weight in WEIGHTS:
            nearest = min(rungs, key=lambda rung: abs(rung - weight))
            drawing.add("circle", cx=at(weight), cy=top - 22, r=4, fill=AMBER)
            drawing.line([(at(weight), top - 18), (at(nearest), top - 10)], AMBER, 1, arrow=True)
    return drawing


def words() -> Drawing:
    """Values of 4 and of 3 bits in words of 32."""
    alt = (
        "Two rows of 32 bits and the first bits of the next. With 4 bits a word ends where the eighth value ends. "
        "With 3 bits the eleventh value, v10, has two bits in the first word and one in the second."
    )
    drawing = Drawing("quantize-words", 600, 150, "Values lie one behind the other", alt)
    wide = 15
    for top, bits in ((30, 4), (100, 3)):
        drawing.text(8, top + 12, f"{bits} bits", 12, "start", bold=True)
        for bit in range(36):
            value = bit // bits
            drawing.rect(56 + wide * bit, top, wide, 24, HUES[value % 3], 0.3, stroke_width=0.4)
        for value in range(-(-36 // bits)):
            first, last = value * bits, min((value + 1) * bits, 36)
            if last - first == bits:
                drawing.text(56 + wide * (first + last) / 2, top + 12, f"v{value}", 11)
        drawing.line([(56 + wide * 32, top - 10), (56 + wide * 32, top + 34)], RED, 2)
        drawing.text(56 + wide * 32 - 6, top - 8, "word 0, bit 31", 10, "end", GREY)
        drawing.text(56 + wide * 32 + 6, top - 8, "word 1", 10, "start", GREY)
    return drawing


def bits() -> Drawing:
    """Packed values, and the scale and bias on top of them."""
    cases = [(b, group) for b in (2, 3, 4, 6, 8) for group in (32, 64, 128)]
    sizes = ", ".join(f"{number(stored_bits(b, 64))} for {b}" for b in (2, 3, 4, 6, 8))
    alt = (
        f"Bars of the bits that a weight takes. In groups of 64: {sizes}. A scale and a bias of 16 bits each add 1 bit "
        "in groups of 32, half a bit in groups of 64, a quarter in groups of 128; bfloat16 takes 16."
    )
    drawing = Drawing("quantize-bits", 600, 270, "What a weight takes", alt)
    for i, (b, group) in enumerate([*cases, (16, 0)]):
        top, whole = 12 + 15.5 * i, stored_bits(b, group) if group else b
        name = f"{b} bits, groups of {group}" if group else "bfloat16"
        drawing.text(150, top + 6, name, 11, "end")
        drawing.rect(158, top, 24 * b, 12, BLUE, 0.35)
        if group:
            drawing.rect(158 + 24 * b, top, 24 * (whole - b), 12, AMBER, 0.6)
        drawing.text(164 + 24 * whole, top + 6, number(whole), 11, "start")
    drawing.text(440, 40, "values", 12, "start", BLUE, bold=True)
    drawing.text(440, 58, "scale and bias", 12, "start", AMBER, bold=True)
    return drawing


def drawings() -> list[Drawing]:
    return [ladder(), words(), bits()]

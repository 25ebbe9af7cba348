"""Chapter 1.5: where a Qwen's parameters are, and the shapes on the way through a layer."""

from tiny_llm.views.svg import AMBER, BLUE, GREEN, GREY, RED, Drawing

QWEN = {"hidden": 1024, "layers": 28, "heads": 16, "kv": 8, "dim": 128, "inner": 3072, "vocab": 151_936}  # Qwen3-0.6B


def counts(c: dict[str, int]) -> dict[str, int]:
    """Parameters by kind; norms are left out (under 0.02 %)."""
    qkv = c["hidden"] * (c["heads"] + 2 * c["kv"]) * c["dim"]
    return {
        "embedding (tied head)": c["vocab"] * c["hidden"],
        "q, k, v": c["layers"] * qkv,
        "output projection": c["layers"] * c["heads"] * c["dim"] * c["hidden"],
        "MLP": c["layers"] * 3 * c["hidden"] * c["inner"],
    }


def parameters() -> Drawing:
    found = counts(QWEN)
    total = sum(found.values())
    alt = f"Of {total / 1e6:.0f} million parameters of Qwen3-0.6B " + ", ".join(
        f"{name} has {value / 1e6:.0f} million ({100 * value / total:.0f} %)" for name, value in found.items()
    )
    drawing = Drawing("parameters", 660, 96, "Where the parameters of Qwen3-0.6B are", alt + ".")
    x = 10.0
    for (name, value), hue in zip(found.items(), (AMBER, BLUE, GREEN, RED), strict=True):
        width = 640 * value / total
        drawing.rect(x, 28, width, 34, hue, 0.35, tip=f"{name}: {value:,}")
        drawing.text(x + width / 2, 45, f"{100 * value / total:.0f} %", 13)
        drawing.text(x + width / 2, 14 if width < 130 else 76, name, 11)
        x += width
    return drawing


def shapes() -> Drawing:
    """One layer with the shape after each step."""
    steps = (
        ("x", "(T, hidden)"),
        ("norm", "(T, hidden)"),
        ("qkv_proj", "(T, (Hq + 2 Hkv) · D)"),
        ("reshape, split", "(T, Hq, D), 2 × (T, Hkv, D)"),
        ("q/k norm, RoPE", "the same"),
        ("cache.attend", "(T, Hq, D)"),
        ("o_proj, + x", "(T, hidden)"),
        ("norm, gate_up_proj", "(T, 2 · inner)"),
        ("SwiGLU", "(T, inner)"),
        ("down_proj, + x", "(T, hidden)"),
    )
    alt = "Shapes through a layer: " + "; ".join(f"{name} {shape}" for name, shape in steps) + "."
    drawing = Drawing("layer-shapes", 560, 30 * len(steps) + 16, "Shapes through a layer", alt)
    for i, (name, shape) in enumerate(steps):
        y = 8 + 30 * i
        hue = GREEN if name == "cache.attend" else AMBER if "+ x" in name or name == "x" else BLUE
        drawing.rect(130, y, 160, 22, hue, 0.2, rx=4)
        drawing.text(210, y + 11, name, 12)
        drawing.text(306, y + 11, shape, 12, "start")
        if i:
            drawing.line([(210, y - 8), (210, y)], arrow=True)
    for first, last, label in ((0, 6, "residual"), (6, 9, "residual")):
        a, b = 8 + 30 * first + 11 + (4 if first else 0), 8 + 30 * last + 11
        drawing.line([(130, a), (96, a), (96, b), (130, b)], AMBER, 1.5, arrow=True)
        drawing.text(90, (a + b) / 2, label, 11, "end")
    for first, last, label in ((1, 4, "project"), (6, 9, "finish")):
        a, b = 8 + 30 * first, 30 + 30 * last
        drawing.line([(500, a), (506, a), (506, b), (500, b)], GREY)
        drawing.text(512, (a + b) / 2, label, 12, "start")
    return drawing


def drawings() -> list[Drawing]:
    return [parameters(), shapes()]

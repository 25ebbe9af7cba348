"""Loss curves as SVG, from the training's log."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

WIDTH, HEIGHT, MARGIN = 720, 360, 56
COLORS = ("#2a78d6", "#d9622b", "#3f9c4f", "#8a56c2")
Points = list[tuple[float, float]]


def read_losses(log: Path) -> Points:
    """(million tokens, answer loss) of each entry."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    entries = [json.loads(line) for line in lines]
    return [(entry["tokens"] / 1e6, entry["answers"]) for entry in entries if "answers" in entry]


def loss_plot(logs: Mapping[str, Path], path: Path) -> None:
    """Write the curves of all logs into one picture; the loss is on a logarithmic axis."""
    curves = {name: read_losses(log) for name, log in logs.items()}
    points = [point for curve in curves.values() for point in curve]
    if not points:
        return
    last = max(x for x, _ in points)
    low = math.floor(min(math.log2(max(y, 1e-4)) for _, y in points))
    high = math.ceil(max(math.log2(max(y, 1e-4)) for _, y in points))

    def place(x: float, y: float) -> tuple[float, float]:
        share = (math.log2(max(y, 1e-4)) - low) / max(high - low, 1)
        return MARGIN + x / last * (WIDTH - 2 * MARGIN), HEIGHT - MARGIN - share * (HEIGHT - 2 * MARGIN)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f"<title>Loss on the model's own words while training, up to {last:.1f} million tokens</title>",
    ]
    for power in range(low, high + 1):
        x, y = place(0, 2.0**power)
        parts.append(f'<path d="M{x:.0f} {y:.0f}H{WIDTH - MARGIN}" stroke="#8884" fill="none"/>')
        parts.append(f'<text x="{x - 6:.0f}" y="{y + 4:.0f}" text-anchor="end" fill="#888">{2.0**power:g}</text>')
    for tenth in range(0, 11, 2):
        x, y = place(last * tenth / 10, 2.0**low)
        parts.append(
            f'<text x="{x:.0f}" y="{y + 18:.0f}" text-anchor="middle" fill="#888">{last * tenth / 10:.1f}</text>'
        )
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 16}" text-anchor="middle" fill="#888">million tokens</text>')
    for (name, curve), color in zip(curves.items(), COLORS, strict=False):
        line = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in curve)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="1.5"/>')
        x, y = place(*curve[-1])
        parts.append(f'<text x="{x - 4:.0f}" y="{y - 8:.0f}" text-anchor="end" fill="{color}">{name}</text>')
    path.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")

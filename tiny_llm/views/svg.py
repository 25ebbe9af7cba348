"""Pictures as SVG text: a few shapes, readable on light and dark ground, each with a text alternative.

Lines and letters take the colour of the surrounding text (`currentColor`); fills are translucent hues that stand on
either ground. No style sheet and no blank line, so that a drawing can stand inside Markdown, HTML or by itself.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

BLUE, AMBER, GREEN, RED, GREY = "#3b82f6", "#f59e0b", "#10b981", "#ef4444", "#8b8b8b"
HUES = (BLUE, AMBER, GREEN, RED)
LETTER = 0.58  # mean width of a letter in font sizes, for what has to fit
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }}
svg {{ max-width: 100%; height: auto }}
pre {{ overflow-x: auto }}
</style>
<h1>{title}</h1>
{body}
</html>
"""
STEPPER = """<p><button id="back">← back</button> <button id="on">on →</button> <output id="at"></output></p>
<script>
addEventListener("DOMContentLoaded", () => {
  const frames = [...document.querySelectorAll("figure")];
  let at = 0;
  const show = (to) => {
    at = Math.max(0, Math.min(to, frames.length - 1));
    frames.forEach((frame, i) => { frame.hidden = i !== at; });
    document.getElementById("at").textContent = `${at + 1} of ${frames.length}`;
  };
  document.getElementById("back").onclick = () => show(at - 1);
  document.getElementById("on").onclick = () => show(at + 1);
  addEventListener("keydown", (e) => show(at + (e.key === "ArrowRight") - (e.key === "ArrowLeft")));
  show(0);
});
</script>"""


def number(value: float) -> str:
    """At most two decimals, no trailing zeros: short, and the same on every machine."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


class Drawing:
    """A picture of `width` by `height` units; `name` makes its ids unique on a page, `alt` says what it shows."""

    def __init__(self, name: str, width: float, height: float, title: str, alt: str):
        self.name, self.width, self.height, self.title, self.alt = name, width, height, title, alt
        self._shapes: list[str] = []

    def add(self, tag: str, tip: str = "", **attributes: Any) -> None:
        """One element without children but a tooltip; `_` in a name is written as `-`."""
        inside = f"<title>{escape(tip)}</title>" if tip else ""
        self._shapes.append(f"<{tag}{_attributes(attributes)}>{inside}</{tag}>")

    def rect(
        self, x: float, y: float, w: float, h: float, fill: str = "none", opacity: float = 0.25, **more: Any
    ) -> None:
        """A box with a thin border; `tip` among `more` is shown under the pointer."""
        look: dict[str, Any] = {"x": x, "y": y, "width": w, "height": h, "fill": fill, "fill_opacity": opacity}
        self.add("rect", **look | {"stroke": "currentColor", "stroke_width": 0.7, "stroke_opacity": 0.6} | more)

    def text(
        self,
        x: float,
        y: float,
        words: str,
        size: float = 12,
        anchor: str = "middle",
        colour: str = "currentColor",
        bold: bool = False,
    ) -> None:
        """Words whose middle line is at y."""
        look: dict[str, Any] = {"x": x, "y": y + size * 0.35, "font_size": size, "text_anchor": anchor}
        look |= {"fill": "currentColor", "fill_opacity": 0.65} if colour == GREY else {"fill": colour}
        look |= {"font_weight": "bold"} if bold else {}
        self._shapes.append(f"<text{_attributes(look)}>{escape(words)}</text>")

    def line(
        self,
        points: Sequence[tuple[float, float]],
        colour: str = "currentColor",
        width: float = 1,
        arrow: bool = False,
        dash: str = "",
    ) -> None:
        """A polyline, perhaps with an arrow head at its end."""
        more = {"stroke_dasharray": dash} if dash else {}
        path = " ".join(f"{number(x)},{number(y)}" for x, y in points)
        self.add("polyline", points=path, fill="none", stroke=colour, stroke_width=width, **more)
        if arrow:
            self._head(points[-2], points[-1], colour)

    def _head(self, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
        dx, dy = end[0] - start[0], end[1] - start[1]
        length = (dx * dx + dy * dy) ** 0.5 or 1
        dx, dy = 6 * dx / length, 6 * dy / length
        base = (end[0] - dx, end[1] - dy)
        corners = (end, (base[0] - dy / 2, base[1] + dx / 2), (base[0] + dy / 2, base[1] - dx / 2))
        self.add("polygon", points=" ".join(f"{number(x)},{number(y)}" for x, y in corners), fill=colour)

    def svg(self) -> str:
        """The whole element."""
        return "\n".join(
            (
                f'<svg xmlns="http://www.w3.org/2000/svg" width="{number(self.width)}" '
                f'viewBox="0 0 {number(self.width)} {number(self.height)}" '
                f'role="img" aria-labelledby="{self.name}-title {self.name}-desc" font-family="sans-serif" '
                'color="currentColor">',
                f'<title id="{self.name}-title">{escape(self.title)}</title>',
                f'<desc id="{self.name}-desc">{escape(self.alt)}</desc>',
                *self._shapes,
                "</svg>\n",
            )
        )


def _attributes(values: Mapping[str, Any]) -> str:
    return "".join(
        f' {name.replace("_", "-")}="{escape(value) if isinstance(value, str) else number(value)}"'
        for name, value in values.items()
    )


def page(title: str, drawings: Sequence[Drawing], note: str = "", stepper: bool = False) -> str:
    """One HTML file that needs no other: the pictures, each with its alternative in words, then `note` as it is.

    As a stepper it shows one picture at a time, where scripts may run.
    """
    parts = [STEPPER] if stepper else []
    parts += [f"<figure>\n{d.svg()}<figcaption>{escape(d.alt)}</figcaption></figure>" for d in drawings]
    parts += [f"<pre>{escape(note)}</pre>"] if note else []
    return PAGE.format(title=escape(title), body="\n".join(parts))

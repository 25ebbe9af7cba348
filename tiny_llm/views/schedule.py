"""Who computes what in each step: a row for each slot, a column for each step, the tokens of the step below."""

from collections.abc import Sequence

from tiny_llm.engine.events import Event
from tiny_llm.views.replay import Whose, colours, label
from tiny_llm.views.svg import GREY, Drawing

ROW, BARS, LEFT, WIDTH = 24, 60, 60, 860


def lanes(events: Sequence[Event]) -> dict[tuple[Whose, int], int]:
    """The slot of each sequence in each step in which it computes: the first that is free when it starts."""
    taken: dict[Whose, int] = {}
    found: dict[tuple[Whose, int], int] = {}
    for e in events:
        whose = (e.request, e.sequence)
        if e.kind == "admit":
            taken[whose] = next(i for i in range(len(taken) + 1) if i not in taken.values())
        elif e.kind in ("preempt", "finish"):
            taken.pop(whose, None)
        elif e.kind == "chunk":
            found[whose, e.step] = taken[whose]
    return found


def draw(name: str, events: Sequence[Event], first: int = 1, last: int | None = None) -> Drawing:
    """The timeline of the steps `first` to `last`. Raises ValueError where there are none."""
    totals = {e.step: e.tokens for e in events if e.kind == "step" and first <= e.step <= (last or e.step)}
    if not totals:
        raise ValueError(f"steps: expected some from {first} on, the log has none there")
    rows, hue = lanes(events), colours(events)
    slots = 1 + max((lane for (_, step), lane in rows.items() if step in totals), default=0)
    cell = min(34.0, WIDTH / len(totals))
    column = {step: LEFT + cell * i for i, step in enumerate(totals)}
    drawing = Drawing(
        name, LEFT + cell * len(totals) + 12, 40 + ROW * slots + BARS, "Slots, step by step", words(events)
    )
    for slot in range(slots):
        drawing.text(LEFT - 8, 34 + ROW * (slot + 0.5), f"slot {slot}", 11, "end", GREY)
    for e in events:
        if e.step not in column or e.kind not in ("chunk", "preempt"):
            continue
        if e.kind == "preempt":
            drawing.text(column[e.step] + cell / 2, 20, f"✗{label((e.request, e.sequence))}", 10)
            continue
        whose = (e.request, e.sequence)
        y, decode = 34 + ROW * rows[whose, e.step], e.tokens == 1
        tip = f"step {e.step}: {label(whose)} computes {e.tokens} from token {e.start} on"
        drawing.rect(column[e.step], y, cell, ROW - 3, hue[e.request], 0.2 if decode else 0.6, tip=tip)
        if cell >= 20:
            text = label(whose) if decode else f"{label(whose)}·{e.tokens}"
            drawing.text(column[e.step] + cell / 2, y + ROW / 2 - 1, text, 9 if cell < 30 else 10)
    _bars(drawing, totals, column, cell, 40 + ROW * slots)
    return drawing


def _bars(drawing: Drawing, totals: dict[int, int], column: dict[int, float], cell: float, top: float) -> None:
    drawing.text(LEFT - 8, top + BARS / 2, "tokens", 11, "end", GREY)
    most = max(totals.values())
    for step, tokens in totals.items():
        height = (BARS - 24) * tokens / most
        x, base = column[step], top + BARS - 12
        drawing.rect(x + 1, base - height, cell - 2, height, "currentColor", 0.25, tip=f"step {step}: {tokens} tokens")
        if cell >= 14:
            drawing.text(x + cell / 2, base - height - 6, str(tokens), 9)
            drawing.text(x + cell / 2, base + 7, str(step), 8, colour=GREY)


def words(events: Sequence[Event]) -> str:
    """The log in a few sentences."""
    done = [e.tokens for e in events if e.kind == "step"]
    chunks = [e.tokens for e in events if e.kind == "chunk"]
    names = dict.fromkeys(e.request for e in events if e.kind == "arrival")
    preempted = [label((e.request, e.sequence)) for e in events if e.kind == "preempt"]
    return (
        f"{len(done)} steps with {sum(done)} tokens for {len(names)} requests, at most {max(done, default=0)} in one "
        f"step: {sum(t for t in chunks if t > 1)} in {sum(t > 1 for t in chunks)} chunks of prompts, "
        f"{sum(t == 1 for t in chunks)} decodes of one. "
        + (f"Preempted: {', '.join(preempted)}." if preempted else "Nobody is preempted.")
    )

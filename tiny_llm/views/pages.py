"""The pool's blocks, coloured by request, and the block tables that point at them; one picture for each step."""

from collections.abc import Sequence

from tiny_llm.engine.events import Event
from tiny_llm.views.replay import Replay, colours, label, steps
from tiny_llm.views.svg import GREY, Drawing

CELL, COLUMNS, ROW = 34, 16, 26


def frames(events: Sequence[Event], first: int = 1, last: int | None = None) -> list[Drawing]:
    """A picture of each step from `first` to `last`. Raises ValueError where there are none."""
    hue = colours(events)
    peak = max((len(replay.tables) for _, replay in steps(events)), default=0)
    used = 1 + max((block for e in events for block in e.blocks), default=0)
    found = [
        draw(f"pages-{e.step}", e, replay, hue, peak, -(-used // COLUMNS) * COLUMNS)
        for e, replay in steps(events)
        if first <= e.step <= (last or e.step)
    ]
    if not found:
        raise ValueError(f"steps: expected some from {first} on, the log has none there")
    return found


def draw(name: str, e: Event, replay: Replay, hue: dict[str, str], peak: int, used: int) -> Drawing:
    """The first `used` blocks of the pool at the end of a step. `peak`: room for that many tables, lest frames jump."""
    used = min(used, replay.num_blocks)
    rows = -(-used // COLUMNS)
    widest = max([len(table) for table in replay.tables.values()] + [COLUMNS])
    top = 44 + CELL * rows
    height = top + 26 + ROW * max(peak, len(replay.tables))
    drawing = Drawing(name, 80 + CELL * widest, height, f"Step {e.step}: the pool and the tables", words(e, replay))
    more = f", without {replay.num_blocks - used} blocks that are never used" if used < replay.num_blocks else ""
    drawing.text(10, 14, f"step {e.step}: the pool{more}", 13, "start", bold=True)
    holders = replay.holders()
    for block in range(used):
        x, y = 60 + CELL * (block % COLUMNS), 30 + CELL * (block // COLUMNS)
        if block % COLUMNS == 0:
            drawing.text(52, y + CELL / 2, str(block), 10, "end", GREY)
        who = holders.get(block)
        names = [label(whose) for whose in who or ()]
        tip = f"block {block}: " + (", ".join(names) or ("the tree's alone" if who is not None else "free"))
        drawing.rect(x, y, CELL - 2, CELL - 2, "none", 0, tip=tip)
        for i, whose in enumerate(who or ()):
            part = (CELL - 2) / len(names)
            drawing.rect(x, y + part * i, CELL - 2, part, hue[whose[0]], 0.5, tip=tip)
        if block in replay.tree:
            drawing.add("circle", cx=x + CELL - 8, cy=y + 7, r=3, fill="currentColor", fill_opacity=0.7)
        text = (names[0] if len(names) == 1 else f"{len(names)}×") if names else "tree" if who is not None else ""
        drawing.text(x + CELL / 2 - 1, y + CELL / 2, text, 10)
    drawing.text(10, top, "block tables", 13, "start", bold=True)
    for i, (whose, table) in enumerate(replay.tables.items()):
        y = top + 16 + ROW * i
        drawing.text(52, y + ROW / 2, label(whose), 12, "end")
        for j, block in enumerate(table):
            drawing.rect(60 + CELL * j, y, CELL - 2, ROW - 4, hue[whose[0]], 0.35, tip=f"{label(whose)}, block {j}")
            drawing.text(60 + CELL * (j + 0.5) - 1, y + ROW / 2 - 2, str(block), 11)
    return drawing


def words(e: Event, replay: Replay) -> str:
    """The picture in a sentence."""
    holders = replay.holders()
    shared = sum(len(who) > 1 for who in holders.values())
    alone = sum(not who for who in holders.values())
    tables = "; ".join(f"{label(whose)}: {', '.join(map(str, table))}" for whose, table in replay.tables.items())
    free = replay.num_blocks - len(holders)
    return (
        f"Step {e.step}: of {replay.num_blocks} blocks of {replay.block_size} tokens {free} are free, {alone} the "
        f"prefix tree's alone, {shared} shared. A dot marks what the tree knows. Tables: "
        f"{tables or 'none'}."
    )

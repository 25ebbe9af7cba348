"""The prefix tree after a step: a box for each block, its readers in it, and why prefixes were not found."""

from collections import defaultdict
from collections.abc import Sequence

from tiny_llm.engine.events import Event
from tiny_llm.views.replay import Replay, colours, label, steps
from tiny_llm.views.svg import GREY, Drawing

WIDE, HIGH, GAP = 74, 34, 26


def draw(name: str, events: Sequence[Event], step: int | None = None) -> Drawing:
    """The tree at the end of `step`, the log's last if not given. Raises ValueError for a step that is not there."""
    hue, known = colours(events), [e.step for e in events if e.kind == "step"]
    wanted = step if step is not None else max(known, default=0)
    replay = next((replay for e, replay in steps(events) if e.step == wanted), None)
    if replay is None:
        raise ValueError(f"step: expected one of the log's (1 to {max(known, default=0)}), found {wanted}")
    places = layout(replay)
    depth = 1 + max((x for x, _ in places.values()), default=0)
    height = 1 + max((y for _, y in places.values()), default=0)
    drawing = Drawing(
        name, 70 + (WIDE + GAP) * depth, 34 + (HIGH + 10) * height, f"The prefix tree at step {wanted}", words(events)
    )
    drawing.text(8, 30 + HIGH / 2, "root", 11, "start", GREY)
    holders = replay.holders()
    for block, (column, row) in places.items():
        x, y = 50 + (WIDE + GAP) * column, 30 + (HIGH + 10) * row
        above = places.get(replay.tree[block])
        start = (x - GAP, 30 + (HIGH + 10) * above[1] + HIGH / 2) if above else (38, 30 + HIGH / 2)
        drawing.line([start, (x - GAP / 2, start[1]), (x - GAP / 2, y + HIGH / 2), (x, y + HIGH / 2)], width=0.8)
        readers = holders[block]
        fill = hue[readers[0][0]] if readers else "none"
        tip = f"block {block}, tokens {column * replay.block_size} to {(column + 1) * replay.block_size - 1}"
        drawing.rect(x, y, WIDE, HIGH, fill, 0.35 if readers else 0, tip=tip)
        drawing.text(x + WIDE / 2, y + 11, f"block {block}", 11)
        drawing.text(x + WIDE / 2, y + 25, ", ".join(map(label, readers)) or "nobody", 9, colour=GREY)
    return drawing


def layout(replay: Replay) -> dict[int, tuple[int, int]]:
    """Column (depth) and row of each kept block: a first child goes on in its parent's row, others below."""
    children: dict[int, list[int]] = defaultdict(list)
    for block, above in replay.tree.items():
        children[above].append(block)
    places: dict[int, tuple[int, int]] = {}
    row, waiting = -1, [(block, 0, True) for block in reversed(children[-1])]
    while waiting:
        block, column, new = waiting.pop()
        row += new
        places[block] = (column, row)
        below = children[block]
        waiting += [(child, column + 1, i > 0) for i, child in reversed(list(enumerate(below)))]
    return places


def words(events: Sequence[Event]) -> str:
    """How much of each prompt was found, and why not more."""
    lengths = {e.request: e.tokens for e in events if e.kind == "arrival"}
    admitted = [e for e in events if e.kind == "admit" and e.sequence == 0]
    found = sum(e.tokens for e in admitted) + sum(e.tokens for e in events if e.kind in ("share", "load"))
    rows = (
        f"{e.request}: {e.tokens} of {lengths[e.request]} tokens" + (f" ({e.note})" if e.note else "") for e in admitted
    )
    evicted = sum(len(e.blocks) for e in events if e.kind == "evict")
    return (
        f"{found} of {sum(lengths[e.request] for e in admitted)} prompt tokens were found. "
        f"{'; '.join(rows)}. {evicted} blocks were evicted."
    )

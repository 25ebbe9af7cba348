"""The draft of each step as a tree: which guesses were right, and which token came instead."""

import json
from collections.abc import Callable, Sequence

from tiny_llm.decode.acceptance import DraftTree
from tiny_llm.engine.events import Event
from tiny_llm.views.svg import AMBER, GREEN, GREY, LETTER, RED, Drawing

COLUMN, ROW = 96, 26  # a level of the tree, and a line of guesses
LEFT, TOP = 16, 60
Word = Callable[[int], str]


def frames(events: Sequence[Event], word: Word) -> list[Drawing]:
    """Draw every verification in a log. Raises ValueError for a log without any.

    `word` gives the text of a token.
    """
    verified = [event for event in events if event.kind == "verify"]
    if not verified:
        raise ValueError("expected steps with drafts, found none; name a drafter, or a prompt that it can guess from")
    drawings = []
    for number, event in enumerate(verified):
        drawings.append(draw(f"draft-{number}", tree_of(event), event, word))
    return drawings


def tree_of(event: Event) -> DraftTree:
    """Return the draft of a verification."""
    tokens, parents = json.loads(event.note)
    return DraftTree(tuple(tokens), tuple(parents))


def draw(name: str, draft: DraftTree, event: Event, word: Word) -> Drawing:
    """Draw one tree: a column for each place ahead, accepted guesses green, siblings of them amber, others red."""
    rows = _rows(draft)
    depths = draft.depths()
    kept = set(event.blocks)
    told = " ".join(repr(word(draft.tokens[node])) for node in event.blocks) or "none"
    alt = f"Step {event.step}: {len(draft.tokens)} guesses, {len(kept)} accepted: {told}."
    width = LEFT * 2 + COLUMN * (max(depths) + 1)
    drawing = Drawing(name, width, TOP + ROW * (max(rows) + 2), f"Draft of step {event.step}", alt)
    drawing.text(
        LEFT, 22, f"step {event.step}: {len(kept)} of {len(draft.tokens)} guesses accepted", 13, "start", bold=True
    )
    for node, parent in enumerate(draft.parents):
        x, y = LEFT + COLUMN * (depths[node] - 1), TOP + ROW * rows[node]
        before = (x - 14, TOP + ROW * rows[parent] + 10) if parent >= 0 else (x - 8, TOP + 10)
        drawing.line([before, (x, y + 10)], GREY)
        is_beside = draft.parents[node] in kept or draft.parents[node] == -1
        hue = GREEN if node in kept else AMBER if is_beside else RED
        drawing.rect(x, y, COLUMN - 14, 20, hue, 0.35 if node in kept else 0.15)
        drawing.text(x + (COLUMN - 14) / 2, y + 10, _short(word(draft.tokens[node])), 11)
    return drawing


def _rows(draft: DraftTree) -> list[int]:
    """Return the line on which each node stands: a node's first child stands on its own line."""
    rows = [0] * len(draft.tokens)
    used = -1

    def place(node: int, row: int) -> None:
        nonlocal used
        rows[node] = row
        used = max(used, row)
        for number, child in enumerate(draft.children(node)):
            place(child, row if number == 0 else used + 1)

    for root in draft.children(-1):
        place(root, used + 1)
    return rows


def _short(text: str) -> str:
    most = int((COLUMN - 18) / (11 * LETTER))
    shown = repr(text)[1:-1]
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def describe(events: Sequence[Event], word: Word) -> str:
    """Return a line for each verification: the step, the guesses accepted, and their text."""
    lines = []
    for event in events:
        if event.kind == "verify":
            draft = tree_of(event)
            right = "".join(word(draft.tokens[node]) for node in event.blocks)
            lines.append(f"step {event.step}: {len(event.blocks)} of {len(draft.tokens)} accepted {right!r}")
    return "\n".join(lines)

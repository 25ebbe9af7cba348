"""Chapters 3.1, 3.2 and 3.5: slots without and with continuous batching, the budget, the pool and the prefix tree.

What a step of the scheduler costs is drawn from data/scheduler.json: `python bench/scheduler.py --json`.
"""

import json
from math import log10
from pathlib import Path

from tiny_llm.config import SamplingParams, SchedulerConfig
from tiny_llm.engine.blocks import BlockPool
from tiny_llm.engine.request import Request
from tiny_llm.engine.scheduler import Scheduler
from tiny_llm.engine.simulate import Cost, simulate
from tiny_llm.views import pages, radix, replay
from tiny_llm.views.svg import AMBER, BLUE, GREEN, GREY, RED, Drawing

CELL, ROW, SLOTS = 26, 26, 3
HUES = (BLUE, AMBER, GREEN, RED, "#a855f7", "#14b8a6")
ANSWERS = (3, 9, 5, 6, 2, 4)  # tokens of the requests A to F


def slots() -> Drawing:
    """Six answers on three slots: batches that wait for their longest member, and slots that are filled at once."""
    static = [(i % SLOTS, sum(max(ANSWERS[j : j + SLOTS]) for j in range(0, i - i % SLOTS, SLOTS))) for i in range(6)]
    free, continuous = [0] * SLOTS, list[tuple[int, int]]()
    for length in ANSWERS:
        slot = free.index(min(free))
        continuous.append((slot, free[slot]))
        free[slot] += length
    ends = [max(start + n for (_, start), n in zip(plan, ANSWERS, strict=True)) for plan in (static, continuous)]
    alt = (
        f"Answers of {', '.join(map(str, ANSWERS))} tokens on three slots. In batches of three they take {ends[0]} "
        f"steps and leave {SLOTS * ends[0] - sum(ANSWERS)} places empty; with each slot filled again at once they take "
        f"{ends[1]} and leave {SLOTS * ends[1] - sum(ANSWERS)} empty."
    )
    drawing = Drawing("slots", 90 + CELL * max(ends), 64 + 2 * (ROW * SLOTS + 40), "Six answers on three slots", alt)
    for part, (title, plan, end) in enumerate((("in batches", static, ends[0]), ("continuously", continuous, ends[1]))):
        top = 34 + part * (ROW * SLOTS + 56)
        drawing.text(10, top - 16, f"{title}: {end} steps", 13, "start", bold=True)
        for slot in range(SLOTS):
            drawing.text(62, top + ROW * (slot + 0.5), f"slot {slot}", 11, "end", GREY)
            for step in range(end):
                drawing.rect(70 + CELL * step, top + ROW * slot, CELL, ROW - 2, "none", 0)
        for i, ((slot, start), length) in enumerate(zip(plan, ANSWERS, strict=True)):
            x, y = 70 + CELL * start, top + ROW * slot
            drawing.rect(x, y, CELL * length, ROW - 2, HUES[i], 0.45, tip=f"{'ABCDEF'[i]}: {length} tokens")
            drawing.text(x + CELL * length / 2, y + ROW / 2 - 1, "ABCDEF"[i], 12)
    return drawing


def gaps() -> Drawing:
    """The scheduler's own steps to scale: one that decodes beside a long prompt, with a small and a large budget."""
    rows = [(budget, _steps(budget)) for budget in (64, 1024)]
    longest = {budget: max(e - s for s, e, own in steps if own) * 1e3 for budget, steps in rows}
    scale = 620 / max(end for _, steps in rows for _, end, _ in steps)
    alt = "A sequence decodes while a prompt of 1,000 tokens comes in. " + "; ".join(
        f"at a budget of {budget} it waits at most {longest[budget]:.0f} ms for its next token" for budget, _ in rows
    )
    drawing = Drawing("token-gaps", 720, 40 + 84 * len(rows), "A long prompt beside one that decodes", alt + ".")
    for i, (budget, steps) in enumerate(rows):
        y = 50 + 84 * i
        drawing.text(10, y - 20, f"budget {budget}: longest wait {longest[budget]:.0f} ms", 13, "start", bold=True)
        for start, end, own in steps:
            x = 80 + scale * start
            drawing.rect(x, y, scale * (end - start), 24, AMBER if end - start > 0.006 else BLUE, 0.4)
            if own:
                drawing.add("circle", cx=80 + scale * end, cy=y + 34, r=2.5, fill=BLUE)
        drawing.text(70, y + 12, "steps", 11, "end", GREY)
        drawing.text(70, y + 34, "its tokens", 11, "end", GREY)
    return drawing


def _steps(budget: int) -> list[tuple[float, float, bool]]:
    """(start, end, whether the decoding one got a token) of each step of the first 0.3 s or so."""
    scheduler = Scheduler(SchedulerConfig(budget, 4, 2000), BlockPool(200, 16))
    requests = [
        Request("A", tuple(range(8)), SamplingParams(max_tokens=24)),
        Request("B", tuple(range(1000)), SamplingParams(max_tokens=2), arrival=0.02),
    ]
    found: list[tuple[float, float, bool]] = []

    def watch(step: object, now: float) -> None:
        own = any(share.sequence.request == "A" and share.wanted for share in step.shares)
        found.append((found[-1][1] if found else 0.0, now, own))

    simulate(scheduler, requests, Cost(look=0.0), watch=watch)
    return found


def budget() -> Drawing:
    """One step of 64 tokens: three decodes, half of the rest for the eldest prompt, the other half by length."""
    parts = [("3 decodes", 3, BLUE), ("E: 10", 10, GREEN), ("D: 20 of 300", 20, AMBER), ("C, the eldest: 31", 31, RED)]
    alt = (
        "A budget of 64 tokens. Three decodes take one each. Of the 61 left 31 are reserved for the eldest prompt C; "
        "the shortest prompt E gets all its 10, D the other 20."
    )
    drawing = Drawing("budget-split", 680, 96, "How a budget of 64 tokens is shared", alt)
    x, scale = 20.0, 10.0
    for label, tokens, hue in parts:
        drawing.rect(x, 34, tokens * scale, 34, hue, 0.4)
        drawing.text(x + tokens * scale / 2 if tokens > 5 else x, 51 if tokens > 5 else 22, label, 12)
        x += tokens * scale
    middle = 20 + 33 * scale
    drawing.line([(middle, 28), (middle, 78)], dash="4 3")
    drawing.text(middle + 8, 84, "half of what the decodes leave (rounded up) →", 11, "start", GREY)
    return drawing


def cost() -> Drawing:
    """Microseconds of a step by how many wait, a line for each number that runs."""
    data = json.loads((Path(__file__).parent / "data" / "scheduler.json").read_text(encoding="utf-8"))
    lines: dict[int, list[tuple[int, float]]] = {}
    for row in data["rows"]:
        waiting, running = (int(part.split()[0].replace(",", "")) for part in row["case"].split(", "))
        lines.setdefault(running, []).append((waiting, row["ours"]))
    told = "; ".join(
        f"with {running} running {points[0][1]:.0f} µs where {points[0][0]} wait and {points[-1][1]:.0f} µs where "
        f"{points[-1][0]:,} do"
        for running, points in lines.items()
    )
    drawing = Drawing("scheduler-cost", 640, 300, "What a step of the scheduler costs", f"Lines that are flat: {told}.")

    def place(waiting: float, micros: float) -> tuple[float, float]:
        return 80 + 140 * (log10(waiting) - 1), 250 - 80 * (log10(micros) - 0.5)

    for micros in (10, 100, 1000):
        x, y = place(10, micros)
        drawing.line([(x, y), (place(10_000, 1)[0], y)], dash="2 4")
        drawing.text(x - 10, y, f"{micros:,} µs", 11, "end", GREY)
    for waiting in (10, 100, 1000, 10_000):
        drawing.text(place(waiting, 1)[0], 268, f"{waiting:,}", 11, colour=GREY)
    drawing.text(290, 288, "requests that wait", 12)
    for (running, points), hue in zip(lines.items(), HUES, strict=False):
        drawing.line([place(*point) for point in points], colour=hue, width=2)
        for waiting, micros in points:
            x, y = place(waiting, micros)
            drawing.add("circle", cx=x, cy=y, r=3.5, fill=hue, tip=f"{waiting:,} wait, {running} run: {micros:.0f} µs")
        drawing.text(x + 12, y, f"{running} {'runs' if running == 1 else 'run'}", 12, "start")
    return drawing


def drawings() -> list[Drawing]:
    events = replay.demo()
    (pool,) = pages.frames(events, 3, 3)
    return [slots(), gaps(), budget(), cost(), pool, radix.draw("prefix-tree", events, 13)]

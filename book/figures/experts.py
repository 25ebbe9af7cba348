"""Chapter 3.6: a router's choices by hand, choices sorted by expert, what a step reads, a bias that balances."""

import mlx.core as mx
import numpy as np

from tiny_llm.config.moe import MoeConfig
from tiny_llm.model.expert_load import variation
from tiny_llm.model.moe import adjusted_bias, counts_of, route
from tiny_llm.views.svg import AMBER, BLUE, GREEN, GREY, RED, Drawing

HUES = (BLUE, AMBER, GREEN, RED)
PROBABILITIES = ((0.5, 0.1, 0.3, 0.1), (0.05, 0.2, 0.15, 0.6), (0.48, 0.04, 0.32, 0.16), (0.08, 0.2, 0.6, 0.12))
EXPERTS, CHOSEN, EXPERT_MB = 128, 8, 3 * 2048 * 768 * 4.5 / 8 / 1e6  # of Qwen3-30B-A3B in 4 bits, one layer
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128)


def by_hand() -> list[tuple[list[int], list[float]]]:
    """The two likeliest experts of each token, and their normalised shares, by the engine's router."""
    settings = MoeConfig(4, 2, 4, normalize=True, layers=(0,))
    routing = route(mx.log(mx.array(PROBABILITIES)), settings)
    return list(zip(routing.experts.tolist(), routing.shares.tolist(), strict=True))


def router() -> Drawing:
    """A row of probabilities for each token; the two largest are coloured, their shares on the right."""
    chosen = by_hand()
    words = "; ".join(
        f"token {t} goes to {e[0]} and {e[1]} with {s[0]:.3g} and {s[1]:.3g}" for t, (e, s) in enumerate(chosen)
    )
    drawing = Drawing(
        "router-by-hand", 700, 236, "Two of four experts", f"Each token's two likeliest of four: {words}."
    )
    drawing.text(270, 20, "probabilities, from the router", 13, bold=True)
    drawing.text(570, 20, "the layer's output", 13, bold=True)
    for expert in range(4):
        drawing.text(150 + 80 * expert, 46, f"expert {expert}", 12, colour=GREY)
    for token, (experts, shares) in enumerate(chosen):
        y = 62 + 42 * token
        drawing.text(96, y + 15, f"token {token}", 12, "end")
        for expert, probability in enumerate(PROBABILITIES[token]):
            here = expert in experts
            look = {"stroke": HUES[expert], "stroke_width": 2} if here else {}
            drawing.rect(
                112 + 80 * expert, y, 76, 30, HUES[expert] if here else GREY, probability if here else 0.05, **look
            )
            drawing.text(150 + 80 * expert, y + 15, f"{probability:.2f}", 13, bold=here)
        terms = " + ".join(f"{share:.3g} · E{expert}" for expert, share in zip(experts, shares, strict=True))
        drawing.text(570, y + 15, f"{terms}", 13)
    return drawing


def sorting() -> Drawing:
    """The eight choices in the tokens' order, sorted by expert, and where each output goes back to."""
    choices = [expert for experts, _ in by_hand() for expert in experts]
    order = sorted(range(len(choices)), key=lambda i: choices[i])
    alt = (
        f"Eight choices in the tokens' order: experts {', '.join(map(str, choices))}. Sorted by expert they are "
        f"choices {', '.join(map(str, order))}, so that the rows of each of the four experts stand together."
    )
    drawing = Drawing("experts-sorted", 700, 250, "Choices sorted by expert", alt)
    for y, title in ((46, "in the tokens' order"), (176, "sorted by expert")):
        drawing.text(20, y - 24, title, 13, "start", bold=True)
    for place, choice in enumerate(order):
        start, end = 62 + 78 * choice, 62 + 78 * place
        drawing.line([(start, 88), (end, 176)], HUES[choices[choice]], 1.2, arrow=True)
    for i, expert in enumerate(choices):
        _choice(drawing, 28 + 78 * i, 46, i, expert)
        _choice(drawing, 28 + 78 * i, 176, order[i], choices[order[i]])
    for expert in range(4):
        places = [i for i, choice in enumerate(order) if choices[choice] == expert]
        left, right = 28 + 78 * places[0], 28 + 78 * places[-1] + 68
        drawing.line([(left, 226), (right, 226)], HUES[expert], 3)
        drawing.text((left + right) / 2, 238, f"read E{expert} once", 11, colour=GREY)
    return drawing


def _choice(drawing: Drawing, x: float, y: float, choice: int, expert: int) -> None:
    drawing.rect(x, y, 68, 42, HUES[expert], 0.35, rx=4)
    drawing.text(x + 34, y + 14, f"{choice}: token {choice // 2}", 11)
    drawing.text(x + 34, y + 31, f"E{expert}", 13, bold=True)


def reads() -> Drawing:
    """Megabytes of one layer's experts that a step reads: for each choice, or each chosen expert once."""
    each = [tokens * CHOSEN * EXPERT_MB for tokens in TOKENS]
    distinct = [EXPERTS * (1 - (1 - CHOSEN / EXPERTS) ** tokens) for tokens in TOKENS]
    once = [count * EXPERT_MB for count in distinct]
    top = EXPERTS * EXPERT_MB
    alt = (
        f"A layer of {EXPERTS} experts of {EXPERT_MB:.2g} MB, {CHOSEN} chosen by each token at random. One token reads "
        f"{once[0]:.0f} MB. Read once each, the experts of 8 tokens are {once[3]:.0f} MB, of 32 {once[5]:.0f}, of 128 "
        f"{once[7]:.0f}, which is nearly the layer's {top:.0f}. Read for each choice they pass that at 16 tokens."
    )
    drawing = Drawing("expert-reads", 640, 260, "What a step reads of one layer's experts", alt)
    left, base, height, step, most = 70.0, 220.0, 170.0, 72.0, 450.0
    for megabytes in (0, 100, 200, 300, 400):
        y = base - height * megabytes / most
        drawing.line([(left, y), (left + step * 7, y)], GREY, 0.4)
        drawing.text(left - 8, y, str(megabytes), 11, "end", GREY)
    drawing.text(left - 8, 48, "MB", 11, "end", GREY)
    drawing.line(
        [(left, base - height * top / most), (left + step * 7, base - height * top / most)], GREY, 1, dash="5 4"
    )
    drawing.text(left + step * 7, base - height * top / most - 9, "all 128 experts", 11, "end", GREY)
    for values, colour in ((each, RED), (once, BLUE)):
        seen = [(left + step * i, base - height * value / most) for i, value in enumerate(values) if value < most]
        drawing.line(seen, colour, 2)
        for x, y in seen:
            drawing.add("circle", cx=x, cy=y, r=3, fill=colour)
    drawing.text(left + step * 3 - 8, base - height * each[3] / most - 10, "read for each choice", 12, "end", RED)
    drawing.text(left + step * 4 + 12, base - height * once[4] / most + 8, "each read once", 12, "start", BLUE)
    for i, tokens in enumerate(TOKENS):
        drawing.text(left + step * i, base + 14, str(tokens), 11)
    drawing.text(left + step * 3.5, base + 32, "tokens in the step", 12, colour=GREY)
    return drawing


def balance() -> Drawing:
    """The load of a router with favourites, before and after a bias has learned from the counts of 300 steps."""
    settings = MoeConfig(8, 2, 4, normalize=True, layers=(0,))
    random, lean = np.random.default_rng(0), np.linspace(1.2, -1.2, 8)
    bias, counts = mx.zeros(8), []
    for _ in range(300):
        logits = random.standard_normal((256, 8)) + lean
        routing = route(mx.array(logits.astype(np.float32)), settings, bias)
        load = counts_of(routing.experts, 8)
        bias = adjusted_bias(bias, load, 0.002)
        counts.append([int(count) for count in load.tolist()])
    before, after = counts[0], [round(mean) for mean in np.mean(counts[-20:], axis=0)]
    alt = (
        f"Choices of 256 tokens, two of eight experts each. A router with favourites gives them {_words(before)}; "
        f"after 300 steps with a bias that learns from the counts {_words(after)}. An even load is 64."
    )
    drawing = Drawing("load-bias", 700, 220, "A bias that balances", alt)
    for part, (title, load) in enumerate((("without a bias", before), ("after 300 steps with one", after))):
        left, base, scale = 40 + 340 * part, 190, 130 / max(before)
        drawing.text(left, 20, f"{title}: variation {variation(load):.2f}", 13, "start", bold=True)
        for expert, count in enumerate(load):
            drawing.rect(left + 36 * expert, base - scale * count, 30, scale * count, (RED, BLUE)[part], 0.4)
            drawing.text(left + 36 * expert + 15, base - scale * count - 9, str(count), 11)
            drawing.text(left + 36 * expert + 15, base + 14, str(expert), 11, colour=GREY)
        drawing.line([(left - 6, base - scale * 64), (left + 288, base - scale * 64)], GREY, 1, dash="5 4")
    return drawing


def _words(counts: list[int]) -> str:
    return ", ".join(map(str, counts[:-1])) + f" and {counts[-1]}"


def drawings() -> list[Drawing]:
    return [router(), sorting(), reads(), balance()]

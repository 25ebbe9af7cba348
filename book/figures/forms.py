"""Chapter 4.2: a mask of bits over eight logits, and how much of an answer its parser has passed on."""

import mlx.core as mx

from tiny_llm.decode.parts import CallArguments, CallBegin, Content
from tiny_llm.decode.structured import mask_logits
from tiny_llm.decode.tool_calls import CallForm, ToolCallParser
from tiny_llm.views.svg import AMBER, BLUE, GREEN, GREY, RED, Drawing

TOKENS = ('"', "{", "}", "12", "true", "word", "\\n", ",")
LOGITS = (0.5, 1.5, 0.2, 1.0, 0.8, 3.0, 2.2, 0.1)
ALLOWED = (3, 4)  # behind {"n": of a number or a truth value
ANSWER = 'Sure. <tool_call>{"name": "add", "arguments": {"a": 1, "b": 22}}</tool_call>'


def mask() -> Drawing:
    number = sum(1 << token for token in ALLOWED)
    masked = mask_logits(mx.array([LOGITS]), mx.array([[number]]))[0].tolist()
    left = [token for token in range(8) if masked[token] > float("-inf")]
    alt = (
        f"Eight tokens with their logits: {', '.join(f'{t} {x:g}' for t, x in zip(TOKENS, LOGITS, strict=True))}. The "
        f"grammar's number is {number}, whose bits are 1 for {' and '.join(TOKENS[t] for t in left)}. All other logits "
        f"become minus infinity. The likeliest token would have been word; now it is 12."
    )
    drawing = Drawing("token-mask", 700, 200, "A number of eight bits forbids six tokens", alt)
    for y, label in ((36, "token"), (76, "logit"), (116, f"bits of {number}"), (160, "masked")):
        drawing.text(14, y, label, 12, "start", GREY)
    for token, (text, logit) in enumerate(zip(TOKENS, LOGITS, strict=True)):
        x, allowed = 130 + token * 70, token in left
        drawing.text(x + 30, 36, text, 13, bold=allowed)
        drawing.rect(x, 60, 60, 32, BLUE, 0.1 + 0.2 * logit, rx=4)
        drawing.text(x + 30, 76, f"{logit:g}", 13)
        drawing.text(x + 30, 116, "1" if allowed else "0", 14, colour=GREEN if allowed else RED, bold=True)
        drawing.rect(x, 144, 60, 32, GREEN if allowed else GREY, 0.35 if allowed else 0.08, rx=4)
        drawing.text(x + 30, 160, f"{logit:g}" if allowed else "−∞", 13)
    return drawing


def passed_on(constrained: bool) -> list[int]:
    """Return for each character how many parts were passed on when it had come."""
    parser = ToolCallParser(CallForm.HERMES, {}, constrained)
    found, total = [], 0
    for letter in ANSWER:
        for part in parser.feed(letter):
            total += len(part.name) if isinstance(part, CallBegin) else len(part.text)
            assert isinstance(part, Content | CallBegin | CallArguments)
        found.append(total)
    return found


def waiting() -> Drawing:
    free, grammar = passed_on(False), passed_on(True)
    first = next(i for i in range(len(ANSWER)) if grammar[i] > len("Sure."))
    alt = (
        f"An answer of {len(ANSWER)} characters with one tool call. Without a grammar the text before the call is "
        "passed on at once, and then nothing until the closing tag, where the whole call comes. Under a grammar the "
        f"call's name comes after {first + 1} characters, and the arguments as they are generated."
    )
    drawing = Drawing("parser-waits", 700, 220, "What a client has seen, character by character", alt)
    left, bottom, width, height = 120.0, 176.0, 550.0, 130.0
    for values, colour, label, y in ((free, AMBER, "free", 70), (grammar, GREEN, "under a grammar", 46)):
        points = [(left, bottom)]
        before = 0
        for i, value in enumerate(values):
            x = left + width * (i + 1) / len(values)
            points += [(x, bottom - height * before / max(free))] if value != before else []
            points.append((x, bottom - height * value / max(free)))
            before = value
        drawing.line(points, colour, 2.5)
        drawing.text(left + 12, y, label, 13, "start", colour, bold=True)
    drawing.line([(left, bottom), (left + width, bottom)], GREY)
    for mark in ("<tool_call>", '"add"', '{"a"', "</tool_call>"):
        x = left + width * ANSWER.index(mark) / len(ANSWER)
        drawing.line([(x, bottom), (x, bottom + 6)], GREY)
        drawing.text(x, bottom + 20, mark, 11, "start", GREY)
    drawing.text(14, 112, "passed on", 12, "start", GREY)
    return drawing


def drawings() -> list[Drawing]:
    return [mask(), waiting()]

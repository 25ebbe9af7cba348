"""4.2 Structured output and tool calls: a mask of bits, tags that have begun, a call, and arguments as they come."""

import json
from collections.abc import Callable
from random import Random
from typing import Any

import mlx.core as mx
import numpy as np

from tiny_llm.course.check import Checker, task

OPEN, FUNCTION = "<tool_call>", "<function="


def packed(allowed: np.ndarray) -> mx.array:
    """(R, V) truth values as bits, the lowest first, padded with ones: nothing may depend on the padding."""
    rows, vocab = allowed.shape
    padded = np.ones((rows, -(-vocab // 32) * 32), np.bool_)
    padded[:, :vocab] = allowed
    return mx.array(np.packbits(padded, axis=1, bitorder="little").view(np.int32))


def masked(logits: np.ndarray, allowed: np.ndarray, dtype: mx.Dtype = mx.float32) -> Callable[[Any], mx.array]:
    return lambda m: m.mask_logits(mx.array(logits).astype(dtype), packed(allowed))


@task("w4.2.1")
def test_four_tokens(check: Checker) -> None:
    """0b1011 allows the tokens 0, 1 and 3."""
    logits = np.array([[1.0, 2.0, 3.0, 4.0]], np.float32)
    want = np.array([[1, 2, -np.inf, 4]], np.float32)
    check(lambda m: m.mask_logits(mx.array(logits), mx.array([[0b1011]])), want, axes="R V", what="1 2 3 4 with 0b1011")


@task("w4.2.1")
def test_the_bits_of_a_number_and_of_the_next(check: Checker) -> None:
    """70 tokens are three numbers. Bit 31 makes a number negative."""
    logits = np.arange(70, dtype=np.float32)[None] - 35
    for tokens in ([31], [32], [0, 63], [69], [30, 33, 64], range(70)):
        allowed = np.zeros((1, 70), np.bool_)
        allowed[0, list(tokens)] = True
        want = np.where(allowed, logits, -np.inf).astype(np.float32)
        check(masked(logits, allowed), want, axes="R V", what=f"70 logits, allowed {[*tokens][:3]}")


@task("w4.2.1")
def test_rows_have_masks_of_their_own(check: Checker) -> None:
    rng = np.random.default_rng(0)
    for rows, vocab in ((3, 64), (2, 100), (5, 33), (4, 1), (1, 320)):
        logits = rng.normal(size=(rows, vocab)).astype(np.float32) * 5
        allowed = rng.random((rows, vocab)) < 0.5
        want = np.where(allowed, logits, -np.inf).astype(np.float32)
        check(masked(logits, allowed), want, axes="R V", what=f"{rows} rows of {vocab} tokens")


@task("w4.2.1")
def test_other_dtypes_and_odd_logits(check: Checker) -> None:
    """A forbidden token may have any logit, infinity and NaN too."""
    logits = np.array([[np.inf, np.nan, 2, -1e9, -np.inf, 1e9]], np.float32)
    allowed = np.array([[False, False, True, True, True, False]])
    want = np.array([[-np.inf, -np.inf, 2, -1e9, -np.inf, -np.inf]], np.float32)
    check(masked(logits, allowed), want, axes="R V", what="logits with infinity and NaN")
    halves = np.array([[1, 2, 3, 4, 5, 6]], np.float32)
    for dtype in (mx.float16, mx.bfloat16):
        want = np.where(allowed, halves, -np.inf).astype(np.float32)
        check(masked(halves, allowed, dtype), want, axes="R V", dtype=dtype, what=f"{dtype} logits")


TAGS = (OPEN, FUNCTION)


@task("w4.2.2")
def test_tags_by_hand(check: Checker) -> None:
    rows = {
        "": 0,
        "hello": 0,
        "hello <": 1,
        "hello <to": 3,
        "<": 1,
        "<tool_call": 10,
        "<tool_call>": 0,
        "a < b": 0,
        "> <<": 1,
    }
    texts = list(rows)
    check(
        lambda m: [m.unfinished_tag(text, (OPEN,)) for text in texts],
        list(rows.values()),
        what=f"held back of {' | '.join(texts[1:])}, and of no text first",
    )
    more = ["<tool_call> <", "<tool_cal x", "tool_call"]
    check(lambda m: [m.unfinished_tag(text, (OPEN,)) for text in more], [1, 0, 0], what=f"held back of {more}")


@task("w4.2.2")
def test_several_tags(check: Checker) -> None:
    """The longest begin counts, whichever tag it is of."""
    rows = [
        ("x <function", TAGS, 9),
        ("x <tool", TAGS, 5),
        ("x <", TAGS, 1),
        ("x <function=", TAGS, 0),
        ("aab", ("aabaa", "b!"), 3),
        ("aab", ("b!", "aabaa"), 3),
        ("aabaab", ("aabaac",), 3),
        ("<<<a", ("<<a>>", "<<<b>>>"), 3),
        ("<<<", ("<<a>>", "<<<b>>>"), 3),
        ("xy", (), 0),
        ("<", ("<",), 0),
    ]
    check(
        lambda m: [m.unfinished_tag(text, tags) for text, tags, _ in rows],
        [want for _, _, want in rows],
        what=f"held back of {', '.join(text for text, _, _ in rows)}",
    )


@task("w4.2.2")
def test_no_tag_leaks_and_nothing_else_waits(check: Checker) -> None:
    """Through the parser, a character at a time: after each one what is shown, and what may be a tag."""
    text = "1 < 2, <to <tool_x <<tool_call>"

    def call(m: Any) -> list[int]:
        parser = m.ToolCallParser(m.CallForm.HERMES, {})
        shown = [sum(len(part.text) for part in parser.feed(letter)) for letter in text]
        return [sum(shown[: i + 1]) for i in range(len(shown))]

    want = []
    shown = 0
    for i in range(1, len(text) + 1):
        begun = max((n for n in range(1, len(OPEN) + 1) if text[:i].endswith(OPEN[:n])), default=0)
        shown = max(shown, len(text[: i - begun].rstrip()))
        want.append(shown)
    check(call, want, what=f"characters shown of {text!r}, after each of them")


def hermes(m: Any, body: str) -> tuple[str, str] | None:
    found = m.read_hermes(body)
    return None if found is None else tuple(found)


@task("w4.2.3")
def test_a_call(check: Checker) -> None:
    rows = {
        '\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n': ("add", '{"a": 1, "b": 2}'),
        '{"arguments":{"a":1},"name":"add"}': ("add", '{"a": 1}'),
        '{"name": "now"}': ("now", "{}"),
        '{"name": "now", "arguments": null}': ("now", "{}"),
        '{"name": "say", "arguments": {"text": "größer\\n"}}': ("say", '{"text": "größer\\n"}'),
        '{"name": "say", "arguments": {"text": "\\u00e4 字"}, "id": 7}': ("say", '{"text": "ä 字"}'),
        '{"name": "f", "arguments": {"a": [1.5, null, true, {"b": {}}]}}': ("f", '{"a": [1.5, null, true, {"b": {}}]}'),
    }
    for body, want in rows.items():
        check(lambda m, body=body: hermes(m, body), want, what=f"call of {body.strip()!r}")


@task("w4.2.3")
def test_no_call(check: Checker) -> None:
    """A text that fails to parse is no error: it is None, and the text becomes content."""
    bodies = [
        "",
        "add(1, 2)",
        '{"name": "add", "arguments": {"a": 1}',
        '{"name": "add", "arguments": {"a": 1}} and more',
        '{"arguments": {"a": 1}}',
        '{"name": 7, "arguments": {}}',
        '{"name": null}',
        '{"name": "", "arguments": {}}',
        '{"name": "add", "arguments": "a"}',
        '{"name": "add", "arguments": [1]}',
        '["add", {"a": 1}]',
        '"add"',
        "null",
        '{"name": "add", "arguments": {"a": NaN}}',
        '{"name": "add", "arguments": {"a": 1e999}}',
        '{"name": "add", "arguments": {"a": "\\ud800"}}',
        '{"name": "\\ud800"}',
        "[" * 100_000,
    ]
    for body in bodies:
        check(lambda m, body=body: hermes(m, body), None, what=f"call of {body[:60]!r}")


@task("w4.2.3")
def test_calls_that_the_parser_finds(check: Checker) -> None:
    """A broken call is content as it stands, with all text behind it."""
    good = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    broken = '<tool_call>\n{"name": "add", "arguments": {"a": }}\n</tool_call>'

    def call(m: Any) -> list[str]:
        found = []
        for text in (f"Sure. {good}\n{good}", f"Sure. {broken}\n{good}", "<tool_call>\n" + good[12:-13]):
            parser = m.ToolCallParser(m.CallForm.HERMES, {})
            parts = [part for letter in text for part in parser.feed(letter)] + parser.finish()
            found.append("".join(getattr(part, "text", f"[{getattr(part, 'name', '')}]") for part in parts))
        return found

    want = ['Sure.[add]{"a": 1}[add]{"a": 1}', f"Sure. {broken}\n{good}", '[add]{"a": 1}']
    check(call, want, what="two calls; a broken one; one without its closing tag")


def fed(m: Any, pieces: list[str]) -> list[tuple[str, str | None]]:
    reader = m.JsonArguments()
    found = []
    for piece in pieces:
        found.append(tuple(reader.feed(piece)))
        if found[-1][1] is not None:
            break
    return found


OBJECTS = [
    "{}",
    '{"a": 1}',
    '{"a": {"b": {}}, "c": {}}',
    '{"a": "}"}',
    '{"a": "{{{"}',
    '{"a": "say \\"}\\" now"}',
    '{"a": "back\\\\"}',
    '{"a\\\\\\"}": "\\\\\\\\"}',
    '{"a": ["{", "}", {"x": "\\\\"}]}',
    '{"a": "\\u007d\\n"}',
]


@task("w4.2.4")
def test_an_object_that_comes_whole(check: Checker) -> None:
    rest = '}\n</tool_call> {"b": 2}'
    for text in OBJECTS:
        check(lambda m, text=text: fed(m, [text]), [(text, "")], what=f"arguments {text}")
        check(lambda m, text=text: fed(m, [text + rest]), [(text, rest)], what=f"arguments {text} and text behind them")


@task("w4.2.4")
def test_nothing_is_held_back(check: Checker) -> None:
    for text in OBJECTS:
        pieces = list(text + "}")
        want = [(text, "}")] + [(letter, None) for letter in text[:-1]] + [("}", "")]
        check(
            lambda m, text=text, pieces=pieces: fed(m, [text + "}"]) + fed(m, pieces),
            want,
            what=f"arguments {text}, whole and then a character at a time",
        )


@task("w4.2.4")
def test_every_cut_gives_the_same(check: Checker) -> None:
    for text in OBJECTS:
        for at in range(1, len(text)):
            pieces = [text[:at], text[at:] + "} more"]
            want = [(text[:at], None), (text[at:], "} more")]
            check(lambda m, pieces=pieces: fed(m, pieces), want, what=f"arguments {text[:at]} | {text[at:]}")


@task("w4.2.4")
def test_empty_pieces_and_random_cuts(check: Checker) -> None:
    rng = Random(0)
    letters = ['"', "\\", "{", "}", "a", "é", "\n"]
    for _ in range(20):
        value = {"".join(rng.choices(letters, k=4)): "".join(rng.choices(letters, k=12)) for _ in range(3)}
        text = json.dumps(value, ensure_ascii=False)
        cuts = sorted(rng.randrange(len(text)) for _ in range(6))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        want = [(piece, None) for piece in pieces[:-1]] + [(pieces[-1], "")]
        check(lambda m, pieces=pieces: fed(m, pieces), want, what=f"arguments in seven pieces {pieces}")

"""The "Measure" tables of week 4.

    python bench/week4.py [--chapter 4.3] [--code mine] [--json] [--write]

As bench/week1.py does it. 4.1 counts the bytes of an answer of 64 tokens, and of the comments of a silent stream; the
bound has the text alone, and a comment after each pause. 4.2 counts for how many characters at most a parser says
nothing; the bound is what no parser could say earlier. 4.3 reads quantiles from a histogram's buckets, as Prometheus
does; the bound is the exact quantile. The times are those of 300 requests on the simulated clock of week 3. 4.4 sends
many clients with one key through its limits, on a clock that jumps; the bound is what the limits allow. All figures are
the same on every machine.
"""

import asyncio
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench.week1 import Count, Makers, main  # noqa: E402
from bench.week3 import MS, ask, serve  # noqa: E402

if TYPE_CHECKING:
    from tiny_llm.decode.tool_calls import CallForm
    from tiny_llm.server.formats import ChatFormat

BYTES = "bytes"

FINE = tuple(0.004 * 1.15**power for power in range(64))  # from 4 ms to 26 s, each bound 15 % above the last


def observing() -> Iterator[Count]:
    """Quantiles of the times to first token and between tokens, from vLLM's buckets and from finer ones."""
    from tiny_llm.server import metrics  # not before the learner's files are in place

    rng = Random(4)
    now, requests = 0.0, []
    for i in range(300):
        now += rng.expovariate(5)  # five requests a second
        requests.append(ask(i, rng.choice((20, 60, 800)), rng.randint(10, 60), now))
    answers = serve(requests)
    gaps = [gap for answer in answers for gap in answer.gaps]
    firsts = [answer.first for answer in answers]
    for name, values, bounds in (
        ("between tokens", gaps, metrics.NEXT_TOKEN),
        ("first token", firsts, metrics.FIRST_TOKEN),
        ("between tokens, 64 buckets", gaps, FINE),
        ("first token, 64 buckets", firsts, FINE),
    ):
        for share in (0.5, 0.99):
            exact = float(np.quantile(values, share, method="inverted_cdf"))
            case = f"{name}, p{share * 100:g}"
            yield Count(case, lambda v=values, b=bounds, s=share: from_buckets(v, b, s) * 1e3, exact * 1e3, MS)


def from_buckets(values: Sequence[float], bounds: Sequence[float], share: float) -> float:
    """Return what Prometheus' histogram_quantile does: the place in the bucket, as if its values were spread evenly."""
    from tiny_llm.server.metrics import Histogram

    histogram = Histogram(bounds)
    for value in values:
        histogram.observe(value)
    found = [(float(name), count) for name, count in histogram.cumulative()]
    rank = share * found[-1][1]
    for (low, before), (high, count) in pairwise([(0.0, 0.0), *found]):
        if count >= rank:
            return low + (high - low) * (rank - before) / (count - before) if high < float("inf") else low
    raise AssertionError("the last bucket has all values")


TOKENS = ["word "] * 64
SILENCE = 600  # seconds


def streams() -> Iterator[Count]:
    """Bytes of an answer, whole and as events, with a token or four in each; and of a stream that is silent."""
    size = len("".join(TOKENS))
    yield Count("64 tokens, whole", whole_size, size, BYTES)
    yield Count("64 tokens, an event each", lambda: streamed_size(1), size, BYTES)
    yield Count("64 tokens, four in an event", lambda: streamed_size(4), size, BYTES)
    yield Count("ten silent minutes", silent_size, SILENCE / 10 * len(": keep-alive\n\n"), BYTES)


def whole_size() -> int:
    from tiny_llm.server.answer import UsageCounts, WholeAnswer
    from tiny_llm.server.formats import chat_message, usage_object

    message = chat_message(WholeAnswer("".join(TOKENS)))
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    usage = usage_object(UsageCounts(20, 0, len(TOKENS)))
    body = {**chat_format().head, "object": "chat.completion", "choices": [choice], "usage": usage}
    return len(json.dumps(body, separators=(",", ":")))


def streamed_size(together: int) -> int:
    """Return the bytes of the events, with so many tokens in each."""
    from tiny_llm.decode.parts import Content
    from tiny_llm.decode.text import Delta
    from tiny_llm.server.answer import AnswerPiece
    from tiny_llm.server.sse import DONE, event

    form = chat_format()
    size = len(DONE)
    for begin in range(0, len(TOKENS), together):
        text = "".join(TOKENS[begin : begin + together])
        last = begin + together >= len(TOKENS)
        delta = Delta(text, finish_reason="stop" if last else None)
        size += sum(len(event(chunk)) for chunk in form.chunks(AnswerPiece(0, [Content(text)], delta)))
    return size


def chat_format() -> "ChatFormat":
    from tiny_llm.server.formats import ChatFormat

    return ChatFormat("pocket", 1_800_000_000, None, False)


def silent_size() -> int:
    """Return the bytes of the comments that are sent before the first event, with a pause of 10 seconds."""
    from tests.week4.test_4_1_api import COMMENT, Client, Stream, served
    from tiny_llm.server import sse

    client = Client()
    served(sse, client, Stream([10 + SILENCE]))
    return sum(len(data) for _, data in client.sent if data == COMMENT)


CALL = {"name": "write_file", "arguments": {"path": "notes.txt", "text": "x" * 500}}


def parsers() -> Iterator[Count]:
    """The longest run of characters for which nothing is passed on."""
    from tiny_llm.decode.tool_calls import CallForm

    prose = "If a < b, then <b>bold</b> text and 1 << 3 go on. " * 4
    hermes = f"<tool_call>\n{json.dumps(CALL)}\n</tool_call>"
    arguments = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in CALL["arguments"].items())
    xml = f"<tool_call>\n<function=write_file>\n{arguments}</function>\n</tool_call>"
    head = hermes.index('{"path"')
    last = xml.index("</function>") - xml.index("<parameter=text>")
    for case, form, text, constrained, least in (
        ("text with many tags of others", CallForm.HERMES, prose, False, 1),
        ("a call, free", CallForm.HERMES, hermes, False, len(hermes)),
        ("a call under a grammar", CallForm.HERMES, hermes, True, head),
        ("the same in the form of XML", CallForm.XML, xml, True, last),
    ):
        yield Count(case, lambda f=form, t=text, c=constrained: silence(f, t, c), least, "characters")


def silence(form: "CallForm", text: str, constrained: bool) -> int:
    from tiny_llm.decode.tool_calls import ToolCallParser

    parser = ToolCallParser(form, {}, constrained)
    longest = now = 0
    for letter in text:
        now += 1
        longest = max(longest, now)
        if parser.feed(letter):
            now = 0
    return longest


def rush() -> Iterator[Count]:
    """Requests of many clients with one key, which allows 4 at once and 30 a minute."""
    for clients, case in ((1, "1 client"), (64, "64 clients")):
        yield Count(f"at once, {case}", lambda c=clients: after_rush(c)[0], min(4, clients), "requests")
        yield Count(f"free places after {case}", lambda c=clients: after_rush(c)[1], 4, "requests")


def after_rush(clients: int) -> tuple[int, int]:
    """Return the most requests at once, and the places that are free a minute later."""
    from tests.week4 import clockwork
    from tests.week4.test_4_4_load import client, free_places, key
    from tiny_llm.server.rates import Rates

    async def run() -> tuple[int, int]:
        rates, limits = Rates(clockwork.now), key(concurrent=4, requests_per_minute=30)
        seen: list[tuple[float, int]] = []
        running = [0]
        await asyncio.gather(*(client(rates, limits, Random(i), seen, running) for i in range(clients)))
        await asyncio.sleep(60)
        return max(count for _, count in seen), free_places(rates, limits)

    return clockwork.run(run())


MAKERS: Makers = {"4.1": streams, "4.2": parsers, "4.3": observing, "4.4": rush}


if __name__ == "__main__":
    main(MAKERS, __doc__)

"""From what is asked to what is answered: the engine's streams as parts, streamed or whole."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fastapi import Request

from tiny_llm.decode.reply import AnswerPart, CallArguments, CallBegin, Content, Reasoning, Reply
from tiny_llm.decode.text import Delta
from tiny_llm.engine.answers import AsyncStream
from tiny_llm.engine.serving import Engine, FullError
from tiny_llm.server.ask import Ask, Tenant, engine_call
from tiny_llm.server.errors import out_of_time, queue_full, unavailable
from tiny_llm.server.keys import Key
from tiny_llm.server.state import ServerState, key_of

MERGED = 64  # pieces that wait to be read where several prompts stream at once


class AnswerPiece(NamedTuple):
    """The next parts of an answer, by the answer's number, and the engine's delta that brought them."""

    answer: int
    parts: list[AnswerPart]
    delta: Delta


@dataclass
class UsageCounts:
    """How many tokens a request took. `cached` are part of `prompt`, and `reasoning` of `completion`."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    reasoning: int = 0


class OneAnswer:
    """The answers to one Ask while they come: a stream of the engine, and a reply for each answer.

    `first_index`: of its first answer among all answers of the request.
    """

    def __init__(self, ask: Ask, stream: AsyncStream, make_reply: Callable[[bool], Reply], first_index: int):
        self.ask, self.stream, self.make_reply, self.first_index = ask, stream, make_reply, first_index
        self.reasoning = 0
        self._replies: dict[int, Reply] = {}

    async def pieces(self) -> AsyncGenerator[AnswerPiece, None]:
        """Yield the parts as they come. The first one raises the errors of the prompt."""
        async for delta in self.stream:
            reply = self._replies.get(delta.index)
            if reply is None:
                reply = self._replies[delta.index] = self.make_reply(self.stream.collected.in_thought)
            parts = reply.feed(delta.text)
            if delta.finish_reason is not None:
                parts += reply.finish()
            if parts and isinstance(parts[0], Reasoning):
                self.reasoning += 1
            yield AnswerPiece(self.first_index + delta.index, parts, delta)


class Answers:
    """All answers of a request, to one Ask or several, which share a tenant."""

    def __init__(self, engine: Engine, seconds: float, tenant: Tenant):
        self.engine, self._seconds, self._tenant = engine, seconds, tenant
        self.asked: list[OneAnswer] = []
        self._expired = False

    def add(self, ask: Ask) -> None:
        """Begin the answers to an Ask. Raises FullError, and ValueError for settings of the wrong kind."""
        call = engine_call(ask, self.engine, self._tenant)
        stream = self.engine.astream(call.prompt, None, **call.options)
        self.asked.append(OneAnswer(ask, stream, call.make_reply, self.count))

    @property
    def count(self) -> int:
        """The number of all answers."""
        return sum(one.stream.collected.num_answers for one in self.asked)

    def expire(self) -> None:
        """Cancel all answers, because they take too long."""
        self._expired = True
        for one in self.asked:
            self.engine.abort(one.stream.request_id)

    async def pieces(self) -> AsyncGenerator[AnswerPiece, None]:
        """Yield the parts of all answers as they come. Raises ApiError where they were cancelled."""
        sources = [one.pieces() for one in self.asked]
        source = sources[0] if len(sources) == 1 else _merged(sources)
        async for piece in source:
            yield piece
        self.check()

    def check(self) -> None:
        """Raise ApiError where the answers were cancelled."""
        if self._expired:
            raise out_of_time(self._seconds)
        if any(one.stream.finish_reason == "cancelled" for one in self.asked):
            raise unavailable("The answer was cancelled, because the server ends its work.", "cancelled")

    @property
    def usage(self) -> UsageCounts:
        """The tokens so far."""
        counts = UsageCounts()
        for one in self.asked:
            collected = one.stream.collected
            counts.prompt += collected.prompt_tokens
            counts.cached += collected.cached_tokens
            counts.completion += collected.num_tokens
            counts.reasoning += one.reasoning
        return counts

    async def close(self) -> None:
        """Cancel what has not ended."""
        for one in self.asked:
            await one.stream.aclose()


@asynccontextmanager
async def answering(request: Request, state: ServerState, asks: Sequence[Ask]) -> AsyncIterator[Answers]:
    """Within it the answers are computed; behind it, those that have not ended are cancelled.

    Raises ApiError for an unknown model, a key beyond its rates, and a full queue.
    """
    key = key_of(request)
    seconds = state.settings.request_seconds
    with state.rates.running(key) as meter:
        async with state.models.use(asks[0].model) as engine:
            answers = Answers(engine, seconds, tenant_of(key, engine, state))
            timer = asyncio.get_running_loop().call_later(seconds, answers.expire)
            try:
                state.observer.asked(request, asks)
                for ask in asks:
                    answers.add(ask)
                yield answers
            except FullError:
                raise queue_full(engine.forecast().seconds) from None
            except RuntimeError:
                if engine.is_open:
                    raise
                raise unavailable("The server ended before the answer was complete.", "cancelled") from None
            finally:
                timer.cancel()
                await answers.close()
                usage = answers.usage
                meter.charge(usage.prompt + usage.completion)
                state.observer.finished(request, answers.asked)


def tenant_of(key: Key | None, engine: Engine, state: ServerState) -> Tenant:
    """Return the tenant of a key. The key's weight may have changed since its last request: tell the engine."""
    if key is None:
        return Tenant()
    engine.set_weight(key.name, key.weight)
    return Tenant(key.name, state.settings.cache_per_tenant)


async def _merged(sources: Sequence[AsyncGenerator[AnswerPiece, None]]) -> AsyncGenerator[AnswerPiece, None]:
    """Yield the pieces of several generators as they come. Raises the first error of one of them."""
    queue: asyncio.Queue[AnswerPiece | Exception | None] = asyncio.Queue(MERGED)

    async def read(source: AsyncGenerator[AnswerPiece, None]) -> None:
        try:
            async for piece in source:
                await queue.put(piece)
            await queue.put(None)
        except Exception as error:
            await queue.put(error)

    tasks = [asyncio.ensure_future(read(source)) for source in sources]
    left = len(tasks)
    try:
        while left:
            found = await queue.get()
            if isinstance(found, Exception):
                raise found
            if found is None:
                left -= 1
            else:
                yield found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclass
class WholeCall:
    """A tool call of a whole answer."""

    name: str
    arguments: str = ""


@dataclass
class WholeAnswer:
    """One answer, collected from its parts."""

    content: str = ""
    reasoning: str = ""
    calls: list[WholeCall] = field(default_factory=list)
    deltas: list[Delta] = field(default_factory=list)
    finish_reason: str = "stop"

    def add(self, piece: AnswerPiece) -> None:
        self.deltas.append(piece.delta)
        self.finish_reason = piece.delta.finish_reason or self.finish_reason
        for part in piece.parts:
            if isinstance(part, Content):
                self.content += part.text
            elif isinstance(part, Reasoning):
                self.reasoning += part.text
            elif isinstance(part, CallBegin):
                self.calls.append(WholeCall(part.name))
            elif isinstance(part, CallArguments):
                self.calls[part.index].arguments += part.text


async def collect(answers: Answers) -> list[WholeAnswer]:
    """Read all answers to their end."""
    whole = [WholeAnswer() for _ in range(answers.count)]
    async for piece in answers.pieces():
        whole[piece.answer].add(piece)
    return whole


def speculation_figures(deltas: Sequence[Delta]) -> dict[str, Any] | None:
    """Return vLLM's figures of speculation for some answers; None where nothing was guessed.

    A verified draft ends with the model's own token, a "bonus" or a "corrected" one.
    """
    accepted: list[int] = []
    run = 0
    for delta in deltas:
        if delta.origin == "accepted":
            run += 1
        elif delta.origin is not None:
            accepted.append(run)
            run = 0
    if not accepted:
        return None
    longest = max(accepted)
    drafted = sum(delta.num_drafted for delta in deltas)
    return {
        "mean_acceptance_length": 1 + sum(accepted) / len(accepted),
        "acceptance_histogram": [accepted.count(length) for length in range(longest + 1)],
        "num_spec_steps": len(accepted),
        "num_accepted_draft_tokens": sum(accepted),
        "num_draft_tokens": drafted,
        "draft_acceptance_rate": sum(accepted) / drafted if drafted else 0.0,
    }

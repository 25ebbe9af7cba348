"""One conversation with one model: send a message, show the answer as it comes."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiny_llm.apps.chat.conversation import ChatMessage, Conversation
from tiny_llm.cli.terminal import coloured, dim, printable, styled
from tiny_llm.decode.reply import AnswerPart, Content, Reasoning, Reply

if TYPE_CHECKING:
    from tiny_llm.cli.agent_chat import ChatTools
    from tiny_llm.engine.llm import LLM

HOPELESS = 64  # characters for each token of the context: hardly a text of that length fits
COLOURS = {"accepted": 32, "bonus": 36, "corrected": 33}  # of tokens by their origin: green, cyan, yellow
MAX_TOKENS = 4096  # a conversation's default: thinking alone may take a thousand


class AnswerView:
    """Writes an answer as it comes. Thinking is dim; where stdout is no terminal it goes to stderr.

    `colour` is that of the pieces that come next.
    """

    def __init__(self) -> None:
        self.thinking, self.answer = "", ""
        self.colour: int | None = None
        self._place: bool | None = None

    def show(self, parts: list[AnswerPart]) -> None:
        """Show the parts of an answer in which no tool calls were looked for."""
        for part in parts:
            assert isinstance(part, Reasoning | Content)
            text = part.text
            thinking = isinstance(part, Reasoning)
            if thinking:
                self.thinking += text
            else:
                self.answer += text
            stream = sys.stderr if thinking and not sys.stdout.isatty() else sys.stdout
            if thinking != self._place:
                self._switch(thinking)
            text = printable(text, stream)
            if self.colour is not None:
                text = coloured(text, self.colour, stream)
            elif thinking:
                text = dim(text, stream)
            print(text, end="", file=stream, flush=True)

    def finish(self) -> None:
        if self._place is not None:
            print(file=sys.stderr if self._place and not sys.stdout.isatty() else sys.stdout, flush=True)

    def _switch(self, thinking: bool) -> None:
        """Mark where thinking ends: an empty line where it is dim, the model's tags where it can't be."""
        begun, self._place = self._place is not None, thinking
        stream = sys.stdout if sys.stdout.isatty() else sys.stderr
        if thinking:
            print("" if styled(stream) else "<think>\n", end="", file=stream)
        elif begun:
            end = "" if self.thinking.endswith("\n") else "\n"
            print(end + ("" if styled(stream) else "</think>"), file=stream, flush=True)


class Session:
    """A model, a conversation and the settings for its answers."""

    def __init__(self, llm: "LLM", settings: dict[str, Any], template: dict[str, Any], system: str | None = None):
        self.llm, self.settings, self.template = llm, settings, template
        self.conversation = Conversation(system)
        self.answers = self.generated = 0
        self.shows_guesses = False
        self.tools: ChatTools | None = None

    def requested(self) -> dict[str, Any]:
        """What each answer asks for beyond the model's own defaults."""
        return {"max_tokens": self.llm.defaults.get("max_tokens", MAX_TOKENS)} | self.settings

    def send(self, text: str) -> None:
        """Say `text` and show the answer. If none comes, the conversation is as it was before."""
        with self._undone_without_answer():
            self.conversation.say("user", text)
            if self.tools is None:
                self._answer()
            else:
                self.conversation.say("assistant", self.tools.answer(text))

    def open_tools(self, folder: Path) -> None:
        """Let the model use tools on the files of a folder, from the next message on."""
        from tiny_llm.cli.agent_chat import ChatTools

        self.close_tools()
        self.tools = ChatTools(self.llm, self.settings, self.template, self.conversation, folder)

    def close_tools(self) -> None:
        """Answer without tools from the next message on."""
        if self.tools is not None:
            self.tools.close()
        self.tools = None

    def retry(self) -> None:
        """Answer the last message again; if no answer comes, the old one stays. Raises ValueError where none is."""
        with self._undone_without_answer():
            self.conversation.unanswer()
            self._answer()

    @contextmanager
    def _undone_without_answer(self) -> Iterator[None]:
        conversation = self.conversation
        before, start = list(conversation.messages), conversation.start
        try:
            yield
        finally:
            if not conversation.messages or conversation.messages[-1]["role"] == "user":
                conversation.messages, conversation.start = before, start

    def _answer(self) -> None:
        """Answer the last message. What was written before a failure or Ctrl-C stays in the conversation."""
        messages = self._fit()
        reply = Reply(self.llm.tokenizer.render(messages, **self.template).opens_thought)
        view = AnswerView()
        try:
            reason = self._stream(messages, reply, view)
        finally:
            view.finish()
            if view.answer or view.thinking:
                self.conversation.say("assistant", view.answer, view.thinking)
        self._remark(reason, bool(view.answer or view.thinking))

    def _stream(self, messages: list[ChatMessage], reply: Reply, view: AnswerView) -> str | None:
        """Show the answer; returns why it ended, None for Ctrl-C."""
        reason = None
        with interruptible() as stopped:
            stream = self.llm.stream(messages, template=self.template, **self.requested())
            for delta in stream:
                view.colour = COLOURS[delta.origin] if self.shows_guesses and delta.origin else None
                view.show(reply.feed(delta.text))
                reason = delta.finish_reason
                if stopped() and reason is None:
                    break
            view.show(reply.finish())
        return reason

    def _fit(self) -> list[ChatMessage]:
        context = self.llm.max_context
        for text in (self.conversation.system or "", self.conversation.messages[-1]["content"]):
            if len(text) > context * HOPELESS:
                self.llm.tokenizer.encode(text, limit=context)  # refuses it by its length, before tokenizing
        reserve = min(self.requested()["max_tokens"], context // 4)
        dropped = self.conversation.fit(self.count_tokens, context, reserve)
        if dropped:
            remark(
                f"the context of {context} tokens is full: the model no longer sees the {dropped} oldest messages "
                "of this conversation (/save keeps them; /clear starts anew)"
            )
        return self.conversation.visible()

    def count_tokens(self, messages: list[ChatMessage]) -> int:
        return len(self.llm.encode(messages, self.template))

    def _remark(self, reason: str | None, answered: bool) -> None:
        stats = self.llm.last_stats
        assert stats is not None, "a stream that ended has its figures"
        self.answers, self.generated = self.answers + 1, self.generated + stats.generated_tokens
        if not answered:
            remark("the model ended without a word; your message is taken back")
        if reason == "length" and stats.prompt_tokens + stats.generated_tokens >= self.llm.max_context:
            remark(f"cut short: the context of {self.llm.max_context} tokens is full; /clear starts anew")
        elif reason == "length":
            remark(f"cut short after {stats.generated_tokens} tokens; /set max_tokens N allows more")
        if sys.stderr.isatty():
            from tiny_llm.views.answers import timing

            remark(("stopped · " if reason is None else "") + timing(stats))


def remark(text: str) -> None:
    """Something about the conversation, not of it: on stderr, dim."""
    sys.stdout.flush()
    print(dim(f"({text})", sys.stderr), file=sys.stderr, flush=True)


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Within it Ctrl-C only sets what the yielded function returns, so that no computation is cut in two.

    A second Ctrl-C is a KeyboardInterrupt as usual.
    """
    pressed = threading.Event()

    def press(number: int, frame: Any) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    before = signal.signal(signal.SIGINT, press)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)

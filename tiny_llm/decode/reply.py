"""Divide an answer into its parts while its text comes: thought, content and tool calls."""

from typing import TYPE_CHECKING

from tiny_llm.decode.parts import AnswerPart, CallArguments, CallBegin, Content, Reasoning
from tiny_llm.decode.thought import CLOSE, OPEN, Thought

if TYPE_CHECKING:  # the command line imports this file before it knows whose parser runs
    from tiny_llm.decode.tool_calls import ToolCallParser

__all__ = ["AnswerPart", "CallArguments", "CallBegin", "Content", "Reasoning", "Reply"]


class Reply:
    """Divides one answer into parts. How its text is cut into pieces makes no difference to the joined parts.

    `in_thought`: the prompt opened a thought, as `Rendered.opens_thought` says. The thought's tags and the white space
    behind them belong to no part. `parser` finds the tool calls in the answer behind the thought; without one all of
    the answer is content.
    """

    def __init__(self, in_thought: bool, parser: "ToolCallParser | None" = None):
        self._thought = Thought(in_thought)
        self._parser = parser
        self._opening = not in_thought  # the opening tag may still come
        self._fresh = in_thought  # nothing was passed on since a tag: white space is dropped
        self._blank = ""  # white space at the beginning, before it is known what follows

    def feed(self, text: str) -> list[AnswerPart]:
        """Return the parts that the next piece of text completes. A text that may begin a tag is held back."""
        return self._parts(*self._thought.split(text))

    def finish(self) -> list[AnswerPart]:
        """Return the parts that were held back, once no more text comes."""
        parts = self._parts(*self._thought.finish())
        parts += self._content(self._blank)
        if self._parser is not None:
            parts += self._parser.finish()
        return parts

    def _parts(self, thought: str, answer: str) -> list[AnswerPart]:
        if self._opening and thought:
            thought = thought.lstrip().removeprefix(OPEN)
            self._opening, self._fresh, self._blank = False, True, ""
        elif self._opening:
            answer, self._blank = self._blank + answer, ""
            if not answer.strip():
                self._blank = answer
                return []
            self._opening = False
        closed = thought.endswith(CLOSE)
        shown = self._without_blank(thought.removesuffix(CLOSE))
        parts: list[AnswerPart] = [Reasoning(shown)] if shown else []
        if closed:
            self._fresh = True
        return parts + self._content(answer)

    def _content(self, answer: str) -> list[AnswerPart]:
        text = self._without_blank(answer)
        if not text:
            return []
        return [Content(text)] if self._parser is None else self._parser.feed(text)

    def _without_blank(self, text: str) -> str:
        """Drop the white space at the beginning of a text that follows a tag."""
        if self._fresh:
            text = text.lstrip()
            self._fresh = not text
        return text

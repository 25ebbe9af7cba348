"""Tell a model's thinking from its answer while the text is still coming."""

from tiny_llm.decode.thought import CLOSE, OPEN, Thought


class ThinkingSplitter:
    """Splits streamed text into (is_thinking, piece) pairs, without the tags and the white space behind them.

    `thinking`: whether the prompt opened the tag already, as `Rendered.opens_thought` says.
    """

    def __init__(self, thinking: bool = False):
        self._thought = Thought(thinking)
        self._opening = not thinking  # the opening tag may still come
        self._fresh = thinking  # nothing shown yet since a tag: white space is dropped
        self._blank = ""  # white space at the beginning, before it is known what follows

    def add(self, text: str) -> list[tuple[bool, str]]:
        return self._shown(*self._thought.split(text))

    def finish(self) -> list[tuple[bool, str]]:
        """What was held back because a tag could have begun in it."""
        pieces = self._shown(*self._thought.finish())
        return pieces + self._piece(False, self._blank)

    def _shown(self, thought: str, answer: str) -> list[tuple[bool, str]]:
        pieces: list[tuple[bool, str]] = []
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
        pieces += self._piece(True, thought.removesuffix(CLOSE))
        if closed:
            self._fresh = True
        pieces += self._piece(False, answer)
        return pieces

    def _piece(self, is_thinking: bool, text: str) -> list[tuple[bool, str]]:
        if self._fresh:
            text = text.lstrip()
            self._fresh = not text
        return [(is_thinking, text)] if text else []

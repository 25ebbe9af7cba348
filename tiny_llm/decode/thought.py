"""A model's thought: what it writes between <think> and </think> before its answer."""

from collections.abc import Sequence
from enum import Enum

from tiny_llm.decode.stop import StopStrings

OPEN, CLOSE = "<think>", "</think>"


class Place(Enum):
    """Where the text stands: at its beginning, inside the thought, or in the answer."""

    BEGINNING = "beginning"
    THOUGHT = "thought"
    ANSWER = "answer"


class Thought:
    """Splits a text that comes in pieces into its thought and its answer.

    The thought is open from the first character where the prompt has opened it (`in_thought`). Otherwise a text has a
    thought only if it begins with `<think>`, white space aside. Tags belong to the thought.
    """

    def __init__(self, in_thought: bool):
        self.place = Place.THOUGHT if in_thought else Place.BEGINNING
        self._held = ""  # the end of the text so far, where a tag may have begun

    def split(self, piece: str) -> tuple[str, str]:
        """The next characters of the thought and of the answer; at most the beginning of a tag is held back."""
        if self.place is Place.ANSWER:
            return "", piece
        text = self._held + piece
        if self.place is Place.BEGINNING:
            begun = text.lstrip()
            if not begun.startswith(OPEN):
                return "", self._beginning(text, begun)
            self.place = Place.THOUGHT
        return self._inside(text)

    def finish(self) -> tuple[str, str]:
        """What was held back, once nothing more comes."""
        held, self._held = self._held, ""
        return (held, "") if self.place is Place.THOUGHT else ("", held)

    def _beginning(self, text: str, begun: str) -> str:
        """The answer's characters in a text that has not opened a thought; `begun` is what follows its white space."""
        if OPEN.startswith(begun):
            self._held = begun
            return text.removesuffix(begun)
        self.place, self._held = Place.ANSWER, ""
        return text

    def _inside(self, text: str) -> tuple[str, str]:
        thought, tag, answer = text.partition(CLOSE)
        if tag:
            self.place, self._held = Place.ANSWER, ""
            return thought + tag, answer
        begun = next((n for n in range(len(CLOSE) - 1, 0, -1) if text.endswith(CLOSE[:n])), 0)
        shown = len(text) - begun
        self._held = text[shown:]
        return text[:shown], ""


class AnswerStops:
    """`StopStrings` that count in the answer only: a thought passes as it is.

    `in_thought`: the prompt has opened a thought already.
    """

    def __init__(self, stops: Sequence[str], in_thought: bool):
        self._thought, self._strings = Thought(in_thought), StopStrings(stops)

    def add(self, piece: str) -> tuple[str, bool]:
        """The text that is now safe to show, and whether a stop string ended it (it is not part of the text)."""
        thought, answer = self._thought.split(piece)
        text, stopped = self._strings.add(answer)
        return thought + text, stopped

    def finish(self) -> tuple[str, bool]:
        """The same for what was held back, once nothing more comes."""
        thought, answer = self._thought.finish()
        text, stopped = self._strings.add(answer)
        rest = "" if stopped else self._strings.finish()
        return thought + text + rest, stopped

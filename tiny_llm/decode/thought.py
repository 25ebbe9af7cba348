"""Separate a model's thought, the text between <think> and </think>, from the answer after it."""

from enum import Enum

OPEN, CLOSE = "<think>", "</think>"


class Place(Enum):
    """The place of the next character: at the text's beginning, inside the thought, or in the answer."""

    BEGINNING = "beginning"
    THOUGHT = "thought"
    ANSWER = "answer"


class Thought:
    """Splits a text that comes in pieces into its thought and its answer.

    Where the prompt has opened a thought (`in_thought`), the text begins inside it. Otherwise a text has a thought only
    if it begins with `<think>`, after optional white space. The tags belong to the thought.
    """

    def __init__(self, in_thought: bool):
        self.place = Place.THOUGHT if in_thought else Place.BEGINNING
        self._held = ""  # the end of the text so far, where a tag may have begun

    def split(self, piece: str) -> tuple[str, str]:
        """Return the next characters of the thought and of the answer. Only the beginning of a tag is held back."""
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
        """Return the held-back characters of the thought and of the answer, once no more text comes."""
        held, self._held = self._held, ""
        return (held, "") if self.place is Place.THOUGHT else ("", held)

    def _beginning(self, text: str, begun: str) -> str:
        """Return the answer's characters in a text without a thought. `begun` is the text after its white space."""
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

"""End a text at a stop string, wherever the borders between tokens fall."""

from collections.abc import Sequence

from tiny_llm.course import NotDone


class StopStrings:
    """Pass text on as far as no stop string can still begin in it."""

    def __init__(self, stops: Sequence[str]):
        self.stops = tuple(stops)
        self.held = ""

    def add(self, piece: str) -> tuple[str, bool]:
        """Return the text that is now safe to show, and whether a stop string ended it (it is not part of the text)."""
        # YOUR CODE (w1.6.4): hold back what could become a stop string
        raise NotDone("w1.6.4")

    def finish(self) -> str:
        """Return the text that was held back, once no more text comes."""
        text = self.held
        self.held = ""
        return text

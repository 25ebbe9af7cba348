"""End a text at a stop string, wherever the borders between tokens fall."""

from collections.abc import Sequence


class StopStrings:
    """Pass text on as far as no stop string can still begin in it."""

    def __init__(self, stops: Sequence[str]):
        self.stops = tuple(stops)
        self.held = ""

    def add(self, piece: str) -> tuple[str, bool]:
        """Return the text that is now safe to show, and whether a stop string ended it (it is not part of the text)."""
        # TASK w1.6.4: hold back what could become a stop string
        text = self.held + piece
        places = [text.find(stop) for stop in self.stops]
        found = [at for at in places if at >= 0]
        if found:
            self.held = ""
            return text[: min(found)], True
        waiting = 0
        for stop in self.stops:
            longest = min(len(stop) - 1, len(text))
            for length in range(1, longest + 1):
                if text.endswith(stop[:length]):
                    waiting = max(waiting, length)
        safe = len(text) - waiting
        self.held = text[safe:]
        return text[:safe], False
        # END TASK

    def finish(self) -> str:
        """Return the text that was held back, once no more text comes."""
        text = self.held
        self.held = ""
        return text

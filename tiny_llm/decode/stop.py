"""Ending a text at a stop string, wherever the borders between tokens fall."""

from collections.abc import Sequence


class StopStrings:
    """Passes text on as far as no stop string can still begin in it."""

    def __init__(self, stops: Sequence[str]):
        self.stops, self.held = tuple(stops), ""

    def add(self, piece: str) -> tuple[str, bool]:
        """The text that is now safe to show, and whether a stop string ended it (it is not part of the text)."""
        # TASK w1.6.4: hold back what could become a stop string
        text = self.held + piece
        found = [at for stop in self.stops if (at := text.find(stop)) >= 0]
        if found:
            self.held = ""
            return text[: min(found)], True
        lengths = ((stop, n) for stop in self.stops for n in range(1, min(len(stop), len(text) + 1)))
        prefixes = [n for stop, n in lengths if text.endswith(stop[:n])]
        safe = len(text) - max(prefixes, default=0)
        self.held = text[safe:]
        return text[:safe], False
        # END TASK

    def finish(self) -> str:
        """What was held back, once nothing more comes."""
        text, self.held = self.held, ""
        return text

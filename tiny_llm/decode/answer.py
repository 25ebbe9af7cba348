"""Where an answer ends: at a stop string, which does not count in the thought before the answer."""

from collections.abc import Sequence

from tiny_llm.decode.stop import StopStrings
from tiny_llm.decode.thought import Thought


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

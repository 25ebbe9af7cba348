"""Tell a model's thinking from its answer while the text is still coming."""

OPEN, CLOSE = "<think>", "</think>"


class ThinkingSplitter:
    """Splits streamed text into (is_thinking, piece) pairs; a tag may come in several pieces.

    Thinking is what stands at the very beginning between `<think>` and `</think>`; later tags are the answer's text.
    `thinking`: whether the prompt opened the tag already, as `Rendered.opens_thought` says.
    """

    def __init__(self, thinking: bool = False):
        self._place = "thinking" if thinking else "start"
        self._pending = ""
        self._fresh = thinking  # nothing shown yet since a tag: white space is dropped

    def add(self, text: str) -> list[tuple[bool, str]]:
        self._pending += text
        pieces: list[tuple[bool, str]] = []
        if self._place == "start":
            self._leave_start()
        if self._place == "thinking":
            thought, tag, rest = self._pending.partition(CLOSE)
            end = len(thought) if tag else len(thought) - _begun(thought)
            pieces += self._show(thought[:end])
            self._pending = rest if tag else thought[end:]
            if tag:
                self._place, self._fresh = "answer", True
        if self._place == "answer":
            pieces += self._show(self._pending)
            self._pending = ""
        return pieces

    def finish(self) -> list[tuple[bool, str]]:
        """What was held back because a tag could have begun in it."""
        return self._show(self._pending)

    def _leave_start(self) -> None:
        begun = self._pending.lstrip()
        if begun.startswith(OPEN):
            self._place, self._pending, self._fresh = "thinking", begun[len(OPEN) :], True
        elif not OPEN.startswith(begun):
            self._place = "answer"

    def _show(self, text: str) -> list[tuple[bool, str]]:
        if self._fresh:
            text = text.lstrip()
            self._fresh = not text
        return [(self._place == "thinking", text)] if text else []


def _begun(text: str) -> int:
    """How many characters at the end of `text` could be the beginning of the closing tag."""
    return next((n for n in range(len(CLOSE) - 1, 0, -1) if text.endswith(CLOSE[:n])), 0)

"""The text of a rendered conversation, with facts about it that only the template knows."""

Spans = tuple[tuple[int, int], ...]


class Rendered(str):
    """The prompt that a chat template made.

    `opens_thought`: whether the generation prompt, which the template puts behind the last message, leaves a think tag
    open, so that the answer begins inside a thought.
    `controls`: where the template's own control tokens stand, as (begin, end). Text elsewhere that spells such a token
    is text. None: every control token in the text is the template's own.
    """

    opens_thought: bool
    controls: Spans | None

    def __new__(cls, text: str, opens_thought: bool = False, controls: Spans | None = None) -> "Rendered":
        rendered = super().__new__(cls, text)
        rendered.opens_thought = opens_thought
        rendered.controls = controls
        return rendered

    def before(self, mark: str) -> "Rendered":
        """Return the text up to the first `mark`."""
        text = self.partition(mark)[0]
        if self.controls is None:
            return Rendered(text)
        return Rendered(text, controls=tuple(span for span in self.controls if span[1] <= len(text)))

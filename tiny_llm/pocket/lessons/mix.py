"""The mix of lessons that the pocket model learns from: an endless, seeded stream, made on the fly."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tiny_llm.pocket.lessons.agent import agent_lesson
from tiny_llm.pocket.lessons.chat import arithmetic_lesson, faq_lesson, memory_lesson
from tiny_llm.pocket.lessons.context import context_lesson, needle_lesson
from tiny_llm.pocket.lessons.dialogue import Dialogue
from tiny_llm.pocket.lessons.retrieval import passages_lesson
from tiny_llm.pocket.lessons.talk import talk_lesson
from tiny_llm.pocket.lessons.text import COPYING, text_lesson
from tiny_llm.pocket.lessons.tool_calls import tool_lesson
from tiny_llm.pocket.lessons.words import Words

Dialogues = list[Dialogue]


def long_needle(words: Words) -> Dialogues:
    """Needles in 500 to 2,000 tokens."""
    return needle_lesson(words, words.integer(32, 140), 4)


LESSONS: Mapping[str, Callable[[Words], Dialogues]] = {
    "tool": lambda words: tool_lesson(words, 3),
    "builtin": lambda words: agent_lesson(words, 2),
    "long_builtin": lambda words: agent_lesson(words, 4),
    "passages": lambda words: passages_lesson(words, 8),
    "context": lambda words: context_lesson(words, 8),
    "needle": lambda words: needle_lesson(words, words.integer(2, 20), 3),
    "long_needle": long_needle,
    "faq": lambda words: faq_lesson(words, 6),
    "text": lambda words: text_lesson(words, 6, long=0.0),
    "long_text": lambda words: text_lesson(words, words.integer(1, 2), long=1.0),
    "copy": lambda words: text_lesson(words, 6, COPYING, long=0.0),
    "talk": lambda words: talk_lesson(words, 6),
    "memory": lambda words: memory_lesson(words, 8),
    "think": lambda words: arithmetic_lesson(words, 5),
}


@dataclass(frozen=True)
class Mix:
    """How often each kind of lesson comes; weights need not sum to one.

    Raises ValueError for a kind that does not exist or a weight below zero.
    """

    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        for kind, weight in self.weights.items():
            if kind not in LESSONS or weight < 0:
                raise ValueError(
                    f"mix: {kind}={weight} is not a lesson with a weight: choose among {', '.join(LESSONS)}"
                )

    def lesson(self, seed: int, index: int) -> Dialogues:
        """Lesson number `index` of this seed's stream: the same whenever it is made."""
        words = Words(f"{seed}/{index}")
        kind = words.random.choices(list(self.weights), list(self.weights.values()))[0]
        return LESSONS[kind](words)


FOUNDATION = Mix({"copy": 0.4, "context": 0.25, "needle": 0.25, "memory": 0.1})
EVERYTHING = Mix(
    {
        "tool": 0.25,
        "builtin": 0.18,
        "context": 0.16,
        "passages": 0.1,
        "needle": 0.02,
        "faq": 0.07,
        "text": 0.11,
        "long_text": 0.03,
        "talk": 0.03,
        "memory": 0.07,
        "think": 0.05,
    }
)
TEXTWORK = Mix(  # text work, and a little of all else, so that it is not forgotten
    {
        "text": 0.42,
        "long_text": 0.23,
        "tool": 0.08,
        "think": 0.04,
        "builtin": 0.05,
        "context": 0.06,
        "passages": 0.03,
        "faq": 0.05,
        "talk": 0.04,
        "memory": 0.04,
    }
)
LONG = Mix({**EVERYTHING.weights, "builtin": 0.12, "long_builtin": 0.06, "long_text": 0.05, "long_needle": 0.05})

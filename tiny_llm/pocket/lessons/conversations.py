"""Conversations to measure a model on: made by the project, in a part that no training saw and one to choose by."""

from collections.abc import Callable

from tiny_llm.pocket.lessons.dialogue import encode_turns
from tiny_llm.pocket.lessons.mix import LESSONS
from tiny_llm.pocket.lessons.words import Split, Words

KINDS = ("faq", "tool", "context", "memory", "text", "think")
LONGEST = 512  # tokens of one conversation


def conversations(split: Split, budget: int, encode: Callable[[str], list[int]]) -> list[tuple[list[int], int]]:
    """Conversations of about `budget` tokens in all, the same ones each time, every kind in turn.

    Each is (token ids, the place where the last answer begins). `split` "test" has names and wordings that the pocket
    model's training never saw.
    """
    words, found, size = Words("perplexity", split), list[tuple[list[int], int]](), 0
    while True:
        for kind in KINDS:
            *_, (prompt, answer) = encode_turns(LESSONS[kind](words)[0], encode)
            if len(prompt) + len(answer) > LONGEST:
                continue
            size += len(prompt) + len(answer)
            if size > budget and found:
                return found
            found.append((prompt + answer, len(prompt)))

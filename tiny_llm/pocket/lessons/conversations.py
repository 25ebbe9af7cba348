"""Conversations to measure a model on: made by the project, in a part that no training saw and one to choose by."""

from collections.abc import Callable

from tiny_llm.pocket.lessons.dialogue import Dialogue, JsonObject, encode_turns, user
from tiny_llm.pocket.lessons.faq import question_and_answer
from tiny_llm.pocket.lessons.mix import LESSONS
from tiny_llm.pocket.lessons.words import Split, Words

KINDS = ("faq", "tool", "context", "memory", "text", "think")
LONGEST = 512  # tokens of one conversation
OPENINGS = (
    *("talk", "talk", "talk", "talk", "odd", "odd"),
    *("faq", "text", "long_text", "tool", "context", "memory", "think", "needle"),
)
OPENED = ("talk", "faq", "text", "long_text", "copy", "tool", "builtin", "context", "passages", "memory", "think")


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


def odd_question(words: Words) -> Dialogue:
    """Return a question of the FAQ that is cut short, runs into another one, or has made-up words in it."""
    text, _ = question_and_answer(words)
    parts = text.split(" ")
    form = words.choice(("cut", "double", "strange"))
    if form == "cut":
        text = " ".join(parts[: words.integer(1, len(parts))])
    elif form == "double":
        other, _ = question_and_answer(words)
        text = f"{text} {other}"
    else:
        parts[words.integer(0, len(parts) - 1)] = words.name()
        text = " ".join(parts)
    return Dialogue("odd", (user(text), {"role": "assistant", "content": ""}))


def open_prompts(number: int, encode: Callable[[str], list[int]]) -> list[list[int]]:
    """Return token ids of so many prompts of every kind, the same ones each time, whatever their answer may be.

    Half of them have names and wordings that training never saw; the other half is made as in training.
    """
    found = []
    for index in range(number):
        words = Words(f"open/{index}", "test" if index % 2 else "train")
        kind = words.choice(OPENINGS)
        dialogue = odd_question(words) if kind == "odd" else LESSONS[kind](words)[0]
        prompt, _ = next(encode_turns(dialogue, encode))
        found.append(prompt)
    return found


def chats(number: int, with_tools: bool) -> list[tuple[list[JsonObject], list[JsonObject]]]:
    """Return so many openings of conversations and their tools, up to the first answer, made as in training.

    Without tools they are for models that know none.
    """
    found: list[tuple[list[JsonObject], list[JsonObject]]] = []
    index = 0
    while len(found) < number:
        words = Words(f"chats/{index}", "train")
        index += 1
        dialogue = LESSONS[words.choice(OPENED)](words)[0]
        first = next(i for i, message in enumerate(dialogue.messages) if message["role"] == "assistant")
        if with_tools or not dialogue.tools:
            found.append((list(dialogue.messages[:first]), list(dialogue.tools)))
    return found

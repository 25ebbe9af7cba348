"""Lessons on reading: answers from passages with their number, facts that are absent, and needles in long text."""

from collections.abc import Callable, Sequence

from tiny_llm.pocket.lessons.dialogue import Dialogue, assistant, user
from tiny_llm.pocket.lessons.faq import faq_entries
from tiny_llm.pocket.lessons.passages import ABSENT, Document, cited, explanations, facts
from tiny_llm.pocket.lessons.words import Words

HEADS = ("Context:", "Context:", "Context:", "Documents:", "Passages:", "Sources:")
SYSTEMS = (
    "Answer from the passages and cite them like [1].",
    "Answer only from the documents. Give the number of the passage.",
    "Use the context to answer and name your source.",
)
NEEDLES = (
    (
        "The secret code of {n} is {v}.",
        (
            "What is the secret code of {n}?",
            "Tell me the secret code of {n}.",
            "Which secret code does {n} have?",
            "I forgot the secret code of {n}.",
            "Give me the secret code of {n}.",
        ),
    ),
    (
        "The key for {n} is {v}.",
        (
            "What is the key for {n}?",
            "Which key does {n} need?",
            "Tell me the key for {n}.",
            "I need the key for {n}.",
            "How do I open {n}? Tell me the key.",
        ),
    ),
    (
        "Remember the magic number of {n}: {v}.",
        (
            "What is the magic number of {n}?",
            "Which magic number has {n}?",
            "Tell me the magic number of {n}.",
            "What number was to be remembered for {n}?",
            "Say the magic number of {n}.",
        ),
    ),
    (
        "{n} keeps the password {v}.",
        (
            "What is the password of {n}?",
            "Which password does {n} keep?",
            "Tell me the password of {n}.",
            "I need the password of {n}.",
            "What password has {n}?",
        ),
    ),
)


def context_prompt(words: Words, passages: Sequence[str], question: str, head: str) -> str:
    """The user's turn of a question on passages."""
    listed = "\n".join(f"[{number}] {passage}" for number, passage in enumerate(passages, 1))
    return f"{head}\n{listed}\n\nQuestion: {question}"


def context_lesson(words: Words, branches: int) -> list[Dialogue]:
    """Questions on the same passages, a third of which have no answer there."""
    count = words.choice((1, 2, 2, 3, 3, 3, 4, 5))
    document: Document = facts(words, count) if words.chance(0.85) else explanations(words, min(count, 4))
    head = words.choice(HEADS)
    system = [{"role": "system", "content": words.choice(SYSTEMS)}] if words.chance(0.25) else []
    absent = min(len(document.unanswered), max(1, round(branches * 0.3)))
    questions = [(question, ABSENT) for question in words.sample(document.unanswered, absent)]
    for question, number, answer in words.sample(document.answered, branches - absent):
        questions.append((question, cited(answer, number)))
    lesson = []
    for question, answer in questions:
        task = "context_absent" if answer == ABSENT else "context_answer"
        prompt = user(context_prompt(words, document.passages, question, head))
        lesson.append(Dialogue(task, (*system, prompt, assistant(answer))))
    return lesson


def haystack(words: Words) -> Callable[[], str]:
    """A source of sentences that have nothing to do with the needle."""
    if words.chance(0.7):
        return words.sentence
    return lambda: words.choice(faq_entries()).answer


def needle_lesson(words: Words, sentences: int, branches: int = 3) -> list[Dialogue]:
    """Facts hidden in so many sentences, each asked for in a branch of its own."""
    source = haystack(words)
    lines = [source() for _ in range(sentences)]
    says, asks = words.choice(NEEDLES)
    hidden = {name: words.choice((str(words.integer(1000, 99999)), words.code())) for name in words.names(branches)}
    for name, value in hidden.items():
        lines.insert(words.integer(0, len(lines)), says.format(n=name, v=value))
    text = " ".join(lines)
    lesson = []
    for name, value in hidden.items():
        question = words.phrasing(asks).format(n=name)
        lesson.append(Dialogue("needle", (user(f"{text}\n\n{question}"), assistant(value + "."))))
    return lesson


def needle_of_length(words: Words, tokens: int, length: Callable[[Dialogue], int]) -> list[Dialogue]:
    """A needle lesson whose prompt has a little under so many tokens; `length` counts a prompt's."""
    sentences = tokens // 8
    while True:
        lesson = needle_lesson(words, sentences, 1)
        found = length(lesson[0])
        if 0.9 * tokens < found <= tokens:
            return lesson
        sentences = max(1, int(sentences * 0.96 * tokens / found))

"""Lessons in the prompt format of retrieved passages: distractors, two facts, absent answers, second questions."""

from collections.abc import Sequence

from tiny_llm.config.prompts import Passage, passage_format
from tiny_llm.pocket.lessons.context import SYSTEMS
from tiny_llm.pocket.lessons.dialogue import Dialogue, JsonObject, assistant, user
from tiny_llm.pocket.lessons.faq import faq_entries
from tiny_llm.pocket.lessons.passages import Document, cited, explanations, facts
from tiny_llm.pocket.lessons.words import Words

FORMAT = passage_format()
TITLES = ("About {n}", "{n}", "Notes on {n}", "The {w}", "{n} and the {w}", "A report from {n}", "All about the {w}")
ENDINGS = ("md", "txt", "pdf", "html", "md#{n}", "pdf, page {p}")
TWO = ("{one} {two}", "{one} And: {two}", "{one} Also: {two}", "1. {one} 2. {two}")
MORE_TWO = ("{one} Besides: {two}", "Two questions. {one} {two}", "{one}\n{two}", "{one} I also want to know: {two}")


def heading(words: Words) -> tuple[str, str]:
    """A title and a source; each may be empty."""
    fill = {"n": words.name(), "w": words.word(), "p": words.integer(1, 90)}
    title = words.choice(TITLES).format(**fill)
    source = f"{words.any_word()}.{words.choice(ENDINGS).format(**fill)}"
    folder = words.choice(("", "", "docs/", "notes/"))
    return title, folder + source


def passages_of(words: Words, texts: Sequence[str]) -> list[Passage]:
    """The texts as passages; all have a source, a title and a source, or neither."""
    kind = words.choice(("plain", "source", "both"))
    found = []
    for text in texts:
        title, source = heading(words)
        if kind == "plain":
            found.append(Passage(text))
        elif kind == "source":
            found.append(Passage(text, source=source))
        else:
            found.append(Passage(text, title, source))
    return found


def distractor(words: Words, explains: bool) -> str:
    """A passage that answers nothing; where the passages explain, no other explanation, which might answer."""
    if not explains and words.chance(0.4):
        return words.choice(faq_entries()).answer
    return " ".join(words.sentence() for _ in range(words.integer(1, 2)))


def padded(words: Words, text: str) -> str:
    """The text, now and then with a sentence before or after it."""
    if words.chance(0.2):
        return f"{words.sentence()} {text}"
    if words.chance(0.2):
        return f"{text} {words.sentence()}"
    return text


def retrieved(words: Words, document: Document, distractors: int, explains: bool = False) -> Document:
    """The document's passages among others, in any order; its answers name the new numbers."""
    texts = [padded(words, text) for text in document.passages]
    texts += [distractor(words, explains) for _ in range(distractors)]
    order = words.sample(range(len(texts)), len(texts))
    place = {old: new for new, old in enumerate(order, 1)}
    answered = []
    for question, number, answer in document.answered:
        answered.append((question, place[number - 1], answer))
    shuffled = [texts[old] for old in order]
    return Document(tuple(shuffled), tuple(answered), document.unanswered)


def read_document(words: Words) -> Document:
    """Two to six passages, of which one to four hold facts."""
    count = words.choice((1, 2, 2, 3, 3, 4))
    explains = words.chance(0.12)
    made = explanations(words, min(count, 3)) if explains else facts(words, count)
    fewest = 1 if len(made.passages) < 2 else 0
    most = max(fewest, min(3, 6 - len(made.passages)))
    return retrieved(words, made, words.integer(fewest, most), explains)


def two_facts(words: Words, document: Document) -> tuple[str, str]:
    """A question for two facts, and both answers, each with its number."""
    first, second = words.sample(document.answered, 2)
    question = words.phrasing(TWO, MORE_TWO).format(one=first[0], two=second[0])
    return question, f"{cited(first[2], first[1])} {cited(second[2], second[1])}"


def answer_of(words: Words, document: Document) -> tuple[str, str, str]:
    """(task, question, answer) of one question on the document."""
    kind = words.random.choices(("one", "absent", "two"), (0.62, 0.28, 0.1))[0]
    if kind == "two" and len(document.answered) > 1:
        return ("passages:two", *two_facts(words, document))
    if kind == "absent" and document.unanswered:
        return "passages:absent", words.choice(document.unanswered), FORMAT.absent
    question, number, answer = words.choice(document.answered)
    return "passages:answer", question, cited(answer, number)


def passages_lesson(words: Words, branches: int) -> list[Dialogue]:
    """Questions on the same passages; some after a question on other passages, some asked without them again."""
    document = read_document(words)
    passages = passages_of(words, document.passages)
    head: list[JsonObject] = []
    if words.chance(0.5):
        head = [{"role": "system", "content": FORMAT.system}]
    elif words.chance(0.2):
        head = [{"role": "system", "content": words.choice(SYSTEMS)}]
    if words.chance(0.15):
        other = facts(words, 1)
        _, question, answer = answer_of(words, other)
        head += [user(FORMAT.question(passages_of(words, other.passages), question)), assistant(answer)]
    lesson = []
    for _ in range(branches):
        task, question, answer = answer_of(words, document)
        talk = [*head, user(FORMAT.question(passages, question)), assistant(answer)]
        if words.chance(0.2):
            task, question, answer = answer_of(words, document)
            talk += [user(question), assistant(answer)]
        lesson.append(Dialogue(task, tuple(talk)))
    return lesson

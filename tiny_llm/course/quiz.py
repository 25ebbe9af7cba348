"""A chapter's questions, from the one file that the book takes them from too."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiny_llm.course import CourseError, toml
from tiny_llm.course.catalog import find_root

FILE = Path("book") / "quizzes.toml"
KINDS = ("predict", "debug", "estimate")


@dataclass(frozen=True)
class Question:
    """What is asked, perhaps with options to choose from, the answer and its reason."""

    chapter: str
    kind: str
    text: str
    options: tuple[str, ...]
    answer: str
    reason: str


def read(path: Path) -> list[Question]:
    """All questions. Raises CourseError naming file and question for an entry that is not complete."""
    tables = toml.load(path)
    if "question" not in tables:
        raise CourseError(f"{path}: holds no question; expected tables that begin with [[question]]")
    return [_question(entry, f"{path}: question {number}") for number, entry in enumerate(tables["question"], 1)]


def _question(entry: dict[str, Any], where: str) -> Question:
    keys = {"chapter", "kind", "text", "answer", "reason"}
    if unlike := keys ^ (entry.keys() - {"options"}):
        raise CourseError(f"{where}: expected {', '.join(sorted(keys))}, options; wrong: {', '.join(sorted(unlike))}")
    if entry["kind"] not in KINDS:
        raise CourseError(f"{where}: kind: expected one of {', '.join(KINDS)}, found {entry['kind']!r}")
    options = tuple(entry.get("options", ()))
    if options and entry["answer"] not in options:
        raise CourseError(f"{where}: answer: expected one of the options, found {entry['answer']!r}")
    return Question(**{key: str(entry[key]).strip() for key in keys}, options=options)


def run(chapter: str, answers: bool = False) -> None:
    """Ask a chapter's questions; without a terminal, or with `answers`, print them with their answers."""
    questions = read(find_root() / FILE)
    chosen = [question for question in questions if question.chapter == chapter]
    if not chosen:
        known = ", ".join(dict.fromkeys(question.chapter for question in questions))
        raise CourseError(f"{chapter}: no questions; there are some for {known}")
    for number, question in enumerate(chosen, 1):
        print(f"{number} of {len(chosen)}, {question.kind}: {question.text}")
        for letter, option in zip("abcdefgh", question.options, strict=False):
            print(f"  {letter}) {option}")
        if not answers and sys.stdin.isatty():
            reply = input("your answer (Enter shows it): ").strip()
            print(verdict(question, reply))
        print(f"answer: {question.answer}\n{question.reason}\n")


def verdict(question: Question, reply: str) -> str:
    """What to say to a reply where options were given: the letter of one, or its text."""
    if not question.options or not reply:
        return ""
    letter = "abcdefgh"[question.options.index(question.answer)]
    return "right" if reply.lower() in (letter, question.answer.lower()) else "not so"

"""Made-up facts as passages, and questions on them, each answered by the value and its passage's number."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from tiny_llm.config.prompts import passage_format
from tiny_llm.pocket.lessons.faq import faq_entries
from tiny_llm.pocket.lessons.tools import attributes, in_other_words, kinds_of_things
from tiny_llm.pocket.lessons.words import Words, read_table

ABSENT = passage_format().absent
ATTRIBUTE_SAYS = (
    "The {a} of {{e}} is {{v}}.",
    "{{e}} has the {a} {{v}}.",
    "As {a} of {{e}} one finds {{v}}.",
    "{{v}} is the {a} of {{e}}.",
    "For {{e}} the {a} is {{v}}.",
    "{{e}} got {{v}} as its {a}.",
    "With {{e}} goes the {a} {{v}}.",
    "Everyone knows {{v}} as the {a} of {{e}}.",
    "The list gives {{v}} for the {a} of {{e}}.",
)
ATTRIBUTE_ASKS = (
    "What is the {a} of {{e}}?",
    "Which {a} does {{e}} have?",
    "Tell me the {a} of {{e}}.",
    "What do we know of the {a} of {{e}}?",
    "I want to know the {a} of {{e}}.",
    "What {a} has {{e}}?",
    "Do you know the {a} of {{e}}?",
    "Give me the {a} of {{e}}.",
    "{{e}}: what is its {a}?",
    "What does the text say on the {a} of {{e}}?",
    "And the {a} of {{e}}?",
    "Find the {a} of {{e}}.",
    "For {{e}}, which {a} is given?",
    "What is given as {a} of {{e}}?",
)
MORE_ATTRIBUTE_SAYS = (  # in training only
    "The {a} that belongs to {{e}} is {{v}}.",
    "{{v}}: this is the {a} of {{e}}.",
    "They gave {{e}} the {a} {{v}}.",
    "{{e}} is known by the {a} {{v}}.",
    "On the {a} of {{e}} the text says {{v}}.",
    "{{v}} was written down as {a} of {{e}}.",
)
MORE_ATTRIBUTE_ASKS = (
    "I need the {a} of {{e}}.",
    "Can you tell me the {a} of {{e}}?",
    "Which is the {a} of {{e}}?",
    "Name the {a} of {{e}}.",
    "What {a} was given to {{e}}?",
    "Look up the {a} of {{e}}.",
    "{{e}} has which {a}?",
    "Say the {a} of {{e}}.",
    "What {a} belongs to {{e}}?",
    "Which {a} goes with {{e}}?",
    "So the {a} of {{e}}?",
    "The {a} of {{e}}?",
    "Then what about the {a} of {{e}}?",
    "The {a} of {{e}}, please.",
)


@dataclass(frozen=True)
class Relation:
    """Something that can be said and asked of an entity; {e} is the entity, {v} the value.

    In the evaluation a question always comes in words that training never saw; the statement may be in any.
    """

    value: str
    says: Sequence[str]
    asks: Sequence[str]
    like: Sequence[str] = ()  # attributes that ask for nearly the same
    more_says: Sequence[str] = ()  # in training only
    more_asks: Sequence[str] = ()

    def sentence(self, words: Words, subject: str) -> tuple[str, str]:
        """(a sentence that says it, the value as it stands there)."""
        value = str(words.value(self.value))
        text = capitalise(words.choice(words.seen(self.says, self.more_says)).format(e=subject, v=value))
        return text, value if value in text else capitalise(value)

    def question(self, words: Words, entity: str) -> str:
        return words.opened(capitalise(words.phrasing(self.asks, self.more_asks).format(e=entity)))


@dataclass(frozen=True)
class Document:
    """Passages; the questions that they answer, as (question, passage's number, answer); some that they don't."""

    passages: tuple[str, ...]
    answered: tuple[tuple[str, int, str], ...]
    unanswered: tuple[str, ...]


def capitalise(text: str) -> str:
    return text[0].upper() + text[1:]


def cited(answer: str, number: int) -> str:
    """The answer with its passage's number: "1907 [2]."."""
    return passage_format().cited(answer, number)


@cache
def listed_relations(about: str) -> tuple[Relation, ...]:
    table: list[dict[str, Any]] = read_table("tables/relations.toml")["relation"]
    return tuple(
        Relation(r["value"], r["says"], r["asks"], r.get("like", "").split(), r["more_says"], r["more_asks"])
        for r in table
        if r["about"] == about
    )


def attribute_relation(words: Words) -> Relation:
    """A relation made of an attribute's name: a held-out word in the evaluation, a made-up one now and then."""
    attribute = words.from_split(list(attributes()))
    name = words.or_unknown(attribute, 0.3)
    says = [words.blurred(text).format(a=name) for text in words.seen(ATTRIBUTE_SAYS, MORE_ATTRIBUTE_SAYS)]
    asks = [words.blurred(text).format(a=name) for text in words.phrasings(ATTRIBUTE_ASKS, MORE_ATTRIBUTE_ASKS)]
    other = in_other_words(words, name, 0.3)
    if other:
        return Relation(attributes()[attribute], says, other.asks, tuple(sorted(other.like)))
    return Relation(attributes()[attribute], says, asks, (name,))


def relations(words: Words, about: str) -> list[Relation]:
    """Two to four that ask for different things."""
    pool: list[Relation] = []
    for listed in words.sample(listed_relations(about), words.integer(2, 4)):
        relation = attribute_relation(words) if words.chance(0.35) else listed
        if not any(set(relation.like) & set(other.like) for other in pool):
            pool.append(relation)
    return pool


def entities(words: Words, kinds: Sequence[str], count: int) -> list[str]:
    """So many different ones; often alike in name or in kind, so that both must be read."""
    names, found = words.names(count), []
    alike = words.choice(("name", "kind", "no", "no"))
    picked = words.sample(kinds, count)
    for index in range(count):
        name = names[0] if alike == "name" else names[index]
        kind = picked[0] if alike == "kind" else picked[index % len(picked)]
        found.append(f"the {name} {kind}" if words.chance(0.7) or alike == "name" else f"the {kind} {name}")
    return list(dict.fromkeys(found))


def facts(words: Words, count: int) -> Document:
    """Passages on so many entities that share their relations, each of one to three sentences."""
    about = words.choice(("place", "engine"))
    subjects = entities(words, kinds_of_things("engines" if about == "engine" else "kinds"), count + 1)
    pool = relations(words, about)
    passages, answered, missing = [], [], []
    for number, entity in enumerate(subjects[:-1] or subjects, 1):
        stated = words.sample(pool, words.choice((1, 2, 2, 3)))
        lines = []
        for place, relation in enumerate(stated):
            line, value = relation.sentence(words, "it" if place and words.chance(0.4) else entity)
            lines.append(line)
            answered.append((relation.question(words, entity), number, value))
        passages.append(" ".join(lines))
        missing += [relation.question(words, entity) for relation in pool if relation not in stated]
    stranger = words.choice(subjects[-1:] + entities(words, kinds_of_things(), 1))
    missing += [
        relation.question(words, stranger) for relation in pool if stranger not in subjects[:-1] or not subjects[1:]
    ]
    return Document(tuple(passages), tuple(answered), tuple(missing))


def sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.!?]) (?=[A-Z])", text)


def explanations(words: Words, count: int) -> Document:
    """Passages out of this project's own answers on inference."""
    known = [entry for entry in faq_entries() if entry.topics]
    entries = words.sample(known, count + 2)
    passages = tuple(entry.answer for entry in entries[:count])
    answered = [(entry.question(words), n, sentences(entry.answer)[0]) for n, entry in enumerate(entries[:count], 1)]
    return Document(passages, tuple(answered), tuple(entry.question(words) for entry in entries[count:]))

"""Questions on LLM inference and small talk: each is asked in many ways and has one answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from tiny_llm.pocket.lessons.words import THINGS, Words, read_table

SIZE = "4.7 million"  # what the model says of its parameters; a test compares it with the recipe
FILES = ("basics", "attention", "cache", "serving", "decoding", "quantize", "hardware", "apps", "project", "talk")
TOPIC_ASKS = (
    "What is {t}?",
    "Explain {t}.",
    "What does {t} mean?",
    "Tell me about {t}.",
    "Can you explain {t}?",
    "What do you know about {t}?",
    "Define {t}.",
    "How would you describe {t}?",
    "I do not understand {t}.",
    "In short, what is {t}?",
    "{t}?",
    "What is meant by {t}?",
    "Describe {t}.",
    "What about {t}?",
    "Why {t}?",
    "What is {t} good for?",
    "How does {t} work?",
    "Help me understand {t}.",
    "I have a question about {t}.",
    "What should I know about {t}?",
    "Give me a short explanation of {t}.",
    "What is the idea of {t}?",
    "Teach me about {t}.",
    "Do you know {t}?",
)
OPENERS = ("", "", "", "", "Please tell me: ", "A question: ", "Hello. ", "Quick question: ", "I would like to know: ")
UNKNOWN_ASKS = (
    "Who wrote {n}?",
    "What is the capital of {n}?",
    "Write a poem about a {w}.",
    "Tell me a story about the {w} and the {w2}.",
    "Who won the {w} cup?",
    "How do I repair a {w}?",
    "What does a {w} eat?",
    "Why is the {w} {q}?",
    "How old is {n}?",
    "Where does {n} live?",
    "What is the best {w}?",
    "Can you draw a {w}?",
    "Sing a song about {n}.",
    "How many people live in {n}?",
    "What happened in {n} yesterday?",
    "Which {w} should I buy?",
    "Is a {w} heavier than a {w2}?",
    "Who is {n}?",
    "Do you like {n}?",
    "Translate {w} into French.",
    "What do you think of {n}?",
    "How far is {n}?",
    "When was {n} born?",
    "Plan a trip to {n}.",
    "What is the weather in {n}?",
)
MORE_UNKNOWN_ASKS = (  # in training only
    "Who was {n}?",
    "Who invented the {w}?",
    "Who is the president of {n}?",
    "Where is {n}?",
    "Which language do they speak in {n}?",
    "What is the population of {n}?",
    "What is the history of {n}?",
    "How do I get from {n} to the {w}?",
    "How much does a {w} cost?",
    "How do you make a {w}?",
    "How do I cook {w} with {w2}?",
    "Give me a recipe for {w}.",
    "Write a song about the {q} {w}.",
    "Write a letter to {n}.",
    "Write a short story about {n}.",
    "Invent a name for my {w}.",
    "What is a {w} made of?",
    "What colour is a {w}?",
    "Can a {w} fly?",
    "Why do people like the {w}?",
    "Should I buy a {w} or a {w2}?",
    "What is better, a {w} or a {w2}?",
    "What is the difference between a {w} and a {w2}?",
    "Is the {w} {q}?",
    "What did {n} say?",
    "What is the news from {n}?",
    "When does the {w} open?",
    "Summarize the book {n}.",
    "Tell me something about {n}.",
    "Tell me more about the {w}.",
    "Give me advice on my {w}.",
    "My {w} is {q}. What can I do?",
    "What does {n} mean?",
    "Explain the {w} to a child.",
    "How tall is {n}?",
    "What is the meaning of life?",
    "How many {w}s are there?",
    "Name five {w}s.",
    "What time is it in {n}?",
    "Is {n} a good place for a {w}?",
)
UNKNOWN = (
    "I do not know that: I am a very small model and know little beside LLM inference. "
    "A larger one may: tiny-llm chat --model qwen3-0.6b."
)


@dataclass(frozen=True)
class FaqEntry:
    """One answer and the questions that ask for it; `topics` add the phrasings that fit any topic."""

    answer: str
    asks: Sequence[str]
    topics: Sequence[str] = ()
    more: Sequence[str] = ()  # further questions, for training only

    def question(self, words: Words) -> str:
        """A phrasing of this split, dressed up a little."""
        if self.topics and words.chance(0.5):
            text = words.phrasing(TOPIC_ASKS).format(t=words.choice(self.topics))
            text = text[0].upper() + text[1:]
        else:
            text = words.phrasing(self.asks, self.more)
        text = words.choice(OPENERS) + text
        if words.chance(0.15):
            text = text.rstrip("?.!")
        return text.lower() if words.chance(0.1) else text


@cache
def faq_entries() -> tuple[FaqEntry, ...]:
    """Every entry of faq/*.toml.

    Raises ValueError for an entry with fewer than four questions or an answer of more than three sentences.
    """
    entries = []
    for file in FILES:
        for row in read_table(f"faq/{file}.toml")["entry"]:
            topics = (*([row["topic"]] if "topic" in row else []), *row.get("also", []))
            entry = FaqEntry(row["answer"].replace("{size}", SIZE), tuple(row["asks"]), topics, row.get("more", ()))
            if len(entry.asks) < 4:
                raise ValueError(f"faq/{file}.toml: {entry.answer!r} has {len(entry.asks)} questions: write at least 4")
            entries.append(entry)
    return tuple(entries)


def unknown(words: Words) -> tuple[str, str]:
    """A question that a model of this size can't know, and what it says then."""
    first, second = words.sample(THINGS, 2)
    text = words.phrasing(UNKNOWN_ASKS, MORE_UNKNOWN_ASKS)
    return text.format(n=words.name(), w=first, w2=second, q=words.value("of:old,red,cold,loud,slow")), UNKNOWN


def question_and_answer(words: Words) -> tuple[str, str]:
    """One entry's, or now and then a question that has no answer here."""
    if words.chance(0.08):
        return unknown(words)
    entry = words.choice(faq_entries())
    return entry.question(words), entry.answer

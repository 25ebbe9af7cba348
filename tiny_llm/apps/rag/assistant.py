"""Answer questions from an index, one alone or in a conversation, with checked citations."""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, cast

from tiny_llm.apps.rag.forms import form_for, most_tokens
from tiny_llm.apps.rag.retriever import Findings, Hit, Retriever
from tiny_llm.apps.rag.steps import Citation, check_citations, pack
from tiny_llm.apps.rag.words import content_words
from tiny_llm.config.fields import is_integer, require, shown
from tiny_llm.decode.text import Delta
from tiny_llm.engine.llm import LLM

POINTS_BACK = frozenset("it its they them their this that these those he she his her him there then one ones".split())
OPENS = re.compile(r"\s*(and|but|so|or|what about|how about|why)\b", re.IGNORECASE)
REWRITE = (
    "Write the last question of this conversation so that it can be understood without the conversation. "
    "Reply with the question alone.\n\n{history}\nQuestion: {question}"
)
MESSAGE_TOKENS = 64  # room for what a chat template adds


@dataclass(frozen=True)
class AnswerSettings:
    """At most so many `passages`, of `budget` tokens together; an answer of `answer_tokens`.

    `least_coverage`: where no passage has this share of the question's words, weighted by idf, the answer is that the
    documents do not say, without asking the model; `tiny-llm rag eval` shows what each value costs.
    """

    passages: int = 4
    budget: int = 1200
    answer_tokens: int = 200
    least_coverage: float = 0.45

    def __post_init__(self) -> None:
        check_number("passages", self.passages, 1, 99)
        check_number("budget", self.budget, 16, 10**6)
        check_number("answer_tokens", self.answer_tokens, 1, 10**6)
        share = self.least_coverage
        require(0 <= share <= 1, f"least_coverage: expected a number from 0 to 1, found {shown(share)}")


def check_number(name: str, value: object, low: int, high: int) -> None:
    """Raise ValueError unless the value is a whole number in the range."""
    ok = is_integer(value) and low <= cast(int, value) <= high
    require(ok, f"{name}: expected a number from {low} to {high:,}, found {shown(value)}")


class RagAnswer(NamedTuple):
    """An answer from documents. `hits`: its numbered passages, from 1. `weak`: too little was found to ask the model.

    `refused`: the answer says that the documents do not hold it. `query`: what was searched. Tokens are those of the
    prompt, and of it those that the prefix cache had.
    """

    text: str
    hits: list[Hit]
    citations: list[Citation]
    refused: bool
    weak: bool
    query: str
    coverage: float
    seconds: dict[str, float]
    prompt_tokens: int = 0
    cached_tokens: int = 0


@dataclass
class Assistant:
    """A conversation on documents. `messages` are what the model has been told, `shown` the passages numbered last."""

    retriever: Retriever
    llm: LLM
    settings: AnswerSettings = field(default_factory=AnswerSettings)
    messages: list[dict[str, str]] = field(default_factory=list)
    shown: list[Hit] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.form = form_for(self.llm.name)

    def clear(self) -> None:
        """Forget the conversation."""
        self.messages, self.shown, self.questions = [], [], []

    def ask(self, question: str, on_text: Callable[[str], None] | None = None) -> RagAnswer:
        """Answer a question, which may point back to earlier ones. `on_text` gets the answer's pieces as they come.

        Where all passages found were shown before, the question alone is added to the conversation, so that the prefix
        cache has the rest. Raises ValueError for a question without text, and a budget into which no passage fits.
        """
        require(isinstance(question, str) and question.strip() != "", "question: expected a text, found none")
        begin = time.perf_counter()
        query = self._standalone(question)
        rewriting = time.perf_counter() - begin
        findings = self.retriever.find(query, self.settings.passages)
        findings.seconds = {"rewrite": rewriting} | findings.seconds
        if not findings.hits or findings.coverage < self.settings.least_coverage:
            if on_text is not None:
                on_text(self.form.absent)
            return self._answer(self.form.absent, findings, [], weak=True)
        with findings.timed("pack"):
            messages = self._messages(question, findings.hits)
        text = self._generate(messages, findings, on_text)
        self.messages = [*messages, {"role": "assistant", "content": text}]
        self.questions.append(query)
        return self._answer(text, findings, self.shown, weak=False)

    def _answer(self, text: str, findings: Findings, hits: Sequence[Hit], weak: bool) -> RagAnswer:
        """Check an answer's citations."""
        with findings.timed("check"):
            citations = check_citations(text, [f"{hit.chunk.title} {hit.chunk.text}" for hit in hits])
        refused = weak or is_refusal(text, self.form.absent)
        stats = None if weak else self.llm.last_stats
        prompt_tokens = 0 if stats is None else stats.prompt_tokens
        cached_tokens = 0 if stats is None else stats.cached_tokens
        return RagAnswer(
            text,
            list(hits),
            citations,
            refused,
            weak,
            findings.query,
            findings.coverage,
            findings.seconds,
            prompt_tokens,
            cached_tokens,
        )

    def _generate(
        self, messages: list[dict[str, str]], findings: Findings, on_text: Callable[[str], None] | None
    ) -> str:
        """Return the model's greedy answer. The time to its first piece is a stage of its own."""
        template = {"enable_thinking": False}
        stream = self.llm.stream(messages, template=template, temperature=0.0, max_tokens=self.settings.answer_tokens)
        pieces: list[str] = []

        def take(delta: Delta | None) -> None:
            if delta is not None and delta.text:
                pieces.append(delta.text)
                if on_text is not None:
                    on_text(delta.text)

        with findings.timed("first_token"):
            take(next(stream, None))
        with findings.timed("answer"):
            for delta in stream:
                take(delta)
        return "".join(pieces).strip()

    def _messages(self, question: str, hits: Sequence[Hit]) -> list[dict[str, str]]:
        """Return the conversation with the question; earlier turns are dropped where the context has no room."""
        packed = self._packed(question, hits)
        known = {hit.chunk.id for hit in self.shown}
        repeated = bool(self.messages) and {hit.chunk.id for hit in packed} <= known
        turn = {"role": "user", "content": self.form.question([hit.chunk.passage for hit in packed], question)}
        plain = {"role": "user", "content": question}
        messages = [*self.messages, plain if repeated else turn]
        room = min(self.llm.max_context, most_tokens(self.llm.name)) - self.settings.answer_tokens
        if not self.messages or self._count(messages) > room:
            repeated = False
            messages = [{"role": "system", "content": self.form.system}, turn]
        if not repeated:
            self.shown = packed
        return messages

    def _packed(self, question: str, hits: Sequence[Hit]) -> list[Hit]:
        """Choose the hits that fit into the budget of tokens, in the order of the documents."""
        lines = [self.form.line(number, hit.chunk.passage) for number, hit in enumerate(hits, 1)]
        costs = [len(self.llm.tokenizer.encode(line)) + 1 for line in lines]
        fixed = len(self.llm.tokenizer.encode(f"{self.form.system}\n{question}")) + MESSAGE_TOKENS
        budget = min(self.settings.budget, self.llm.max_context - self.settings.answer_tokens - fixed)
        chosen = pack(costs, budget, self.settings.passages, [hit.place for hit in hits])
        if not chosen:
            raise ValueError(
                f"budget: expected room for a passage, found {max(budget, 0)} tokens, and the shortest passage has "
                f"{min(costs)}; raise --budget, lower --answer-tokens, or add the "
                "documents with a smaller --chunk-tokens"
            )
        return [hits[number] for number in chosen]

    def _count(self, messages: list[dict[str, str]]) -> int:
        return len(self.llm.encode(messages, {"enable_thinking": False}))

    def _standalone(self, question: str) -> str:
        """Return what to search for: a question that points back gets the words of the question before it."""
        if not self.questions or not points_back(question):
            return question
        if self.llm.name == "pocket":
            return joined(self.questions[-1], question)
        history = "\n".join(f"Question: {earlier}" for earlier in self.questions[-3:])
        prompt = [{"role": "user", "content": REWRITE.format(history=history, question=question)}]
        completion = self.llm.generate(prompt, template={"enable_thinking": False}, temperature=0.0, max_tokens=64)
        assert not isinstance(completion, list)
        # a small model may write anything: the question's own words stay in the query
        return joined(question, completion.text.strip())


def points_back(question: str) -> bool:
    """Return whether a question needs the one before it: by a pronoun, an opening such as "and", or too few words."""
    words = question.lower().replace("?", " ").replace(",", " ").split()
    if OPENS.match(question) or POINTS_BACK.intersection(words):
        return True
    return len(content_words(question)) < 2


def joined(first: str, second: str) -> str:
    return " ".join(f"{first} {second}".split())


def is_refusal(text: str, absent: str) -> bool:
    """Return whether an answer is, or begins with, the sentence that the documents do not hold it."""
    return text.strip().rstrip(".").lower().startswith(absent.rstrip(".").lower())


def answer(retriever: Retriever, llm: LLM, question: str, settings: AnswerSettings | None = None) -> RagAnswer:
    """Answer a single question from the documents, for callers without a conversation. Raises as `Assistant.ask`."""
    return Assistant(retriever, llm, settings or AnswerSettings()).ask(question)

"""Bound a thought: when its tokens are used up, the text that closes it is forced, and the answer goes on behind it."""

import re
from collections.abc import Sequence
from typing import NamedTuple, cast

import mlx.core as mx

from tiny_llm.decode.sampler import Sampled, Sampler
from tiny_llm.decode.thought import CLOSE, OPEN, Place, Thought
from tiny_llm.model.tokenizer import Tokenizer

SHOWN = [
    {"role": "user", "content": "question"},
    {"role": "assistant", "content": "answer", "reasoning_content": "thought"},
]


class ThoughtEnd(NamedTuple):
    """The tokens of `</think>` with the line breaks of a chat template: those that close a thought, and an empty one.

    An empty thought, which has only its opening tag, needs the line break behind that tag, too.
    """

    closing: tuple[int, ...]
    closing_empty: tuple[int, ...]


def end_of_thought(tokenizer: Tokenizer) -> ThoughtEnd:
    """Return how the model's chat template ends a thought; as Qwen3's does where the template shows none."""
    try:
        text = str(tokenizer.render(SHOWN, add_generation_prompt=False))
    except ValueError:  # there is no template, or it takes no such messages
        text = ""
    found = re.search(rf"{OPEN}(\s*)thought(\s*{CLOSE}\s*)answer", text)
    opening, closing = found.groups() if found else ("\n", f"\n{CLOSE}\n\n")
    return ThoughtEnd(tuple(tokenizer.encode(closing)), tuple(tokenizer.encode(opening + closing)))


class ThinkingBudget:
    """Counts the tokens of one answer's thought, without its tags.

    `forced` is the token that must come next: None as long as the thought is within its budget, and when it has ended.
    `ending` has the tokens that close a thought. `in_thought`: the prompt has opened it.
    """

    def __init__(self, tokenizer: Tokenizer, budget: int, ending: ThoughtEnd, in_thought: bool):
        self.budget, self.ending, self.in_thought = budget, ending, in_thought
        self._thought = Thought(in_thought)
        self._detokenizer = tokenizer.detokenizer(keep_special=True)
        self._count = 0
        self._forced: list[int] = []
        self._check()

    @property
    def forced(self) -> int | None:
        return self._forced[0] if self._forced else None

    @property
    def ended(self) -> bool:
        """Whether no token of the answer will be forced any more."""
        return self._thought.place is Place.ANSWER and not self._forced

    def may_force_after(self, tokens: int) -> bool:
        """Return whether a token may be forced behind so many more tokens, whatever these are."""
        return not self.ended and (bool(self._forced) or self._count + tokens >= self.budget)

    def follow(self, token: int) -> None:
        """Count the answer's next token.

        Another token than the forced one comes where a grammar forbids that one: in the middle of a character, say. The
        thought then goes on until the ending is allowed.
        """
        if self._forced and token == self._forced[0]:
            self._forced = self._forced[1:]
            return
        if self._forced:
            self._forced = []
            self._thought.place = Place.THOUGHT
        if self._thought.place is Place.ANSWER:
            return
        was_inside = self._thought.place is Place.THOUGHT
        self._thought.split(self._detokenizer.add(token))
        self._count += was_inside
        self._check()

    def _check(self) -> None:
        """Begin to force the ending, once the budget is used up."""
        if self._thought.place is Place.THOUGHT and self._count >= self.budget:
            self._thought.place = Place.ANSWER
            is_bare = self._count == 0 and not self.in_thought
            self._forced = list(self.ending.closing_empty if is_bare else self.ending.closing)


class BudgetedSampler:
    """A sampler of one sequence that keeps to a budget. Until the budget is used up no token is read."""

    def __init__(self, sampler: Sampler, budget: ThinkingBudget):
        self._sampler, self._budget = sampler, budget
        self._unread: list[mx.array] = []

    def __call__(self, logits: mx.array, positions: Sequence[int]) -> Sampled:
        """Sample from logits (1, V), or choose the forced token."""
        if self._budget.may_force_after(len(self._unread)):
            for tokens in self._unread:
                self._budget.follow(cast(int, tokens.item()))
            self._unread = []
        if self._budget.forced is not None:
            logits = only(logits, self._budget.forced)
        sampled = self._sampler(logits, positions)
        if not self._budget.ended:
            self._unread.append(sampled.tokens)
        return sampled


def only(logits: mx.array, token: int) -> mx.array:
    """Set all logits but one token's to minus infinity. logits (R, V)."""
    return mx.where(mx.arange(logits.shape[-1]) == token, logits, -mx.inf)

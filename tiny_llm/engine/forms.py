"""Say which tokens may come next in an answer that has a grammar, or a budget for its thought."""

from collections.abc import Sequence as Row
from contextlib import suppress
from copy import copy, deepcopy
from functools import cached_property
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from tiny_llm.config import Structured
from tiny_llm.decode.structured import Bits, Grammars, mask_logits
from tiny_llm.decode.thinking_budget import ThinkingBudget, ThoughtEnd, end_of_thought
from tiny_llm.decode.thought import Place, Thought
from tiny_llm.engine.request import Admission, SequenceId


class Fault(NamedTuple):
    """A request that can't go on, and the error with which it ends. Other requests go on."""

    request: str
    error: Exception


class Path(NamedTuple):
    """A row of logits: the drafted tokens behind the sequence's own, and the position of the token after them."""

    sequence: SequenceId
    tokens: tuple[int, ...]
    position: int


class Form:
    """The rules of one answer: its grammar and the budget of its thought, at least one of them.

    Where the prompt has opened a thought, the grammar starts behind it.
    """

    def __init__(self, grammars: Grammars, matcher: Any | None, in_thought: bool, budget: ThinkingBudget | None = None):
        self.grammars, self.matcher, self.budget = grammars, matcher, budget
        self.in_thought = in_thought
        self._thought = Thought(in_thought)
        self._detokenizer = None
        if in_thought and matcher is not None:
            self._detokenizer = grammars.tokenizer.detokenizer(keep_special=True)

    def bits(self) -> Bits:
        """Set a bit for each token that may come next. → (ceil(V / 32),). Raises ValueError where no token may."""
        bits = self._grammar_bits()
        forced = None if self.budget is None else self.budget.forced
        if forced is not None:
            only = self.grammars.only(forced)
            if self._skips_grammar or (only & bits).any():
                return only
        return bits

    def _grammar_bits(self) -> Bits:
        """Set a bit for each token that the grammar allows next."""
        if self.matcher is None:
            return np.full_like(self.grammars.anything_but_an_end, -1)
        if self._detokenizer is not None:
            return self.grammars.anything_but_an_end
        bits: Bits = self.grammars.bits([self.matcher])[0]
        if not bits.any():
            raise ValueError(_dead_end(_reason(self.matcher) or "no token may follow"))
        return bits

    @property
    def _skips_grammar(self) -> bool:
        """Whether a forced token stands before the text of the grammar."""
        return self.in_thought or self.matcher is None

    def may_restrict_after(self, tokens: int) -> bool:
        """Return whether some token may be forbidden behind so many more tokens, whatever these are."""
        return self.matcher is not None or (self.budget is not None and self.budget.may_force_after(tokens))

    def behind(self, tokens: Row[int]) -> "Form":
        """Return a copy that has followed these tokens. Raises ValueError where the grammar does not allow them."""
        other = copy(self)
        if self.matcher is not None:
            other.matcher = self.matcher.deep_copy()
        other.budget, other._thought, other._detokenizer = deepcopy((self.budget, self._thought, self._detokenizer))
        for token in tokens:
            other.follow(token)
        return other

    def follow(self, token: int) -> None:
        """Advance by the token that was chosen. Raises ValueError where the grammar does not allow it."""
        is_forced = self.budget is not None and self.budget.forced == token
        if self.budget is not None:
            self.budget.follow(token)
        if self._detokenizer is not None:
            self._thought.split(self._detokenizer.add(token))
            if self._thought.place is Place.ANSWER:
                self._detokenizer = None
        elif self.matcher is None or (is_forced and self._skips_grammar):
            return
        elif not self.matcher.consume_token(token):
            raise ValueError(_dead_end(_reason(self.matcher)))


class Forms:
    """The rules of the unfinished sequences that have any. `faults`: requests that can't go on; the loop ends them."""

    def __init__(self, grammars: Grammars):
        self.grammars = grammars
        self.faults: list[Fault] = []
        self.rules: dict[SequenceId, Form] = {}

    @cached_property
    def _ending(self) -> ThoughtEnd:
        """The tokens that close a thought."""
        return end_of_thought(self.grammars.tokenizer)

    def may_restrict_after(self, sequence: SequenceId, tokens: int) -> bool:
        """Return whether some token may be forbidden behind so many more tokens of a sequence."""
        return sequence in self.rules and self.rules[sequence].may_restrict_after(tokens)

    def check(self, wanted: Structured) -> None:
        """Raise ValueError, with the reason, for a grammar that can't be compiled. Any thread may call it."""
        self.grammars.matcher(wanted)

    def admit(self, admission: Admission) -> None:
        """Register the rules of a sequence, and advance them by the tokens of its answer so far."""
        wanted, most = admission.params.structured, admission.params.thinking_budget
        in_thought = admission.in_thought
        try:
            matcher = None if wanted is None else self.grammars.matcher(wanted)
            budget = None
            if most is not None:
                budget = ThinkingBudget(self.grammars.tokenizer, most, self._ending, in_thought)
            form = Form(self.grammars, matcher, in_thought, budget)
            for token in admission.tokens[admission.num_prompt :]:
                form.follow(token)
        except Exception as error:
            self.faults.append(Fault(admission.sequence.request, error))
        else:
            self.rules[admission.sequence] = form

    def mask(self, logits: mx.array, paths: Row[Path], state: Row[mx.array]) -> mx.array:
        """Set to minus infinity the logits that a sequence's rules forbid behind a path. logits (R, V).

        `state` are the pool's buffers: the device computes them and the logits while the host computes the masks.
        """
        rows = [row for row, path in enumerate(paths) if self.may_restrict_after(path.sequence, len(path.tokens))]
        if not rows:
            return logits
        mx.async_eval(logits, *state)  # type: ignore[no-untyped-call]
        bits = mx.array(np.stack([self._bits(paths[row]) for row in rows]))
        if len(rows) == len(paths):
            return mask_logits(logits, bits)
        index = mx.array(rows)
        logits[index] = mask_logits(logits[index], bits)
        return logits

    def follow(self, sequence: SequenceId, token: int) -> None:
        """Advance a sequence's rules by its new token. An error becomes a fault of the sequence's request."""
        try:
            self.rules[sequence].follow(token)
        except Exception as error:
            self.faults.append(Fault(sequence.request, error))

    def _bits(self, path: Path) -> Bits:
        """Return the mask behind a path. An error becomes a fault of the request, and the mask then allows all tokens.

        Behind a drafted token that the grammar forbids nothing is read, so that the mask may allow all, too.
        """
        form = self.rules[path.sequence]
        try:
            if not path.tokens:
                return form.bits()
            with suppress(ValueError):
                return form.behind(path.tokens).bits()
        except Exception as error:
            self.faults.append(Fault(path.sequence.request, error))
        return np.full_like(self.grammars.anything_but_an_end, -1)


def _dead_end(reason: str) -> str:
    return (
        f"structured: can't go on: {reason}; change the schema, expression or grammar so that every text it begins "
        "can be completed"
    )


def _reason(matcher: Any) -> str:
    """Return llguidance's error message in one line, "" where it has none."""
    reason: str = matcher.get_error().partition("\n")[0]
    return reason

"""The forms that running answers must have: which tokens may come next, and what follows from the token that came."""

from collections.abc import Sequence as Row
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from tiny_llm.decode.structured import Bits, Grammars, mask_logits
from tiny_llm.decode.thought import Place, Thought
from tiny_llm.engine.request import Request, SequenceId
from tiny_llm.engine.step import Admission


class Fault(NamedTuple):
    """A request that can't go on, and why; no other is concerned."""

    request: str
    error: Exception


class Form:
    """One answer's form. It binds behind the thought, where the prompt has opened one."""

    def __init__(self, matcher: Any, grammars: Grammars, in_thought: bool):
        self.matcher, self.grammars = matcher, grammars
        self._thought = Thought(in_thought)
        self._detokenizer = grammars.tokenizer.detokenizer(keep_special=True) if in_thought else None

    def bits(self) -> Bits:
        """A bit for each token that may come next, (ceil(V / 32),). Raises ValueError where none may."""
        if self._detokenizer is not None:
            return self.grammars.anything_but_an_end
        bits: Bits = self.grammars.bits([self.matcher])[0]
        if not bits.any():
            raise ValueError(_dead_end(_reason(self.matcher) or "no token may follow"))
        return bits

    def follow(self, token: int) -> None:
        """Take in the token that came. Raises ValueError where the form does not allow it."""
        if self._detokenizer is not None:
            self._thought.split(self._detokenizer.add(token))
            if self._thought.place is Place.ANSWER:
                self._detokenizer = None
        elif not self.matcher.consume_token(token):
            raise ValueError(_dead_end(_reason(self.matcher)))


class Forms:
    """The forms of the sequences under way. `faults`: requests whose form can't go on, for the loop to end."""

    def __init__(self, grammars: Grammars):
        self.grammars = grammars
        self.faults: list[Fault] = []
        self._forms: dict[SequenceId, Form] = {}

    def __len__(self) -> int:
        return len(self._forms)

    def __contains__(self, sequence: SequenceId) -> bool:
        return sequence in self._forms

    def check(self, request: Request) -> None:
        """Raise ValueError, with the reason, for a form that is none. Any thread may call it."""
        if request.params.structured is not None:
            self.grammars.matcher(request.params.structured)

    def admit(self, admission: Admission) -> None:
        """Take in a sequence, if it has a form, with the tokens of its answer so far."""
        wanted = admission.params.structured
        if wanted is None:
            return
        try:
            form = Form(self.grammars.matcher(wanted), self.grammars, admission.in_thought)
            for token in admission.tokens[admission.num_prompt :]:
                form.follow(token)
        except Exception as error:
            self.faults.append(Fault(admission.sequence.request, error))
        else:
            self._forms[admission.sequence] = form

    def forget(self, sequence: SequenceId) -> None:
        """Drop a sequence that has ended."""
        self._forms.pop(sequence, None)

    def mask(self, logits: mx.array, sequences: Row[SequenceId], state: Row[mx.array]) -> mx.array:
        """Minus infinity for the tokens that a sequence's form does not allow. logits (R, V), one row a sequence.

        `state` are the pool's buffers: the device computes them and the logits while the host asks the grammars.
        """
        rows = [row for row, sequence in enumerate(sequences) if sequence in self._forms]
        if not rows:
            return logits
        mx.async_eval(logits, *state)  # type: ignore[no-untyped-call]
        bits = mx.array(np.stack([self._bits(sequences[row]) for row in rows]))
        if len(rows) == len(sequences):
            return mask_logits(logits, bits)
        index = mx.array(rows)
        logits[index] = mask_logits(logits[index], bits)
        return logits

    def follow(self, sequence: SequenceId, token: int) -> None:
        """Take in the token that a sequence was given."""
        if sequence in self._forms:
            try:
                self._forms[sequence].follow(token)
            except Exception as error:
                self.faults.append(Fault(sequence.request, error))

    def _bits(self, sequence: SequenceId) -> Bits:
        """The sequence's bits; those of any token where its form is at fault, which ends its request and no other."""
        try:
            return self._forms[sequence].bits()
        except Exception as error:
            self.faults.append(Fault(sequence.request, error))
            return np.full_like(self.grammars.anything_but_an_end, -1)


def _dead_end(reason: str) -> str:
    return (
        f"structured: can't go on: {reason}; change the schema, expression or grammar so that every text it begins "
        "can be completed"
    )


def _reason(matcher: Any) -> str:
    """llguidance's reason in one line, "" where it has none."""
    reason: str = matcher.get_error().partition("\n")[0]
    return reason

"""Beam search beside other requests: the beams are sequences that share blocks, and go on together."""

from collections.abc import Iterator, Mapping

from tiny_llm.decode.beam import Logprobs, Search, deltas_of_beams
from tiny_llm.decode.generate import Delta
from tiny_llm.engine.lifecycle import Step
from tiny_llm.engine.request import Request, Sequence, State
from tiny_llm.engine.scheduler import Scheduler
from tiny_llm.model.tokenizer import Tokenizer


class Beams:
    """The searches under way. A beam whose log-probabilities are there waits until those of the others are."""

    def __init__(self, scheduler: Scheduler):
        self.scheduler = scheduler
        self._searches: dict[str, Search] = {}
        self._rows: dict[Sequence, Logprobs] = {}

    def add(self, request: Request) -> None:
        params = request.params
        self._searches[request.id] = Search(
            params.beam_width, params.max_tokens, request.stop_tokens, params.length_penalty
        )

    def __len__(self) -> int:
        return len(self._searches)

    def forget(self, request_id: str) -> None:
        self._searches.pop(request_id, None)
        self._rows = {s: row for s, row in self._rows.items() if s.request.id != request_id}

    def advance(self, step: Step, rows: Mapping[int, Logprobs], now: float) -> list[tuple[Sequence, Search]]:
        """Take in log-probabilities, by the number of the entry in its step; the searches that have ended by them."""
        touched = dict[str, None]()
        for place, row in rows.items():
            sequence = step.entries[place].sequence
            if sequence.state is State.RUNNING and sequence.request.id in self._searches:
                self._rows[sequence] = row
                touched[sequence.request.id] = None
        ended = [self._advance(name, now) for name in touched]
        return [found for found in ended if found]

    def _advance(self, name: str, now: float) -> tuple[Sequence, Search] | None:
        search, group = self._searches[name], list(self.scheduler.requests[name])
        live = group[: len(search.live)]
        if any(sequence.remaining for sequence in live):
            return None
        parents = search.advance([self._rows.pop(sequence) for sequence in live])
        if parents:
            chosen = [(live[p], beam.tokens[-1]) for p, beam in zip(parents, search.live, strict=True)]
            self.scheduler.branch(name, chosen, now)
            return None
        self.forget(name)
        for sequence in group:
            self.scheduler.stop(sequence, "stop" if search.best[0].finished else "length", now)
        return group[0], search


def texts_of(sequence: Sequence, search: Search, tokenizer: Tokenizer) -> Iterator[Delta]:
    """What the request of an ended search gets: its n best beams."""
    return deltas_of_beams(search.best[: sequence.request.params.n], tokenizer)

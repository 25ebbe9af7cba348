"""Beam search beside other requests: the beams are sequences that share blocks, and go on together."""

from collections.abc import Iterator
from collections.abc import Sequence as Row

from tiny_llm.decode.beam import Logprobs, Search, deltas_of_beams
from tiny_llm.decode.generate import Delta
from tiny_llm.engine.request import Request, Sequence, SequenceId
from tiny_llm.engine.scheduler import Scheduler
from tiny_llm.engine.step import Result, Step
from tiny_llm.model.tokenizer import Tokenizer


class Beams:
    """The searches under way. A beam whose log-probabilities are there waits until those of the others are."""

    def __init__(self, scheduler: Scheduler):
        self.scheduler = scheduler
        self._searches: dict[str, Search] = {}
        self._rows: dict[SequenceId, Logprobs] = {}

    def add(self, request: Request) -> None:
        params = request.params
        self._searches[request.id] = Search(
            params.beam_width, params.max_tokens, request.stop_tokens, params.length_penalty
        )

    def __len__(self) -> int:
        return len(self._searches)

    def forget(self, request_id: str) -> None:
        self._searches.pop(request_id, None)
        self._rows = {sequence: row for sequence, row in self._rows.items() if sequence.request != request_id}

    def advance(self, step: Step, results: Row[Result], now: float) -> list[tuple[Sequence, Search]]:
        """Take in the log-probabilities of a step; returns the searches that have ended by them."""
        touched = dict[str, None]()
        for share, result in zip(step.shares, results, strict=True):
            name = share.sequence.request
            running = self.scheduler.sequences.find(share.sequence) is not None
            if result.row is not None and running and name in self._searches:
                self._rows[share.sequence] = result.row
                touched[name] = None
        ended = [self._advance(name, now) for name in touched]
        return [found for found in ended if found]

    def _advance(self, name: str, now: float) -> tuple[Sequence, Search] | None:
        search, group = self._searches[name], list(self.scheduler.sequences.requests[name])
        live = group[: len(search.live)]
        if any(sequence.remaining for sequence in live):
            return None
        parents = search.advance([self._rows.pop(sequence.id) for sequence in live])
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

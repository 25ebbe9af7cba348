"""A runner without arrays: blocks hold (position, token) pairs, and a next token is a function of all tokens before."""

from collections.abc import Sequence

import numpy as np

from tiny_llm.decode.beam import Beam, Logprobs, Search
from tiny_llm.engine import request as engine_request
from tiny_llm.engine.blocks import BlockPool
from tiny_llm.engine.choosers import Beams
from tiny_llm.engine.request import Request, Result, SequenceId, Share, Step
from tiny_llm.engine.scheduler import Scheduler

VOCAB = 50
Ended = tuple[engine_request.Sequence, Search]


def next_token(tokens: Sequence[int], sample: int) -> int:
    """What this model says after `tokens`, as the sample-th continuation."""
    return hash((tuple(tokens), sample)) % VOCAB


def solo(prompt: Sequence[int], num_tokens: int, sample: int = 0, stops: frozenset[int] = frozenset()) -> list[int]:
    """The oracle: a request by itself."""
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens.append(next_token(tokens, sample))
        if tokens[-1] in stops:
            break
    return tokens[len(prompt) :]


def next_row(tokens: Sequence[int]) -> Logprobs:
    """Log-probabilities (VOCAB,) of the token after these."""
    logits = np.random.default_rng(hash(tuple(tokens)) % 2**32).normal(size=VOCAB)
    return (logits - np.log(np.exp(logits).sum())).astype(np.float32)


def solo_search(request: Request) -> list[Beam]:
    """The oracle: a beam search by itself."""
    params = request.params
    search = Search(params.beam_width, params.max_tokens, request.stop_tokens)
    rows = [next_row(request.tokens)]
    while search.advance(rows):
        rows = [next_row((*request.tokens, *beam.tokens)) for beam in search.live]
    return search.best


class FakeRunner:
    """Runs a step on a pool of remembered tokens, and insists that each sequence finds its own tokens there.

    It knows of a sequence what steps tell: the tokens at its admission, and those of its shares.
    """

    def __init__(self, pool: BlockPool):
        self.pool = pool
        self.slots: list[dict[int, tuple[int, int]]] = [{} for _ in range(pool.num_blocks)]
        self.computed = 0
        self.texts: dict[SequenceId, list[int]] = {}
        self.widths: dict[SequenceId, int] = {}

    def run(self, step: Step) -> list[Result]:
        self.learn(step)
        for source, target in step.copies:
            self.slots[target] = dict(self.slots[source])
        written: dict[tuple[int, int], int] = {}
        for i, share in enumerate(step.shares):
            text = self.texts[share.sequence]
            text[share.start :] = [*share.tokens, *text[share.end :]]
            for position in range(share.start, share.end):
                place = self._place(share, position)
                assert written.setdefault(place, i) == i, "two sequences write one slot"
                assert self.pool.writable(place[0]), "a shared block is written"
                self.slots[place[0]][place[1]] = (position, text[position])
            self.computed += share.length
        return [self._result(share) for share in step.shares]

    def learn(self, step: Step) -> None:
        """Take in who has ended and who is new, as the runner does before a step that may fail."""
        assert Step.from_json(step.to_json()) == step, "a step survives JSON"
        for sequence in step.ended:
            del self.texts[sequence], self.widths[sequence]
        for admission in step.admitted:
            assert admission.sequence not in self.texts, "a sequence is admitted twice"
            self.texts[admission.sequence] = list(admission.tokens)
            self.widths[admission.sequence] = admission.params.beam_width

    def _place(self, share: Share, position: int) -> tuple[int, int]:
        size = self.pool.block_size
        return share.view.blocks[position // size], position % size

    def _result(self, share: Share) -> Result:
        assert share.view.first == share.start and share.view.held is None
        seen = [self.slots[block][slot] for block, slot in (self._place(share, p) for p in range(share.end))]
        tokens = [token for _, token in seen]
        if self.widths[share.sequence] == 1:
            text = self.texts[share.sequence]
            assert tokens == text[: share.end], "a sequence reads what is not its own"
            assert (share.wanted > 0) == (share.end == len(text))
        assert [position for position, _ in seen] == list(range(share.end))
        if not share.wanted:
            return Result()
        if self.widths[share.sequence] > 1:
            return Result(row=next_row(tokens))
        known = share.end - len(share.draft.tokens)
        kept: list[int] = []
        while True:
            token = next_token(tokens[: known + len(kept)], share.sequence.number)
            if len(kept) == len(share.draft.tokens) or share.draft.tokens[len(kept)] != token:
                break
            kept.append(len(kept))
        new = (*share.draft.tokens[: len(kept)], token)
        self.texts[share.sequence][known:] = new
        return Result(new, (None,) * len(new), kept=tuple(kept))


def advance(beams: Beams, scheduler: Scheduler, step: Step, results: list[Result], now: float) -> list[Ended]:
    """Let searches go on as the loop does; returns those that end, with the first of their sequences."""
    ended = []
    for move in beams.advance(step, results, scheduler.sequences.requests):
        if move.ended is None:
            scheduler.branch(move.request, move.beams, now)
        else:
            ended.append((scheduler.end(move.request, move.reason, now), move.ended))
    return ended


class FakeTier:
    """A second place for blocks that keeps what the runner's blocks remember; each `lost`-th asked for is lost."""

    def __init__(self, runner: FakeRunner, lost: int = 5):
        self.runner, self.trouble, self.asked, self.lost = runner, "", 0, lost
        self.files: dict[str, dict[int, tuple[int, int]]] = {}

    def __contains__(self, address: str) -> bool:
        return address in self.files

    def store(self, address: str, block: int) -> None:
        held = dict(self.runner.slots[block])
        assert self.files.setdefault(address, held) == held, "an address names two texts"

    def load(self, address: str, block: int) -> str:
        self.asked += 1
        if self.asked % self.lost == 0:
            del self.files[address]
            return "damaged"
        self.runner.slots[block] = dict(self.files[address])
        return ""

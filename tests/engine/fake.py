"""A runner without arrays: blocks hold (position, token) pairs, and a next token is a function of all tokens before."""

from collections.abc import Sequence

import numpy as np

from tiny_llm.decode.beam import Beam, Logprobs, Search
from tiny_llm.engine.blocks import BlockPool
from tiny_llm.engine.lifecycle import Step
from tiny_llm.engine.request import Request

VOCAB = 50


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
    """Runs a step on a pool of remembered tokens, and insists that each sequence finds its own tokens there."""

    def __init__(self, pool: BlockPool):
        self.pool = pool
        self.slots: list[dict[int, tuple[int, int]]] = [{} for _ in range(pool.num_blocks)]
        self.computed = 0
        self.rows: dict[int, Logprobs] = {}

    def run(self, step: Step) -> list[int | None]:
        for source, target in step.copies:
            self.slots[target] = dict(self.slots[source])
        written: dict[tuple[int, int], int] = {}
        for i, (s, start, length, _) in enumerate(step.entries):
            for position in range(start, start + length):
                place = (s.block_table[position // self.pool.block_size], position % self.pool.block_size)
                assert written.setdefault(place, i) == i, "two sequences write one slot"
                assert self.pool.writable(place[0]), "a shared block is written"
                self.slots[place[0]][place[1]] = (position, s.tokens[position])
            self.computed += length
        searching = [(i, entry.sequence) for i, entry in enumerate(step.entries) if entry.searches]
        self.rows = {i: next_row(s.tokens) for i, s in searching}  # as the last step gave them
        return [self._sample(*entry) for entry in step.entries]

    def _sample(self, s, start: int, length: int, samples: bool) -> int | None:
        size = self.pool.block_size
        seen = [self.slots[s.block_table[p // size]][p % size] for p in range(start + length)]
        assert seen == list(enumerate(s.tokens[: start + length])), "a sequence reads what is not its own"
        assert samples == (start + length == len(s.tokens) and not s.request.searches)
        return next_token([token for _, token in seen], s.index) if samples else None


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

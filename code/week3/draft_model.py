"""Draft with a small model that continues each text by itself: it draws every guess behind the guess before."""

from collections.abc import Sequence as Row
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import mlx.core as mx

from tiny_llm.cache.view import View
from tiny_llm.cache.whole import WholeCaches
from tiny_llm.config import SamplingParams
from tiny_llm.course import NotDone
from tiny_llm.decode.acceptance import DraftTree
from tiny_llm.decode.sampler import Sampler
from tiny_llm.engine.blocks import BlockPool
from tiny_llm.engine.request import UNKNOWN, Sequence, SequenceId, Share
from tiny_llm.engine.store import Store
from tiny_llm.model.qwen3 import Qwen3

MOST_LAST = 4  # missing tokens of a text that are computed with its last token
MOST_TOKENS = 2048  # of texts that one call computes; a longer text is computed over several calls, without drafts


@dataclass
class Filled:
    """The tokens whose K and V lie in a block of the draft model's store, from the block's first slot on.

    They hold while the block's number of uses stays `uses`.
    """

    uses: int
    tokens: list[int]


class FilledBlocks:
    """Which tokens the draft model has computed, block by block, so that sequences with one prefix share it."""

    def __init__(self, blocks: BlockPool):
        self.blocks = blocks
        self._filled: dict[int, Filled] = {}

    def count(self, sequence: Sequence) -> int:
        """Return how many of a sequence's first tokens are computed; the last of all is always left to compute.

        A block counts while its number of uses is the noted one, as far as its tokens are the sequence's; it must be
        full for the blocks behind it to count.
        """
        # YOUR CODE (w3.7.4): block by block, as far as the tokens are the same
        raise NotDone("w3.7.4")

    def note(self, table: Row[int], start: int, tokens: Row[int]) -> None:
        """Note that tokens from position `start` on are computed, for a sequence with this block table."""
        size = self.blocks.block_size
        position = start
        end = start + len(tokens)
        while position < end:
            number, slot = divmod(position, size)
            block = table[number]
            upto = min(end, (number + 1) * size)
            filled = self._filled.setdefault(block, Filled(self.blocks.uses[block], []))
            if filled.uses != self.blocks.uses[block]:
                filled.uses, filled.tokens = self.blocks.uses[block], []
            assert slot <= len(filled.tokens), "a slot before this one is empty"
            filled.tokens[slot:] = tokens[position - start : upto - start]
            position = upto

    def copy(self, pairs: Row[tuple[int, int]]) -> None:
        """Note that blocks were copied, source to target."""
        for source, target in pairs:
            filled = self._filled.get(source)
            if filled is not None and filled.uses == self.blocks.uses[source]:
                self._filled[target] = Filled(self.blocks.uses[target], list(filled.tokens))


def common_length(one: Row[int], other: Row[int]) -> int:
    """Return the length of the common beginning of two rows of tokens."""
    count = min(len(one), len(other))
    if one[:count] == other[:count]:
        return count
    return next(i for i in range(count) if one[i] != other[i])


class DraftModel:
    """Drafts a chain for each sequence, all of a batch together.

    The draft model's K and V lie in a `store` of its own, under the numbers of the sequences' own blocks. What it has
    not computed yet of a text, such as a new prompt, it computes before the first guess. It draws as the request does:
    with the request's settings and the random numbers of the positions, so that it often draws the model's own token.
    A chain ends where the probability of all its guesses together falls under `least`.
    """

    def __init__(self, model: Qwen3, store: Store, blocks: BlockPool, vocab_size: int, least: float):
        self.model, self.store, self.least = model, store, least
        self.vocab_size = vocab_size  # of the model that verifies
        self.filled = FilledBlocks(blocks)
        self._params: dict[SequenceId, SamplingParams] = {}

    def propose(self, sequences: Row[Sequence], limits: Row[int]) -> list[DraftTree]:
        """Return a chain of at most limits[i] guesses for each sequence; none where its text is not computed yet."""
        drafts = [DraftTree()] * len(sequences)
        ready = self._catch_up(sequences)
        if not ready:
            return drafts
        ready.sort(key=lambda number: -limits[number])
        chosen = [sequences[number] for number in ready]
        lines, chances = self._lines(chosen, [limits[number] for number in ready])
        for number, line, odds in zip(ready, lines, chances, strict=True):
            sequence = sequences[number]
            drafts[number] = DraftTree.chain(likely(line, odds, self.least))
            computed = [*sequence.tokens, *line[:-1]]
            start = self.filled.count(sequence)
            self.filled.note(sequence.block_table, start, computed[start:])
        return drafts

    def forget(self, ended: Row[SequenceId]) -> None:
        """Drop the data of sequences that have ended or were preempted."""
        for name in ended:
            self._params.pop(name, None)
        if isinstance(self.store, WholeCaches):
            self.store.drop_unused(self.filled.blocks.in_use)

    def _catch_up(self, sequences: Row[Sequence]) -> list[int]:
        """Compute what is missing of the texts but their last tokens. Return the numbers of the complete sequences."""
        left = MOST_TOKENS
        shares: list[Share] = []
        ready = []
        for number, sequence in enumerate(sequences):
            if max(sequence.tokens) >= self.model.config.vocab_size:
                continue  # a token that the draft model does not know
            start = self.filled.count(sequence)
            pending = len(sequence.tokens) - start
            length = pending - 1 if pending > MOST_LAST else 0
            if length <= left:
                ready.append(number)
            length = min(length, left)
            if length:
                shares.append(_share(sequence, start, sequence.tokens[start : start + length]))
                self.filled.note(sequence.block_table, start, shares[-1].tokens)
                left -= length
        if shares:
            self._hidden(shares)
            mx.eval(self.store.state)
        return ready

    def _lines(self, sequences: Row[Sequence], limits: Row[int]) -> tuple[list[list[int]], list[list[float]]]:
        """Return a line of guesses for each sequence, and the probability of each guess behind those before it.

        The limits descend, so that the first rows go on longest.
        """
        logits = self._logits_at_the_ends(sequences)
        sampler = self._sampler(sequences)
        drawn: list[mx.array] = []
        chances: list[mx.array] = []
        for depth in range(1, limits[0] + 1):
            logits = widened(logits, self.vocab_size)
            positions = [len(sequence.tokens) + depth - 1 for sequence in sequences]
            tokens = sampler(logits, positions).tokens
            drawn.append(tokens)
            chances.append(chance_of(logits, tokens))
            active = sum(limit > depth for limit in limits)
            if not active:
                break
            if active < len(sequences):
                sequences, sampler = sequences[:active], sampler.select(range(active))
            shares = [_share(sequence, len(sequence.tokens) + depth - 1, (UNKNOWN,)) for sequence in sequences]
            logits = self.model.logits(self._hidden(shares, tokens[:active]))
        mx.eval(drawn, chances, self.store.state)
        return _lines_of(drawn), _lines_of(chances)

    def _logits_at_the_ends(self, sequences: Row[Sequence]) -> mx.array:
        """Compute the last tokens of each text, as many of each as are missing of any. → (R, V) behind the texts

        With equal lengths the step is a single operation where the CPU kernels run it.
        """
        most = max(len(sequence.tokens) - self.filled.count(sequence) for sequence in sequences)
        shares = []
        for sequence in sequences:
            start = max(0, len(sequence.tokens) - most)
            shares.append(_share(sequence, start, sequence.tokens[start:]))
        ends = accumulate(share.length for share in shares)
        last = mx.array([end - 1 for end in ends])
        return self.model.logits(self._hidden(shares)[last])

    def _hidden(self, shares: Row[Share], tokens: mx.array | None = None) -> mx.array:
        """Compute shares, whose tokens are `tokens` if given. → (T, hidden)"""
        if tokens is None:
            tokens = mx.array([token for share in shares for token in share.tokens], mx.int32)
        return self.model.hidden_states(tokens.astype(mx.int32), self.store.batch(shares))

    def _sampler(self, sequences: Row[Sequence]) -> Sampler:
        """Make a sampler that draws as the requests do."""
        params = []
        for sequence in sequences:
            if sequence.id not in self._params:
                self._params[sequence.id] = replace(sequence.request.params, logprobs=None)
            params.append(self._params[sequence.id])
        return Sampler(
            params,
            self.vocab_size,
            [sequence.request.tokens for sequence in sequences],
            outputs=[sequence.output for sequence in sequences],
            samples=[sequence.index for sequence in sequences],
        )


def _share(sequence: Sequence, start: int, tokens: Row[int]) -> Share:
    view = View(tuple(sequence.block_table), start)
    return Share(sequence.id, start, tuple(tokens), 0, view)


def widened(logits: mx.array, vocab_size: int) -> mx.array:
    """Return logits (R, vocab_size): without the padding of a larger vocabulary, or -inf where one is smaller."""
    missing = vocab_size - logits.shape[1]
    if missing <= 0:
        return logits[:, :vocab_size]
    return mx.pad(logits, [(0, 0), (0, missing)], constant_values=mx.array(-mx.inf))


def chance_of(logits: mx.array, tokens: mx.array) -> mx.array:
    """Return the probability of one token a row, (R,). logits (R, V), tokens (R,)."""
    chosen = mx.take_along_axis(logits, tokens[:, None].astype(mx.int32), axis=1)[:, 0]
    return mx.exp(chosen - mx.logsumexp(logits, axis=1))


def _lines_of(columns: Row[mx.array]) -> list[list[Any]]:
    """Turn columns, each of which has a value for the first rows, into rows."""
    rows: list[list[Any]] = [[] for _ in range(columns[0].shape[0])]
    for column in columns:
        for row, value in zip(rows, column.tolist(), strict=False):  # type: ignore[arg-type]
            row.append(value)
    return rows


def likely(line: Row[int], chances: Row[float], least: float) -> list[int]:
    """Return the first guesses of a line, as long as the probability of all of them together is at least `least`."""
    together = 1.0
    for number, chance in enumerate(chances):
        together *= chance
        if together < least:
            return list(line[:number])
    return list(line)

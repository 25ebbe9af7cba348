"""Draft with an EAGLE head: a tree of guesses, grown level by level from the likeliest lines. (arXiv:2406.16858)"""

import math
from collections.abc import Sequence as Row
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

import mlx.core as mx

from tiny_llm.cache.view import View
from tiny_llm.cache.whole import WholeCaches
from tiny_llm.decode.acceptance import DraftTree
from tiny_llm.engine.blocks import BlockPool
from tiny_llm.engine.draft_model import FilledBlocks
from tiny_llm.engine.guess_tree import ranked, rows_of_text
from tiny_llm.engine.request import Seen, Sequence, SequenceId, Share
from tiny_llm.engine.store import Store
from tiny_llm.model.eagle import EagleHead


@dataclass
class Pending:
    """Combined features of a sequence's tokens from position `start` on, which the head has not read yet."""

    start: int
    parts: list[mx.array] = field(default_factory=list)

    @property
    def end(self) -> int:
        return self.start + sum(part.shape[0] for part in self.parts)

    def prepend(self, before: "Pending", start: int) -> None:
        """Add the features from position `start` up to the own first, which `before` has."""
        whole = mx.concatenate(before.parts)
        self.parts.insert(0, whole[start - before.start : self.start - before.start])
        self.start = start


class LineNode(NamedTuple):
    """A node of a tree that grows: `log_q` of the whole line up to it, `parent` -1 behind the text."""

    token: int
    parent: int
    log_q: float


@dataclass
class Growing:
    """The tree of one sequence while it grows. `beams` are the nodes of the last level that are grown further.

    `rows` are the nodes whose entries the head computes, each with the output of the entry before it.
    """

    sequence: Sequence
    nodes: list[LineNode] = field(default_factory=list)
    beams: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    features: list[mx.array] = field(default_factory=list)

    def grow(self, parents: Row[int], tokens: Row[Row[int]], log_q: Row[Row[float]], width: int) -> list[int]:
        """Add the likeliest tokens behind each of these nodes. Return the `width` likeliest lines of the new level."""
        # ANCHOR: grow
        level: list[int] = []
        for parent, mine, odds in zip(parents, tokens, log_q, strict=True):
            before = self.nodes[parent].log_q if parent >= 0 else 0.0
            for token, odd in zip(mine, odds, strict=True):
                level.append(len(self.nodes))
                self.nodes.append(LineNode(token, parent, before + odd))
        level.sort(key=lambda node: -self.nodes[node].log_q)
        return sorted(level[:width])
        # ANCHOR_END: grow

    def share(self) -> Share:
        """Return the share of all rows, which begins at the entry of the text's last token."""
        start = len(self.sequence.tokens) - 1
        number = {node: row for row, node in enumerate(self.rows)}
        parents = tuple(number.get(self.nodes[node].parent, -1) for node in self.rows)
        tokens = tuple(self.nodes[node].token for node in self.rows)
        return Share(self.sequence.id, start, tokens, 0, View(tuple(self.sequence.block_table), start), parents)

    def best(self, limit: int, least: float) -> DraftTree:
        """Return the tree of the `limit` likeliest lines, without those under the log-probability `least`."""
        likely = [node for node, line in enumerate(self.nodes) if line.log_q >= least]
        chosen = sorted(likely, key=lambda node: (-self.nodes[node].log_q, node))[:limit]
        number = {node: place for place, node in enumerate(chosen)}
        parents = tuple(number.get(self.nodes[node].parent, -1) for node in chosen)
        return DraftTree(tuple(self.nodes[node].token for node in chosen), parents)


class EagleDrafter:
    """Drafts a tree for each sequence, `width` lines wide at every level; a chain with the width 1.

    K and V of the head's entries lie in a `store` of its own, under the numbers of the sequences' own blocks.
    """

    def __init__(self, head: EagleHead, store: Store, blocks: BlockPool, width: int, p_min: float):
        self.head, self.store, self.width = head, store, width
        self.taps = head.taps
        self.least = math.log(max(p_min, 1e-9))
        self.filled = FilledBlocks(blocks)
        self._pending: dict[SequenceId, Pending] = {}
        self._prompts: dict[str, Pending] = {}  # of requests with several answers, for those that began later

    def propose(self, sequences: Row[Sequence], limits: Row[int]) -> list[DraftTree]:
        """Return a tree of at most limits[i] guesses for each sequence; none where the head misses entries before."""
        drafts = [DraftTree()] * len(sequences)
        ready = [number for number, sequence in enumerate(sequences) if self._is_ready(sequence)]
        if not ready:
            return drafts
        trees = self._trees([sequences[number] for number in ready], [limits[number] for number in ready])
        for number, tree in zip(ready, trees, strict=True):
            drafts[number] = tree.best(limits[number], self.least)
        return drafts

    def observe(self, seen: Row[Seen]) -> None:
        """Keep the features of the tokens that were computed, without those of rejected guesses."""
        for share, result, features in seen:
            assert features is not None
            rows = mx.array(rows_of_text(share, result))
            combined = self.head.combine(features[rows])
            pending = self._pending.get(share.sequence)
            if pending is None or pending.end != share.start:
                pending = self._pending[share.sequence] = Pending(share.start)
            pending.parts.append(combined)

    def forget(self, ended: Row[SequenceId]) -> None:
        """Drop the data of sequences that have ended or were preempted."""
        for name in ended:
            self._pending.pop(name, None)
        known = {name.request for name in self._pending}
        self._prompts = {request: kept for request, kept in self._prompts.items() if request in known}
        if isinstance(self.store, WholeCaches):
            self.store.drop_unused(self.filled.blocks.in_use)

    def copy_blocks(self, pairs: Row[tuple[int, int]]) -> None:
        """Copy blocks, source to target, as the model's own pool does."""
        self.filled.copy(pairs)
        if isinstance(self.store, WholeCaches):
            pairs = [pair for pair in pairs if pair[0] in self.store.caches]
        self.store.copy_blocks(pairs)

    def _is_ready(self, sequence: Sequence) -> bool:
        """Return whether the head has the entries before the pending features, which reach up to the last token."""
        pending = self._pending.get(sequence.id)
        if pending is None or pending.end != len(sequence.tokens) - 1:
            return False
        count = self.filled.count(sequence)
        prompt = self._prompts.get(sequence.id.request)
        if count < pending.start and prompt is not None and prompt.start <= count and pending.start <= prompt.end:
            pending.prepend(prompt, count)
        return count >= pending.start

    def _trees(self, sequences: Row[Sequence], limits: Row[int]) -> list[Growing]:
        """Grow trees of as many levels as the reserved blocks have room for."""
        trees = [Growing(sequence) for sequence in sequences]
        roots = self._roots(sequences)
        tokens, log_q = self._ranked(roots)
        width = min(self.width, *limits)
        for i, tree in enumerate(trees):
            tree.beams = tree.grow([-1], tokens[i : i + 1], log_q[i : i + 1], width)
            tree.features = [roots[i]] * width
        for _ in range(min(limits) // width):
            self._level(trees, width)
        return trees

    def _level(self, trees: Row[Growing], width: int) -> None:
        """Grow all trees by a level: compute the entries of all rows again, and rank what follows the beams."""
        for tree in trees:
            tree.rows += tree.beams
        shares = [tree.share() for tree in trees]
        tokens = mx.array([token for share in shares for token in share.tokens], mx.int32)
        features = mx.stack([vector for tree in trees for vector in tree.features])
        states = self.head.states(tokens, features, self.store.batch(shares))
        states = states.reshape(len(trees), -1, states.shape[1])[:, -width:]  # (R, width, H) of the beams
        found, log_q = self._ranked(states.reshape(-1, states.shape[2]))
        for i, tree in enumerate(trees):
            rows = slice(i * width, (i + 1) * width)
            before = tree.beams
            tree.beams = tree.grow(before, found[rows], log_q[rows], width)
            for node in tree.beams:
                tree.features.append(states[i, before.index(tree.nodes[node].parent)])

    def _roots(self, sequences: Row[Sequence]) -> mx.array:
        """Compute the entries of the pending features. → (R, H), the outputs at the entries before the last tokens"""
        shares: list[Share] = []
        following: list[int] = []
        parts: list[mx.array] = []
        for sequence in sequences:
            pending = self._pending.pop(sequence.id)
            if sequence.request.params.n > 1:
                self._prompts.setdefault(sequence.id.request, pending)
            known = sequence.tokens[pending.start : pending.end]
            view = View(tuple(sequence.block_table), pending.start)
            shares.append(Share(sequence.id, pending.start, tuple(known), 0, view))
            following += sequence.tokens[pending.start + 1 : pending.end + 1]
            parts += pending.parts
            self.filled.note(sequence.block_table, pending.start, known)
            self._pending[sequence.id] = Pending(pending.end)
        states = self.head.states(mx.array(following, mx.int32), mx.concatenate(parts), self.store.batch(shares))
        last = [end - 1 for end in accumulate(share.length for share in shares)]
        return states[mx.array(last)]

    def _ranked(self, states: mx.array) -> tuple[list[list[int]], list[list[float]]]:
        """Return the likeliest tokens behind each output (R, H), as many as a level is wide, and their log q."""
        top, odds = ranked(self.head.logits(states), self.width)
        tokens = self.head.draft_tokens[top]
        mx.eval(tokens, odds, self.store.state)
        return tokens.tolist(), odds.tolist()  # type: ignore[return-value]

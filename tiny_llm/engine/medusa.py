"""Draft with Medusa heads: from the model's last hidden state, the likeliest tokens of the next places."""

import math
from collections.abc import Sequence as Row
from typing import cast

import mlx.core as mx

from tiny_llm.decode.acceptance import DraftTree
from tiny_llm.engine.guess_tree import Ranked, likeliest_tree, ranked, rows_of_text
from tiny_llm.engine.request import Seen, Sequence, SequenceId
from tiny_llm.model.medusa import MedusaHeads

RANKS = 8  # tokens of a place that a tree may hold


class MedusaDrafter:
    """Drafts a tree for each sequence from the hidden state of the token before its last one.

    That is the state from which the model drew the last token, so head 1 guesses the token after it.
    """

    def __init__(self, heads: MedusaHeads, p_min: float):
        self.heads = heads
        self.least = math.log(max(p_min, 1e-9))
        self.taps = (heads.model.config.num_hidden_layers - 1,)
        self._hidden: dict[SequenceId, mx.array] = {}

    def propose(self, sequences: Row[Sequence], limits: Row[int]) -> list[DraftTree]:
        """Return a tree of at most limits[i] guesses for each sequence."""
        drafts = [DraftTree()] * len(sequences)
        known = [i for i, sequence in enumerate(sequences) if sequence.id in self._hidden]
        if not known:
            return drafts
        hidden = mx.stack([self._hidden[sequences[i].id] for i in known])
        top, odds = ranked(self.heads.logits(hidden), RANKS)
        tokens = cast(list[list[list[int]]], top.tolist())  # (k, R, RANKS)
        log_q = cast(list[list[list[float]]], odds.tolist())
        for row, i in enumerate(known):
            places = [Ranked(tokens[head][row], log_q[head][row]) for head in range(len(self.heads))]
            drafts[i] = likeliest_tree(places, limits[i], self.least)
        return drafts

    def observe(self, seen: Row[Seen]) -> None:
        """Keep the hidden state from which each sequence's newest token was drawn."""
        for share, result, features in seen:
            if result.tokens:
                assert features is not None
                last = rows_of_text(share, result)[-1]
                self._hidden[share.sequence] = features[last]

    def forget(self, ended: Row[SequenceId]) -> None:
        """Drop the states of sequences that have ended or were preempted."""
        for name in ended:
            self._hidden.pop(name, None)

    def copy_blocks(self, pairs: Row[tuple[int, int]]) -> None:
        """Do nothing: this drafter keeps no blocks."""

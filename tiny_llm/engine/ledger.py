"""The only writer of block tables: allocate, share, copy, keep and free the blocks of sequences.

The log is here, too: the scheduler and the ledger report each change of a sequence or block to it as an event.
"""

from collections.abc import Callable
from collections.abc import Sequence as Row

from tiny_llm.cache.view import View
from tiny_llm.config import SchedulerConfig
from tiny_llm.config.fields import require
from tiny_llm.engine.blocks import BlockPool
from tiny_llm.engine.events import Event
from tiny_llm.engine.kept import Kept
from tiny_llm.engine.radix import Match, RadixTree, Restored
from tiny_llm.engine.request import Request, Sequence


class Log:
    """Makes events and calls `emit` with them. An event has the time `now` and the step that were set last."""

    def __init__(self, emit: Callable[[Event], None] | None):
        self.emit, self.now, self.step = emit, 0.0, 0

    def tell(
        self,
        kind: str,
        sequence: Sequence | None = None,
        start: int = 0,
        tokens: int = 0,
        blocks: Row[int] = (),
        note: str = "",
    ) -> None:
        """Emit an event of this kind. The table in `engine.events` says what the fields mean."""
        if self.emit is not None:
            name, index = sequence.id if sequence is not None else ("", 0)
            self.emit(Event(self.now, kind, self.step, name, index, start, tokens, tuple(blocks), note))


class Ledger:
    """The block tables of the running sequences, over the pool and the prefix tree.

    `kept` replaces the `tree` where a block is a whole cache. `copies` are the copy-on-write pairs (source, target) of
    the step that is being scheduled.
    """

    def __init__(self, blocks: BlockPool, tree: RadixTree | None, log: Log, kept: Kept | None = None):
        self.blocks, self.tree, self.kept, self.log = blocks, tree, kept, log
        self.copies: list[tuple[int, int]] = []

    def begin_step(self) -> None:
        """Forget the copies of the previous step, which have been made."""
        self.copies = []

    def match(self, sequence: Sequence) -> Match:
        """Find the kept blocks with the longest prefix of a waiting sequence's tokens."""
        if self.kept is not None:
            return self.kept.match(sequence.keys)
        if self.tree is None:
            return Match([], 0, "")
        return self.tree.match(sequence.keys, head=sequence.request.head)

    def known_tokens(self, sequence: Sequence, found: Match) -> int:
        """Return how many of a sequence's first tokens are known: those of `found`, and a part of the next block."""
        if self.tree is None:
            return found.num_tokens
        return self.tree.known_tokens(sequence.keys, found)

    def share(self, sequence: Sequence, found: Match) -> None:
        """Add references to the blocks of `found` to the end of the sequence's table."""
        for block in found.blocks:
            self.blocks.share(block)
            if self.kept is not None:
                self.kept.hand_over(block)
        sequence.block_table += found.blocks
        sequence.computed += found.num_tokens

    # ANCHOR: extend
    def extend(self, sequence: Sequence, limit: int) -> int:
        """Give a sequence blocks for its next tokens, and plan a copy of each shared block that it will write into.

        Returns the number of tokens: at most `limit`, and as many as the available blocks allow.
        """
        table, start, size = sequence.block_table, sequence.computed, self.blocks.block_size
        first = start // size
        if sequence.remaining == 1 <= limit and first == len(table) - 1 and self.blocks.writable(table[first]):
            self.log.tell("chunk", sequence, start, 1)
            return 1  # the usual decode: its slot lies in a block of its own
        shared = [i for i in range(first, len(table)) if not self.blocks.writable(table[i])]
        room = (len(table) + self.blocks.num_available - len(shared)) * size - start
        length = min(sequence.remaining, limit, room)
        if length <= 0:
            return 0
        for i in shared:
            source, table[i] = table[i], self._allocate()
            self.blocks.free(source)
            self.copies.append((source, table[i]))
            self.log.tell("copy", sequence, blocks=self.copies[-1])
        held = len(table)
        while len(table) < self.blocks.blocks_for(start + length):
            table.append(self._allocate())
        self.log.tell("chunk", sequence, start, length, table[held:])
        return length
        # ANCHOR_END: extend

    def extend_draft(self, sequence: Sequence, limit: int) -> int:
        """Give a sequence, behind its last token, blocks for drafted tokens. Returns their number, at most `limit`."""
        table, size = sequence.block_table, self.blocks.block_size
        known = len(sequence.tokens)
        room = (len(table) + self.blocks.num_available) * size - known
        length = min(limit, room)
        while len(table) < self.blocks.blocks_for(known + length):
            table.append(self._allocate())
        return length

    def view(self, sequence: Sequence, end: int) -> View:
        """Return the view of a share that starts after the computed tokens and ends before position `end`."""
        return View(tuple(sequence.block_table[: -(-end // self.blocks.block_size)]), sequence.computed)

    def trim(self, sequence: Sequence) -> None:
        """Free the blocks after the computed tokens, such as the blocks of rejected draft tokens."""
        table = sequence.block_table
        needed = self.blocks.blocks_for(sequence.computed)
        while len(table) > needed:
            self.blocks.free(table.pop())

    def branch(self, group: Row[Sequence], parents: Row[Sequence]) -> None:
        """Give each of the first sequences of `group` its parent's block table, and empty the tables of the others."""
        tables = [list(parent.block_table) for parent in parents]
        for block in [block for table in tables for block in table]:
            self.blocks.share(block)
        for block in [block for sequence in group for block in sequence.block_table]:
            self.blocks.free(block)
        for sequence, table in zip(group, tables, strict=False):
            sequence.block_table = table

    def keep(self, sequence: Sequence) -> None:
        """Insert the sequence's full computed blocks into the prefix tree, where other sequences find them."""
        if self.tree is None:
            return
        size = self.blocks.block_size
        whole = sequence.computed // size
        known = sum(block in self.tree.nodes for block in sequence.block_table[:whole])
        sequence.block_table = self.tree.insert(sequence.keys[: whole * size], sequence.block_table)
        if whole > known:
            above = sequence.block_table[known - 1] if known else -1
            kept = (above, *sequence.block_table[known:whole])
            self.log.tell("keep", sequence, known * size, (whole - known) * size, kept)

    def release(self, sequence: Sequence) -> list[int]:
        """Keep the computed blocks for later requests, drop the sequence's references, and return its former table."""
        self.keep(sequence)
        if self.kept is not None and sequence.computed:
            (block,) = sequence.block_table
            if self.blocks.writable(block):  # otherwise another sequence writes into it
                self.kept.keep(block, sequence.keys[: sequence.computed])
        held, sequence.block_table = sequence.block_table, []
        for block in reversed(held):  # the next sequence takes them in the order in which they lie
            self.blocks.free(block)
        return held

    def forget(self) -> None:
        """Free the kept blocks that no sequence references, because their contents are lost."""
        if self.tree is not None:
            self.tree.forget()
        if self.kept is not None:
            self.kept.forget()

    def restore(self, sequence: Sequence, limit: int) -> Restored:
        """At a block boundary: share blocks that are now in the prefix tree, then load up to `limit` evicted blocks."""
        size, tree = self.blocks.block_size, self.tree
        if tree is None or sequence.computed != len(sequence.block_table) * size:
            return Restored([])
        found = tree.match(sequence.keys, sequence.block_table)
        if found.blocks:
            self.log.tell("share", sequence, sequence.computed, found.num_tokens, found.blocks)
            self.share(sequence, found)
        copied = {block for pair in self.copies for block in pair}  # not copied yet
        begin = sequence.computed
        limit = min(limit, max(0, self.blocks.num_available - len(copied)))
        read = tree.restore(sequence.keys, begin, limit, self._allocate, copied)
        if read.blocks or read.fault:
            tokens = len(read.blocks) * size
            sequence.block_table += read.blocks
            sequence.computed, sequence.cached = begin + tokens, sequence.cached + tokens
            sequence.missed = None  # it told why these blocks were not in the pool
            self.log.tell("load", sequence, begin, tokens, read.blocks, read.fault)
            self.keep(sequence)
        return read

    def _allocate(self) -> int:
        if not self.blocks.num_free and self.tree:
            evicted = self.tree.evict(1)
            self.log.tell("evict", blocks=evicted, note=self.tree.tier.trouble if self.tree.tier else "")
        elif not self.blocks.num_free and self.kept:
            self.log.tell("evict", blocks=self.kept.evict())
        return self.blocks.allocate()

    def check(self, running: Row[Sequence]) -> None:
        """Assert that blocks, tables and tree agree, for tests. `running` are all sequences with blocks."""
        tree, size = self.tree, self.blocks.block_size
        kept = tree.nodes if tree else self.kept.texts if self.kept else ()
        self.blocks.check([s.block_table for s in running], kept)
        for s in running:
            assert len(set(s.block_table)) == len(s.block_table), "a block is twice in a table"
            assert 0 <= s.computed < len(s.tokens) + s.request.searches and s.computed <= len(s.block_table) * size
            for i, block in enumerate(s.block_table):
                if tree and block in tree.nodes:
                    assert tree.path(block) == s.keys[: (i + 1) * size], "tree and table disagree"
        if tree:
            tree.check()


def check_request(request: Request, config: SchedulerConfig, blocks: BlockPool) -> None:
    """Raise ValueError for a request with more sequences than slots, or more tokens than the whole pool holds."""
    params, count = request.params, request.num_sequences
    name, longest = ("beam_width" if request.searches else "n"), len(request.tokens) + params.max_tokens
    require(
        count <= config.max_sequences,
        f"{name}: expected at most max_sequences ({config.max_sequences}), found {count}",
    )
    what = f"prompt of {len(request.tokens)} tokens with max_tokens {params.max_tokens}"
    need = blocks.blocks_for(longest - 1)  # the last token is never computed
    if request.searches:  # because beams run side by side, while n answers can take turns
        need, what = need * count, f"{what} and beam_width {count}"
    require(
        need <= blocks.num_blocks,
        f"{what}: needs {need} blocks of {blocks.block_size} tokens, the pool has {blocks.num_blocks}; "
        "shorten the prompt, lower max_tokens or give the pool more memory",
    )

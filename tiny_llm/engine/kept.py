"""Keep the caches of sequences that have ended, for later requests that begin with the same tokens."""

from collections import OrderedDict
from collections.abc import Callable
from collections.abc import Sequence as Row

from tiny_llm.engine.blocks import BlockPool
from tiny_llm.engine.radix import Match


class Kept:
    """At most `limit` blocks that hold a whole sequence each. The least recently used block is evicted first.

    This is the counterpart of the prefix tree for a store of whole caches. A block that matches is handed over: its new
    owner writes into it, so no other sequence can match it meanwhile. `can_keep(block, num_tokens)` says whether a
    block's cache can be trimmed to its first `num_tokens` tokens; a rotating cache sometimes can't.
    """

    def __init__(self, blocks: BlockPool, limit: int, can_keep: Callable[[int, int], bool]):
        self.blocks, self.limit, self.can_keep = blocks, limit, can_keep
        self.texts: OrderedDict[int, tuple[int, ...]] = OrderedDict()  # the tokens in each block, by last use

    def match(self, tokens: Row[int]) -> Match:
        """Find the block with the longest common prefix. The last token never matches, because it must be computed."""
        best, most = -1, 0
        for block, text in self.texts.items():
            common = common_prefix(tokens, text, len(tokens) - 1)
            if common > most and self.can_keep(block, common):
                best, most = block, common
        if not most:
            return Match([], 0, "first request" if not self.texts else "diverged at token 0")
        reason = "" if most == len(tokens) - 1 else f"diverged at token {most}"
        return Match([best], most, reason)

    def hand_over(self, block: int) -> None:
        """Drop the reference to a block that a sequence has taken over."""
        if self.texts.pop(block, None) is not None:
            self.blocks.drop(block)

    def keep(self, block: int, tokens: Row[int]) -> None:
        """Keep a block and the tokens whose K and V it holds."""
        while len(self.texts) >= self.limit:
            self.evict()
        self.blocks.keep(block)
        self.texts[block] = tuple(tokens)

    def take_in(self, tokens: Row[int]) -> int:
        """Keep these tokens in a new block, and return the block. The caller fills its cache."""
        block = self.blocks.allocate()
        self.keep(block, tokens)
        self.blocks.free(block)
        return block

    def evict(self) -> list[int]:
        """Free the least recently used block, and return it in a list."""
        block, _ = self.texts.popitem(last=False)
        self.blocks.drop(block)
        return [block]

    def forget(self) -> None:
        """Free all blocks."""
        while self.texts:
            self.evict()


def common_prefix(a: Row[int], b: Row[int], limit: int) -> int:
    """Return the length of the common prefix of two rows, at most `limit`."""
    limit = min(limit, len(a), len(b))
    count = 0
    while count < limit and a[count] == b[count]:
        count += 1
    return count

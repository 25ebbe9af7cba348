"""Prefix tree: from token prefixes to computed KV blocks.

A node is one whole block. The path from the root to a node spells the tokens whose K and V the blocks of the path hold.
A sequence that references a node's block also references the blocks of all nodes above it. So where only the tree
references a node's block, no sequence reads a block below it.
"""

from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence, Set
from hashlib import sha256
from itertools import islice
from typing import NamedTuple, Protocol

from tiny_llm.engine.blocks import BlockPool

OTHER_HEAD = "different system prompt, tools or template settings"


class Tier(Protocol):
    """A second store for blocks, slower and larger than the pool. An address names all tokens up to a block's end."""

    trouble: str  # why the last block could not be stored, "" where it was stored

    def __contains__(self, address: str) -> bool: ...

    def store(self, address: str, block: int) -> None:
        """Store the contents of a block of the pool, if that is possible."""

    def load(self, address: str, block: int) -> str:
        """Load contents into a block of the pool. Returns the reason of a failure, "" for success."""


class Match(NamedTuple):
    """The blocks of the longest known prefix, and why it is not longer ("" where it is as long as possible)."""

    blocks: list[int]
    num_tokens: int
    reason: str


class Restored(NamedTuple):
    """The blocks loaded from the tier, the reason of a failure ("" for success), and whether the tier has more."""

    blocks: list[int]
    fault: str = ""
    more: bool = False


class Node:
    """One block of tokens. `key` is a hash of the whole path from the root to the node."""

    __slots__ = ("block", "children", "key", "parent", "tokens")

    def __init__(self, tokens: tuple[int, ...], block: int, key: int, parent: "Node | None"):
        self.tokens, self.block, self.key, self.parent = tokens, block, key, parent
        self.children: dict[tuple[int, ...], Node] = {}


class RadixTree:
    """Whole blocks by token prefix, with eviction of the least recently used leaf (as in SGLang, arXiv:2312.07104).

    `nodes` maps blocks to nodes in the order of their last use, a node always before its parent. An evicted block is
    stored in the `tier`, if there is one.
    """

    def __init__(self, blocks: BlockPool, tier: Tier | None = None):
        self.blocks, self.tier = blocks, tier
        self.root = Node((), -1, 0, None)
        self.nodes: OrderedDict[int, Node] = OrderedDict()
        self._evicted: OrderedDict[int, None] = OrderedDict()  # keys of evicted nodes, so that a miss can be explained

    def match(self, tokens: Sequence[int], held: Sequence[int] = (), head: int = 0) -> Match:
        """Find the blocks of the longest known prefix of `tokens`, without the last token, which must be computed.

        The search starts after the blocks `held`, which the caller has already. The caller adds the references. `head`
        is the number of tokens before the user's words: a prefix that ends among them was made with another system
        prompt, other tools or other settings of the chat template.
        """
        node = self.nodes.get(held[-1], self.root) if held else self.root
        if held and node is self.root:
            return Match([], 0, "")  # the last held block is not in the tree, so no block follows it there
        # TASK w3.5.2: follow the tokens down the tree
        size, found = self.blocks.block_size, list[int]()
        at = len(held) * size
        while at + size < len(tokens):
            child = node.children.get(tuple(tokens[at : at + size]))
            if child is None:
                break
            node, at = child, at + size
            found.append(node.block)
        self._touch(node)
        return Match(found, len(found) * size, self._reason(node, tokens, at, head))
        # END TASK

    def _reason(self, node: Node, tokens: Sequence[int], at: int, head: int) -> str:
        """Say why the match ends at `node`, after `at` tokens."""
        following = tuple(tokens[at : at + self.blocks.block_size])
        if at + self.blocks.block_size >= len(tokens):
            return "" if at else "not longer than a block"
        if hash((node.key, following)) in self._evicted:
            return f"evicted from token {at}"
        if not self.nodes:
            return "first request"
        same = _most_common(node, following)
        if at + same < head:
            return f"{OTHER_HEAD}: diverged at token {at + same} of its {head}"
        return f"diverged at token {at + same}" if node.children else f"new from token {at}"

    def known_tokens(self, tokens: Sequence[int], found: Match) -> int:
        """Return the number of first tokens that the tree knows: those of a match, and the begin of a block behind."""
        node = self.nodes[found.blocks[-1]] if found.blocks else self.root
        following = tokens[found.num_tokens : found.num_tokens + self.blocks.block_size]
        return found.num_tokens + _most_common(node, following)

    def insert(self, tokens: Sequence[int], blocks: Sequence[int]) -> list[int]:
        """Insert the whole blocks of `tokens`. Returns the caller's new block table, as long as `blocks`.

        Where the tree has a block for the same tokens already, the caller's reference moves to that block, and the
        caller's own copy is freed. Blocks that are not full yet stay in the table as they are.
        """
        # TASK w3.5.3: insert blocks, or reuse the tree's
        node, size, table = self.root, self.blocks.block_size, list(blocks)
        for i in range(len(tokens) // size):
            child = self.nodes.get(table[i])
            if child is None:
                words = tuple(tokens[i * size : (i + 1) * size])
                child = node.children.get(words)
                if child is None:
                    child = self._add(node, words, table[i])
                else:
                    self.blocks.share(child.block)
                    self.blocks.free(table[i])
                    table[i] = child.block
            node = child
        self._touch(node)
        return table
        # END TASK

    def evict(self, count: int) -> list[int]:
        """Free up to `count` blocks that only the tree references, least recently used first, and return them."""
        # TASK w3.5.4: the least recently used leaves
        freed: list[int] = []
        while len(freed) < count and self.blocks.num_evictable:
            node = next(iter(self.nodes.values()))
            if self.blocks.writable(node.block):
                self._remove(node)
                freed.append(node.block)
            else:
                self._touch(node)  # a sequence reads it: in use now
        return freed
        # END TASK

    def _touch(self, node: Node) -> None:
        """Mark a node as used now, and after it each of its ancestors."""
        while node.parent is not None:
            self.nodes.move_to_end(node.block)
            node = node.parent

    def _add(self, parent: Node, tokens: tuple[int, ...], block: int) -> Node:
        node = Node(tokens, block, hash((parent.key, tokens)), parent)
        parent.children[tokens] = self.nodes[block] = node
        self.blocks.keep(block)
        self._evicted.pop(node.key, None)
        return node

    def _remove(self, node: Node) -> None:
        assert node.parent is not None and not node.children, "only a leaf can go"
        assert self.blocks.writable(node.block), "a sequence reads the block"
        self._store(node)
        del node.parent.children[node.tokens], self.nodes[node.block]
        self.blocks.drop(node.block)
        self._evicted[node.key] = None
        if len(self._evicted) > 4 * self.blocks.num_blocks:
            self._evicted.popitem(last=False)

    def restore(
        self, tokens: Sequence[int], begin: int, limit: int, allocate: Callable[[], int], avoid: Set[int]
    ) -> Restored:
        """Load up to `limit` blocks of tokens[begin:-1] from the tier into new blocks, none of them in `avoid`.

        `avoid` are the blocks that a planned copy still reads or writes.
        """
        spared: list[int] = []

        def fresh() -> int:
            while (block := allocate()) in avoid:
                spared.append(block)
            return block

        read = self._read(tokens, begin, limit, fresh)
        for block in spared:
            self.blocks.free(block)
        return read

    def _read(self, tokens: Sequence[int], begin: int, limit: int, allocate: Callable[[], int]) -> Restored:
        blocks: list[int] = []
        if self.tier is None:
            return Restored(blocks)
        for place in islice(addresses(tokens[:-1], self.blocks.block_size), begin // self.blocks.block_size, None):
            if place not in self.tier:
                break
            if len(blocks) == limit:
                return Restored(blocks, more=True)
            block = allocate()
            fault = self.tier.load(place, block)
            if fault:
                self.blocks.free(block)
                return Restored(blocks, fault)
            blocks.append(block)
        return Restored(blocks)

    def save(self) -> None:
        """Store all blocks in the tier, so that a later run finds them."""
        for node in self.nodes.values():
            self._store(node)

    def _store(self, node: Node) -> None:
        if self.tier:
            *_, place = addresses(self.path(node.block), self.blocks.block_size)
            self.tier.store(place, node.block)

    def forget(self) -> None:
        """Evict all blocks without readers, and do not store them, because their contents are lost."""
        tier, self.tier = self.tier, None
        self.evict(self.blocks.num_blocks)
        self.tier = tier

    def path(self, block: int) -> list[int]:
        """Return the tokens from the root to the end of a node's block."""
        node, parts = self.nodes[block], list[tuple[int, ...]]()
        while node.parent is not None:
            parts.append(node.tokens)
            node = node.parent
        return [token for part in reversed(parts) for token in part]

    def check(self) -> None:
        """Assert that each node has its own block, links agree, and each node is before its parent. Takes O(nodes)."""
        order = {block: place for place, block in enumerate(self.nodes)}
        order[self.root.block] = len(order)
        for block, node in self.nodes.items():
            parent = node.parent
            assert node.block == block
            assert len(node.tokens) == self.blocks.block_size
            assert parent is not None
            assert parent.children[node.tokens] is node, "a link is broken"
            assert order[parent.block] > order[block], "a node is used later than its parent"
        children = len(self.root.children) + sum(len(node.children) for node in self.nodes.values())
        assert children == len(self.nodes), "a node is lost"


def addresses(tokens: Sequence[int], size: int) -> Iterator[str]:
    """Yield an address for each whole block: a digest of the tokens up to its end, the same in every process."""
    digest = sha256()
    for end in range(size, len(tokens) + 1, size):
        digest.update(array("q", tokens[end - size : end]).tobytes())
        yield digest.hexdigest()


def _most_common(node: Node, following: Sequence[int]) -> int:
    """Return the length of the longest common prefix of these tokens and a block below `node`."""
    return max((_common(child.tokens, following) for child in node.children.values()), default=0)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the length of the common prefix of two rows."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))

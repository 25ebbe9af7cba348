"""The prefix tree with keys made first."""

from tiny_llm.engine.radix import Match


class RadixTree:
    def match(self, tokens, held=(), head=0):
        node = self.nodes.get(held[-1], self.root) if held else self.root
        if held and node is self.root:
            return Match([], 0, "")
        size, path = self.blocks.block_size, [node]
        keys = [tuple(tokens[i : i + size]) for i in range(len(held) * size, len(tokens) - size, size)]
        for key in keys:
            if key not in path[-1].children:
                break
            path.append(path[-1].children[key])
        self._touch(path[-1])
        found = [n.block for n in path[1:]]
        reason = self._reason(path[-1], tokens, size * (len(held) + len(found)), head)
        return Match(found, size * len(found), reason)

    def insert(self, tokens, blocks):
        size, node, table = self.blocks.block_size, self.root, [*blocks]
        keys = [tuple(tokens[i : i + size]) for i in range(0, len(tokens) - size + 1, size)]
        for i, key in enumerate(keys):
            known = node.children.get(key)
            node = known or self._add(node, key, table[i])
            if node.block != table[i]:
                self.blocks.free(table[i])
                self.blocks.share(node.block)
                table[i] = node.block
        self._touch(node)
        return table

    def evict(self, count):
        freed = []
        for _ in range(min(count, self.blocks.num_evictable)):
            node = next(n for n in self.nodes.values() if self.blocks.ref_count(n.block) == 1)
            self._remove(node)
            freed.append(node.block)
        return freed

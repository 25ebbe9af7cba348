"""The prefix tree, children one by one."""

from tiny_llm.engine.radix import Match


class RadixTree:
    def match(self, tokens, held=(), head=0):
        node = self.root
        if held:
            if held[-1] not in self.nodes:
                return Match([], 0, "")
            node = self.nodes[held[-1]]
        size = self.blocks.block_size
        at, found, going = len(held) * size, [], True
        while going and len(tokens) - at > size:
            going = False
            for key, child in node.children.items():
                if list(key) == list(tokens[at : at + size]):
                    node, going = child, True
            if going:
                found.append(node.block)
                at += size
        self._touch(node)
        return Match(found, len(found) * size, self._reason(node, tokens, at, head))

    def insert(self, tokens, blocks):
        node, size, table = self.root, self.blocks.block_size, []
        for i, block in enumerate(blocks):
            words = tuple(tokens[i * size : (i + 1) * size])
            if len(words) < size:
                table.append(block)
                continue
            if words not in node.children:
                self._add(node, words, block)
            elif node.children[words].block != block:
                self.blocks.share(node.children[words].block)
                self.blocks.free(block)
            node = node.children[words]
            table.append(node.block)
        self._touch(node)
        return table

    def evict(self, count):
        freed = []
        while self.blocks.num_evictable > 0 and count > len(freed):
            for node in list(self.nodes.values()):
                if self.blocks.ref_count(node.block) > 1:
                    self._touch(node)
                    continue
                self._remove(node)
                freed.append(node.block)
                break
        return freed

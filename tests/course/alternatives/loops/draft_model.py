"""Token by token."""


class FilledBlocks:
    def count(self, sequence):
        size = self.blocks.block_size
        for position in range(len(sequence.tokens) - 1):
            number, slot = position // size, position % size
            if number >= len(sequence.block_table):
                return position
            block = sequence.block_table[number]
            if block not in self._filled or self._filled[block].uses != self.blocks.uses[block]:
                return position
            held = self._filled[block].tokens
            if slot >= len(held) or held[slot] != sequence.tokens[position]:
                return position
        return len(sequence.tokens) - 1

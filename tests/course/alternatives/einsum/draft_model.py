"""All tokens that are held, in one row, and the text's beside them."""


class FilledBlocks:
    def count(self, sequence):
        held = []
        for block in sequence.block_table:
            filled = self._filled.get(block)
            if filled is None or filled.uses != self.blocks.uses[block]:
                break
            held += filled.tokens
            if len(filled.tokens) != self.blocks.block_size:
                break
        same = [mine == wanted for mine, wanted in zip(held, sequence.tokens[:-1], strict=False)]
        return [*same, False].index(False)

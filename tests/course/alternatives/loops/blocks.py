"""The allocator, counting anew."""


class BlockPool:
    def free(self, block):
        if self._ref_counts[block] == 0:
            raise AssertionError(f"block {block} is free already")
        self._ref_counts[block] = self._ref_counts[block] - 1
        self.num_evictable = 0
        for i in range(self.num_blocks):
            if self._kept[i] and self._ref_counts[i] == 1:
                self.num_evictable += 1
        if self._ref_counts[block] == 0:
            self._free += [block]

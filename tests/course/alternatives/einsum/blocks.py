"""The allocator, by cases."""


class BlockPool:
    def free(self, block):
        left = self._ref_counts[block] - 1
        assert left >= 0, f"block {block} is free already"
        self._ref_counts[block] = left
        if left == 0:
            self._free.append(block)
        elif left == 1 and self._kept[block]:
            self.num_evictable += 1

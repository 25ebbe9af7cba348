"""Waiting sequences: earliest due first within a tenant; across tenants the one with the fewest tokens per weight.

Every operation is O(log n): heaps whose outdated entries are dropped when they come to the top.
"""

from collections import defaultdict
from collections.abc import Mapping
from heapq import heapify, heappop, heappush

from tiny_llm.engine.request import Sequence, State

Rank = tuple[float, int]
MAX_IDLE = 4096  # tenants without a waiting request whose counters are kept


class Waiting:
    """Sequences that wait, by tenant (the virtual token counter of arXiv:2401.00588)."""

    def __init__(self, weights: Mapping[str, float]):
        self.weights, self.size = weights, 0
        self.counters: dict[str, float] = defaultdict(float)  # tokens served / weight
        self._lines: dict[str, list[tuple[Rank, Sequence]]] = {}
        self._heads: list[tuple[float, Rank, str]] = []  # each tenant that waits, with its counter and its first rank
        self._now = 0.0  # the counter of the tenant served last
        self._cancelled = 0

    def __len__(self) -> int:
        return self.size

    def push(self, sequence: Sequence) -> None:
        """Join the line. A tenant that was idle earns no credit for that time."""
        self.size += 1  # first: a sequence that is half in the line can be cancelled like any other
        tenant = sequence.request.tenant
        if tenant not in self._lines:
            if len(self.counters) > 2 * (len(self._lines) + MAX_IDLE):
                self._forget_idle()
            self._lines[tenant] = []
            self.counters[tenant] = max(self.counters[tenant], self._now)
        heappush(self._lines[tenant], (sequence.rank, sequence))
        if self._lines[tenant][0][1] is sequence:
            heappush(self._heads, (self.counters[tenant], sequence.rank, tenant))

    def peek(self) -> Sequence | None:
        """Who is next."""
        while self._heads:
            counter, rank, tenant = self._heads[0]
            line = self._lines.get(tenant, [])
            while line and line[0][1].state is not State.WAITING:
                heappop(line)
                self._cancelled -= 1
            if not line:
                heappop(self._heads)
                self._lines.pop(tenant, None)
            elif (counter, rank) == (self.counters[tenant], line[0][0]):
                self._now = max(self._now, counter)
                return line[0][1]
            else:  # served or changed since: back to its proper place
                heappop(self._heads)
                heappush(self._heads, (self.counters[tenant], line[0][0], tenant))
        return None

    def pop(self) -> Sequence:
        """Take out the one that `peek` shows."""
        sequence = self.peek()
        assert sequence is not None, "nobody waits"
        heappop(self._lines[sequence.request.tenant])
        self.size -= 1
        return sequence

    def cancelled(self, sequence: Sequence) -> None:
        """A waiting sequence has finished; its entry goes when it comes up, or when half of all are such."""
        self.size -= 1
        self._cancelled += 1
        if self._cancelled > self.size + 16:
            self._cancelled = 0
            for line in self._lines.values():
                line[:] = [item for item in line if item[1].state is State.WAITING]
                heapify(line)

    def _forget_idle(self) -> None:
        """Drop the counters of idle tenants except the MAX_IDLE highest: a client may name a new one each time."""
        idle = [tenant for tenant in self.counters if tenant not in self._lines]
        idle.sort(key=self.counters.__getitem__)
        for tenant in idle[:-MAX_IDLE]:
            del self.counters[tenant]

    def charge(self, tenant: str, num_tokens: int) -> None:
        """The tenant was served."""
        self.counters[tenant] += num_tokens / self.weights.get(tenant, 1.0)

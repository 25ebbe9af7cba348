"""The buckets' states as sums."""

from tiny_llm.server.errors import over_rate
from tiny_llm.server.rates import MINUTE


class Bucket:
    def wait(self, units, now):
        since, self.now = now - self.now, now
        self.left = min(sum((self.left, since / MINUTE * self.limit)), self.limit)
        missing = units - self.left
        return missing / self.limit * MINUTE if missing > 0 else 0.0


class Use:
    def admit(self, now):
        refusals = []
        if self.key.concurrent is not None and self.key.concurrent <= self.running:
            refusals.append(("concurrent", self.key.concurrent, 1.0))
        for kind in ("requests", "tokens"):
            bucket = getattr(self, kind)
            seconds = bucket.wait(1.0, now) if bucket else 0
            if seconds:
                refusals.append((kind, bucket.limit, seconds))
        if refusals:
            raise over_rate(*refusals[0])
        self.running = self.running + 1
        if self.requests:
            self.requests.left = self.requests.left - 1

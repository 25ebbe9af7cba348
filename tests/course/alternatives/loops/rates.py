"""Counted first, and taken back."""

from tiny_llm.server.errors import over_rate
from tiny_llm.server.rates import MINUTE


class Bucket:
    def wait(self, units, now):
        per_second = self.limit / MINUTE
        self.left += per_second * (now - self.now)
        if self.left > self.limit:
            self.left = float(self.limit)
        self.now = now
        if self.left >= units:
            return 0.0
        return (units - self.left) / per_second


class Use:
    def admit(self, now):
        if self.running == self.key.concurrent:
            raise over_rate("concurrent", self.key.concurrent, 1)
        self.running += 1
        try:
            if self.requests is not None:
                seconds = self.requests.wait(1, now)
                if seconds > 0:
                    raise over_rate("requests", self.requests.limit, seconds)
            if self.tokens is not None:
                seconds = self.tokens.wait(1, now)
                if seconds > 0:
                    raise over_rate("tokens", self.tokens.limit, seconds)
        except Exception:
            self.running -= 1
            raise
        if self.requests is not None:
            self.requests.left -= 1

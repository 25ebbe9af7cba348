"""What every training has to settle, whatever the model learns."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How long training goes on, what a step is and how far it goes."""

    tokens: int  # to train on, all in all
    seed: int = 1
    batches: int = 1  # of a step; processes share them
    muon_rate: float = 0.01
    adam_rate: float = 1e-3
    warmup_steps: int = 50
    decay_share: float = 0.35  # of all tokens, at the end
    final_rate: float = 0.05
    clip: float = 1.0

    def rate(self, step: int, tokens: int) -> float:
        """The learning rates' factor: a short warm-up, constant, then linear down to `final_rate`."""
        left = 1 - tokens / self.tokens
        decay = min(1.0, max(0.0, left) / self.decay_share)
        return min(1.0, (step + 1) / self.warmup_steps) * (self.final_rate + (1 - self.final_rate) * decay)

"""Settings that every training run has, whatever the model learns."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Length of the run, size of a step and learning rates. Shares are of the tokens that the run itself trains on."""

    tokens: int  # to train on, those of the model that the run goes on from included
    seed: int = 1
    batches: int = 1  # of a step; processes share them
    muon_rate: float = 0.01
    adam_rate: float = 1e-3
    warmup_steps: int = 50
    decay_share: float = 0.35  # the learning rates fall over this share, at the end
    final_rate: float = 0.0
    average_share: float = 0.1  # the weights are averaged over this share, at the end
    clip: float = 1.0
    balance: float = 0.0  # how much the balance loss of experts counts

    def rate(self, step: int, left: float) -> float:
        """Return the learning rates' factor: a short warm-up, constant, then linear down to `final_rate`.

        `left` is the share of the run's tokens that are still to come.
        """
        warmup = min(1.0, (step + 1) / self.warmup_steps)
        decay = min(1.0, max(0.0, left) / self.decay_share)
        return warmup * (self.final_rate + (1 - self.final_rate) * decay)

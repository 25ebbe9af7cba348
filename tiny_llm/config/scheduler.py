"""How the serving engine shares a step, the pool and the waiting line."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tiny_llm.config.fields import is_finite, is_integer, require, shown


@dataclass(frozen=True)
class SchedulerConfig:
    """How the serving engine shares a step, the pool and the waiting line.

    `token_budget`: tokens a step may hold, decodes and prompt chunks together. `max_sequences`: sequences that run at
    once. `step_seconds`: the time between tokens that steps shall keep to: the token budget then follows the measured
    speed of the machine, and `token_budget` is only the most that it may be. `patience`: seconds after which a request
    without a deadline is due. `priority_seconds`: how much earlier one level of priority makes a request due.
    `weights`: a tenant's share of the tokens beside the others', 1 unless given.
    """

    token_budget: int = 512
    max_sequences: int = 32
    patience: float = 10.0
    priority_seconds: float = 10.0
    weights: Mapping[str, float] = field(default_factory=dict)
    step_seconds: float | None = None

    def __post_init__(self) -> None:
        for name in ("token_budget", "max_sequences"):
            value = getattr(self, name)
            ok = is_integer(value) and value >= 1
            require(ok, f"{name}: expected an integer of at least 1, found {shown(value)}")
        require(
            self.token_budget >= self.max_sequences,
            f"token_budget: expected at least max_sequences ({self.max_sequences}), a token for each sequence, "
            f"found {self.token_budget}",
        )
        ok = self.step_seconds is None or (is_finite(self.step_seconds) and self.step_seconds > 0)
        require(ok, f"step_seconds: expected seconds above 0, found {shown(self.step_seconds)}")
        for name, value in (("patience", self.patience), ("priority_seconds", self.priority_seconds)):
            ok = is_finite(value) and value >= 0
            require(ok, f"{name}: expected seconds from 0 up, found {shown(value)}")
        require(
            isinstance(self.weights, Mapping), f"weights: expected tenants with numbers, found {shown(self.weights)}"
        )
        for tenant, weight in self.weights.items():
            ok = is_finite(weight) and weight > 0
            require(ok, f"weights: expected a number above 0 for {shown(tenant)}, found {shown(weight)}")

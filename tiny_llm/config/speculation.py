"""How the engine guesses the next tokens of an answer."""

from dataclasses import dataclass
from typing import Literal

from tiny_llm.config.fields import is_finite, is_integer, require, shown

DRAFTERS = ("none", "suffix", "draft", "lookahead", "medusa", "eagle")
USUAL = {"suffix": 8, "draft": 4, "lookahead": 24, "medusa": 12, "eagle": 12}  # guesses of a step at most
WITH_WEIGHTS = ("draft", "medusa", "eagle")
MOST_BEAMS = 16
MOST_GUESSES = 63  # a tree of drafts has at most 64 nodes, the last verified token among them


@dataclass(frozen=True)
class SpeculationConfig:
    """How the engine guesses the next tokens of an answer, which it then verifies many at a time.

    `drafter`: "none", "suffix" (what followed the same words before, in the prompt, in this answer or in the tenant's
    earlier answers), "draft" (a small model), "lookahead" (the model itself, see `engine.lookahead`), "medusa" (heads
    on the model's last layer) or "eagle" (a layer on the outputs of three layers). `model`: the directory, GGUF file or
    name of a draft model, or the directory of heads; None stands for those that ship with the model inside.
    `max_draft`: guesses of a sequence in a step, at most; None takes the drafter's usual number. `p_min`: a guess is
    left out where the drafter gives less than this probability to all guesses up to it being right; lookahead knows no
    probabilities. `beams`: lines at each level of eagle's tree, 1 for a chain. `adaptive`: choose
    the number of guesses for each step by measured times, 0 included; without it a drafter always makes as many as it
    can.
    """

    drafter: Literal["none", "suffix", "draft", "lookahead", "medusa", "eagle"] = "none"
    max_draft: int | None = None
    p_min: float = 0.3
    model: str | None = None
    beams: int = 4
    adaptive: bool = True

    def __post_init__(self) -> None:
        require(
            self.drafter in DRAFTERS,
            f"drafter: expected one of {', '.join(DRAFTERS)}, found {shown(self.drafter)}",
        )
        require(
            self.model is None or (self.drafter in WITH_WEIGHTS and isinstance(self.model, str)),
            f"draft_model: {shown(self.model)} is for {', '.join(WITH_WEIGHTS)}, found {self.drafter}; leave it out",
        )
        require(isinstance(self.adaptive, bool), f"adaptive: expected true or false, found {shown(self.adaptive)}")
        require(
            is_integer(self.beams) and 1 <= self.beams <= MOST_BEAMS,
            f"beams: expected an integer from 1 to {MOST_BEAMS}, found {shown(self.beams)}",
        )
        require(
            self.max_draft is None or (is_integer(self.max_draft) and 1 <= self.max_draft <= MOST_GUESSES),
            f"max_draft: expected an integer from 1 to {MOST_GUESSES}, found {shown(self.max_draft)}",
        )
        require(
            is_finite(self.p_min) and 0 <= self.p_min <= 1,
            f"p_min: expected a probability from 0 to 1, found {shown(self.p_min)}",
        )

    @property
    def most(self) -> int:
        """Guesses of a sequence in a step, at most."""
        return self.max_draft or USUAL.get(self.drafter, 0)

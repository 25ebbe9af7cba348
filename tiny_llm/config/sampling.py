"""What a request asks of decoding."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from tiny_llm.config.fields import require
from tiny_llm.config.structured import Structured


def _fits(value: Any, low: float, high: float, whole: bool = False) -> bool:
    kinds = int if whole else (int, float)
    return isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value) and low <= value <= high


@dataclass(frozen=True)
class SamplingParams:
    """What a request asks of decoding. The defaults are neutral: they change nothing about the model's distribution.

    temperature 0 is greedy. top_k 0 is off. `logprobs` None is off, N returns the N likeliest beside the chosen token.
    `stop` strings end the text before them; `stop_token_ids` and the model's own eos end it, unless `ignore_eos`.
    `seed` None draws a fresh one. `n` independent samples; `beam_width` above 1 searches instead of sampling and
    ranks by log-probability / length ** `length_penalty`. `structured` is the form that the answer must have; its
    log-probabilities are then those among the tokens that the form allows.
    """

    max_tokens: int = 512
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    n: int = 1
    beam_width: int = 1
    length_penalty: float = 1.0
    structured: Structured | None = None

    def __post_init__(self) -> None:
        for name, low, high, whole in _SAMPLING_RANGES:
            value = getattr(self, name)
            ok = (value is None and name in ("logprobs", "seed")) or _fits(value, low, high, whole)
            kind = "an integer" if whole else "a number"
            require(ok, f"{name}: expected {kind} from {low:.12g} to {high:.12g}, found {value!r}")
        require(
            isinstance(self.stop, tuple) and all(isinstance(s, str) and s for s in self.stop),
            f"stop: expected a tuple of non-empty strings, found {self.stop!r}",
        )
        require(
            isinstance(self.stop_token_ids, tuple) and all(_fits(t, 0, 2**31, True) for t in self.stop_token_ids),
            f"stop_token_ids: expected a tuple of token ids, found {self.stop_token_ids!r}",
        )
        for token, bias in dict(self.logit_bias).items():
            ok = _fits(token, 0, 2**31, True) and _fits(bias, -100, 100)
            require(ok, f"logit_bias: expected token ids with values from -100 to 100, found {token!r}: {bias!r}")
        found = self.structured
        require(
            found is None or isinstance(found, Structured),
            f"structured: expected a Structured, found {found!r}",
        )
        require(found is None or not self.ignore_eos, "ignore_eos: a structured answer ends where its form is complete")
        if self.beam_width > 1:
            require(self.n <= self.beam_width, f"n: expected at most beam_width ({self.beam_width}), found {self.n}")
            for name, neutral in (*_NOT_FOR_BEAMS, ("logit_bias", {}), ("stop", ())):
                value = getattr(self, name)
                require(
                    value == neutral, f"{name}: beam search has no use for it, expected {neutral!r}, found {value!r}"
                )

    @classmethod
    def resolve(cls, *layers: Mapping[str, Any]) -> "SamplingParams":
        """Merge settings, the first layer that has a value wins (request, command line, generation config).

        None means "not set". Raises ValueError for an unknown name, and where the first layer asks for beams and for
        what only drawing knows; the other layers may hold that.
        """
        known = {f.name for f in fields(cls)}
        merged: dict[str, Any] = {}
        for layer in layers:
            for name, value in layer.items():
                require(name in known, f"{name}: unknown sampling parameter; known are {', '.join(sorted(known))}")
                if value is not None:
                    merged.setdefault(name, value)
        params = cls(**merged)
        for name in _DRAWING if params.beam_width > 1 and layers else ():
            asked = layers[0].get(name)
            require(asked is None, f"{name}: beam search draws nothing, leave it out; found {asked!r}")
        return params


_NOT_FOR_BEAMS = (
    ("repetition_penalty", 1.0),
    ("presence_penalty", 0.0),
    ("frequency_penalty", 0.0),
    ("logprobs", None),
    ("structured", None),
)
_DRAWING = ("temperature", "top_k", "top_p", "min_p", "seed")
_SAMPLING_RANGES = (
    ("max_tokens", 1, 2**31, True),
    ("temperature", 0, 100, False),
    ("top_k", 0, 2**31, True),
    ("top_p", 0, 1, False),
    ("min_p", 0, 1, False),
    ("repetition_penalty", 1e-6, 1e6, False),
    ("presence_penalty", -2, 2, False),
    ("frequency_penalty", -2, 2, False),
    ("n", 1, 128, True),
    ("beam_width", 1, 64, True),
    ("length_penalty", -10, 10, False),
    ("logprobs", 0, 20, True),
    ("seed", 0, 2**64 - 1, True),
)

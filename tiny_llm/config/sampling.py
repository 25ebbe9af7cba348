"""What a request asks of decoding."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from tiny_llm.config.fields import is_finite, is_integer, require, shown
from tiny_llm.config.structured import Structured

MAX_STOPS = 64
MAX_STOP_LENGTH = 1000  # characters; with MAX_STOPS it bounds what looking for stop strings costs for each token


@dataclass(frozen=True)
class SamplingParams:
    """What a request asks of decoding. The defaults are neutral: they change nothing about the model's distribution.

    temperature 0 is greedy. top_k 0 is off. `logprobs` None is off, N returns the N likeliest beside the chosen token.
    `stop` strings end the text before them, at most 64 of 1,000 characters each; those in a thought that the prompt or
    the model opened with <think> do not count. `stop_token_ids` and the model's own eos end it, unless `ignore_eos`.
    `thinking_budget` is the most tokens of a thought: then `</think>` is forced, and the answer goes on behind it.
    `skip_special_tokens` False leaves special tokens in the text: some models spell tool calls by them.
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
    thinking_budget: int | None = None
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        for name in _SAMPLING_RANGES:
            _check_range(name, getattr(self, name), name)
        found = self.structured
        require(found is None or isinstance(found, Structured), f"structured: expected a Structured, found {found!r}")
        self._check_ends()
        self._check_bias()
        if self.beam_width > 1:
            self._check_beams()

    @property
    def has_penalty(self) -> bool:
        """Whether the logits depend on the tokens before."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1, 0, 0)

    @property
    def has_rules(self) -> bool:
        """Whether rules beside the model's distribution say which tokens may come next."""
        return self.structured is not None or self.thinking_budget is not None

    def _check_ends(self) -> None:
        """What ends an answer: stop strings, stop tokens, the model's eos; and whether special tokens are text."""
        _check_stop(self.stop, "stop")
        ids = self.stop_token_ids
        ok = isinstance(ids, tuple) and all(_fits(token, 0, 2**31, True) for token in ids)
        require(ok, f"stop_token_ids: expected a tuple of token ids, found {shown(ids)}")
        for name in ("ignore_eos", "skip_special_tokens"):
            found = getattr(self, name)
            require(isinstance(found, bool), f"{name}: expected true or false, found {shown(found)}")
        require(
            self.structured is None or not self.ignore_eos,
            "ignore_eos: a structured answer ends where its form is complete",
        )

    def _check_bias(self) -> None:
        biases = self.logit_bias
        require(isinstance(biases, Mapping), f"logit_bias: expected token ids with values, found {shown(biases)}")
        object.__setattr__(self, "logit_bias", dict(biases))  # the caller's own may change while the request runs
        for token, bias in self.logit_bias.items():
            ok = _fits(token, 0, 2**31, True) and _fits(bias, -100, 100)
            expected = "expected token ids with values from -100 to 100"
            require(ok, f"logit_bias: {expected}, found {shown(token)}: {shown(bias)}")

    def _check_beams(self) -> None:
        require(self.n <= self.beam_width, f"n: expected at most beam_width ({self.beam_width}), found {self.n}")
        for name, neutral in (*_NOT_FOR_BEAMS, ("logit_bias", {}), ("stop", ())):
            value = getattr(self, name)
            require(
                value == neutral,
                f"{name}: beam search can't do that yet, expected {neutral!r}, found {shown(value)}; "
                "set beam_width to 1 or leave it out",
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


def check_token_ids(params: SamplingParams, vocab_size: int) -> None:
    """Raise ValueError for a token id in `params` that is outside a model's vocabulary of `vocab_size` ids."""
    for name, ids in (("logit_bias", params.logit_bias), ("stop_token_ids", params.stop_token_ids)):
        bad = next((token for token in ids if token >= vocab_size), None)
        require(
            bad is None, f"{name}: expected token ids from 0 to {vocab_size - 1}, the model's vocabulary, found {bad}"
        )


def check_setting(name: str, value: Any, called: str) -> None:
    """Raise ValueError for a value that the setting `name` can't have. The error calls the setting `called`.

    `name`: one with a range, or stop.
    """
    if name == "stop":
        _check_stop(value, called)
    else:
        _check_range(name, value, called)


def _check_range(name: str, value: Any, called: str) -> None:
    low, high, whole = _SAMPLING_RANGES[name]
    if value is None and name in ("logprobs", "seed", "thinking_budget"):
        return
    kind = "an integer" if whole else "a number"
    expected = f"{kind} from {low:.12g} to {high:.12g}"
    require(_fits(value, low, high, whole), f"{called}: expected {expected}, found {shown(value)}")


def _check_stop(stop: Any, called: str) -> None:
    ok = isinstance(stop, tuple) and all(isinstance(text, str) and text for text in stop)
    require(ok, f"{called}: expected a tuple of non-empty strings, found {shown(stop)}")
    require(len(stop) <= MAX_STOPS, f"{called}: expected at most {MAX_STOPS} strings, found {len(stop)}")
    longest = max(map(len, stop), default=0)
    require(
        longest <= MAX_STOP_LENGTH, f"{called}: expected at most {MAX_STOP_LENGTH} characters each, found {longest}"
    )


def _fits(value: Any, low: float, high: float, whole: bool = False) -> bool:
    right = is_integer(value) if whole else is_finite(value)
    return right and bool(low <= value <= high)


_NOT_FOR_BEAMS = (
    ("repetition_penalty", 1.0),
    ("presence_penalty", 0.0),
    ("frequency_penalty", 0.0),
    ("logprobs", None),
    ("structured", None),
    ("thinking_budget", None),
    ("skip_special_tokens", True),
)
_DRAWING = ("temperature", "top_k", "top_p", "min_p", "seed")
_SAMPLING_RANGES: Mapping[str, tuple[float, float, bool]] = {
    "max_tokens": (1, 2**31, True),
    "temperature": (0, 100, False),
    "top_k": (0, 2**31, True),
    "top_p": (0, 1, False),
    "min_p": (0, 1, False),
    "repetition_penalty": (1e-6, 1e6, False),
    "presence_penalty": (-2, 2, False),
    "frequency_penalty": (-2, 2, False),
    "n": (1, 128, True),
    "beam_width": (1, 64, True),
    "length_penalty": (-10, 10, False),
    "logprobs": (0, 20, True),
    "seed": (0, 2**64 - 1, True),
    "thinking_budget": (0, 2**31, True),
}

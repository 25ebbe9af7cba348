"""Everything that is set before a model runs: its shape, the engine's options, a request's sampling.

All classes are frozen; each checks itself when it is made and refuses what it does not know.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from tiny_llm.json_fields import JsonFields, require

ARCHITECTURES = ("qwen2", "qwen3")
ROPE_KINDS = ("default", "linear", "yarn", "llama3")
QUANTIZED_BITS = (2, 3, 4, 6, 8)
GROUP_SIZES = (32, 64, 128)


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding and how it is stretched beyond the training length.

    `kind` "linear" divides positions by `factor`; "yarn" is arXiv:2309.00071; "llama3" is the scheme of Llama 3.1.
    """

    theta: float = 10000.0
    kind: Literal["default", "linear", "yarn", "llama3"] = "default"
    factor: float = 1.0
    original_max_position_embeddings: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 0.0
    attention_factor: float | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0

    @classmethod
    def from_hf(cls, config: JsonFields, max_position_embeddings: int) -> "RopeConfig":
        """Both generations: `rope_theta` and `rope_scaling` at the top, or all of it under `rope_parameters`."""
        scaling = config.table("rope_parameters") or config.table("rope_scaling")
        source = scaling if scaling and "rope_theta" in scaling.data else config
        theta = source.number("rope_theta", 10000.0)
        if scaling is None:
            return cls(theta)
        kind = scaling.choice("rope_type" if "rope_type" in scaling.data else "type", ROPE_KINDS, "default")
        if kind == "default":
            return cls(theta)
        optional = (
            {"attention_factor": scaling.number("attention_factor")} if scaling.data.get("attention_factor") else {}
        )
        rope = cls(
            theta,
            kind,
            factor=scaling.number("factor"),
            original_max_position_embeddings=scaling.integer(
                "original_max_position_embeddings", max_position_embeddings
            ),
            beta_fast=scaling.number("beta_fast", 32.0),
            beta_slow=scaling.number("beta_slow", 1.0),
            mscale=scaling.number("mscale", 1.0, low=-1e-9),
            mscale_all_dim=scaling.number("mscale_all_dim", 0.0, low=-1e-9),
            low_freq_factor=scaling.number("low_freq_factor", 1.0),
            high_freq_factor=scaling.number("high_freq_factor", 4.0),
            **optional,
        )
        require(
            kind != "llama3" or rope.high_freq_factor > rope.low_freq_factor,
            f"{scaling.source}: high_freq_factor: expected a number above low_freq_factor "
            f"({rope.low_freq_factor:g}), found {rope.high_freq_factor:g}",
        )
        return rope


@dataclass(frozen=True)
class QuantizationConfig:
    """Group-affine weight quantization as MLX writes it; `layers` holds a layer path's own settings, None for dense."""

    bits: int
    group_size: int
    layers: Mapping[str, "QuantizationConfig | None"] = field(default_factory=dict)

    @classmethod
    def from_hf(cls, table: JsonFields) -> "QuantizationConfig":
        table.choice("mode", ("affine",), "affine")
        layers: dict[str, QuantizationConfig | None] = {}
        for path, value in table.data.items():
            if isinstance(value, Mapping):
                layers[path] = cls.from_hf(JsonFields(value, f"{table.source}: {path}"))
            elif value is False:
                layers[path] = None
        return cls(
            table.choice("bits", QUANTIZED_BITS),
            table.choice("group_size", GROUP_SIZES),
            layers,
        )


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a Qwen2, Qwen2.5 or Qwen3 dense model. Sizes are in elements."""

    model_type: Literal["qwen2", "qwen3"]
    hidden_size: int
    num_hidden_layers: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope: RopeConfig
    tie_word_embeddings: bool
    qkv_bias: bool
    qk_norm: bool
    sliding_window: int | None = None
    sliding_layers: tuple[int, ...] = ()
    quantization: QuantizationConfig | None = None

    def window_of(self, layer: int) -> int | None:
        """How many keys a query of this layer sees at most, itself included; None for all."""
        return self.sliding_window if layer in self.sliding_layers else None

    @classmethod
    def from_hf(cls, data: Mapping[str, Any], source: str = "config.json") -> "ModelConfig":
        """Read a parsed Hugging Face `config.json`. Raises ValueError naming `source`, key, expected and found."""
        config = JsonFields(data, source)
        model_type = config.choice("model_type", ARCHITECTURES)
        hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
        kv_heads = config.integer("num_key_value_heads", heads)
        require(
            heads % kv_heads == 0,
            f"{source}: num_key_value_heads: expected a divisor of num_attention_heads ({heads}), found {kv_heads}",
        )
        if data.get("head_dim") is None:
            require(
                hidden % heads == 0,
                f"{source}: num_attention_heads: expected a divisor of hidden_size ({hidden}), found {heads}",
            )
        head_dim = config.integer("head_dim", hidden // heads)
        require(head_dim % 2 == 0, f"{source}: head_dim: expected an even number, found {head_dim}")
        config.choice("hidden_act", ("silu",), "silu")
        layers = config.integer("num_hidden_layers", high=10_000)
        window, sliding = _sliding(config, layers)
        length = config.integer("max_position_embeddings", 32768)
        quantization = config.table("quantization")
        other = config.table("quantization_config")
        require(
            quantization is not None or other is None or "quant_method" not in other.data,
            f"{source}: quantization_config: expected MLX's quantization, found quant_method "
            f"{other and other.data.get('quant_method')!r}; take the model's MLX version (the mlx-community ones)",
        )
        return cls(
            model_type=model_type,
            hidden_size=hidden,
            num_hidden_layers=layers,
            intermediate_size=config.integer("intermediate_size"),
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            vocab_size=config.integer("vocab_size"),
            max_position_embeddings=length,
            rms_norm_eps=config.number("rms_norm_eps", 1e-6),
            rope=RopeConfig.from_hf(config, length),
            tie_word_embeddings=config.flag("tie_word_embeddings", False),
            qkv_bias=config.flag("attention_bias", model_type == "qwen2"),
            qk_norm=model_type == "qwen3",
            sliding_window=window,
            sliding_layers=sliding,
            quantization=QuantizationConfig.from_hf(quantization) if quantization else None,
        )


def _sliding(config: JsonFields, layers: int) -> tuple[int | None, tuple[int, ...]]:
    """The window and the layers that use it: `layer_types`, or all from `max_window_layers` on."""
    if not config.flag("use_sliding_window", False):
        return None, ()
    window = config.integer("sliding_window")
    kinds = config.data.get("layer_types")
    if kinds is None:
        return window, tuple(range(config.integer("max_window_layers", layers, low=0), layers))
    known = ("full_attention", "sliding_attention")
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in known for kind in kinds):
        raise ValueError(f"{config.source}: layer_types: expected {layers} of {known}, found {kinds!r}")
    return window, tuple(i for i, kind in enumerate(kinds) if kind == "sliding_attention")


@dataclass(frozen=True)
class EngineConfig:
    """How the engine runs a model.

    `ops`: "fused" (the fastest implementation of each operation) or "plain" (the readable ones).
    `dtype`: of weights and arithmetic; "auto" is float32 on a CPU and the files' own on a GPU.
    `prefill_chunk`: prompt tokens per forward pass. `max_context`: tokens a sequence may hold, None for the model's.
    """

    ops: Literal["fused", "plain"] = "fused"
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    prefill_chunk: int = 2048
    max_context: int | None = None

    def __post_init__(self) -> None:
        require(self.ops in ("fused", "plain"), f"ops: expected fused or plain, found {self.ops!r}")
        dtypes = ("auto", "float32", "float16", "bfloat16")
        require(self.dtype in dtypes, f"dtype: expected one of {', '.join(dtypes)}, found {self.dtype!r}")
        for name in ("prefill_chunk", "max_context"):
            value = getattr(self, name)
            ok = (value is None and name == "max_context") or (isinstance(value, int) and value >= 1)
            require(ok, f"{name}: expected an integer of at least 1, found {value!r}")


def _fits(value: Any, low: float, high: float, whole: bool = False) -> bool:
    kinds = int if whole else (int, float)
    return isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value) and low <= value <= high


@dataclass(frozen=True)
class SamplingParams:
    """What a request asks of decoding. The defaults are neutral: they change nothing about the model's distribution.

    temperature 0 is greedy. top_k 0 is off. `logprobs` None is off, N returns the N likeliest beside the chosen token.
    `stop` strings end the text before them; `stop_token_ids` and the model's own eos end it, unless `ignore_eos`.
    `seed` None draws a fresh one. `n` independent samples; `beam_width` above 1 searches instead of sampling and
    ranks by log-probability / length ** `length_penalty`.
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

    def __post_init__(self) -> None:
        for name, low, high, whole in _SAMPLING_RANGES:
            value = getattr(self, name)
            kind = "an integer" if whole else "a number"
            require(
                _fits(value, low, high, whole), f"{name}: expected {kind} from {low:g} to {high:g}, found {value!r}"
            )
        if self.logprobs is not None:
            require(_fits(self.logprobs, 0, 20, True), f"logprobs: expected None or 0 to 20, found {self.logprobs!r}")
        if self.seed is not None:
            require(_fits(self.seed, 0, 2**64 - 1, True), f"seed: expected None or 0 to 2^64-1, found {self.seed!r}")
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
        require(
            self.beam_width == 1 or self.n <= self.beam_width,
            f"n: expected at most beam_width ({self.beam_width}), found {self.n}",
        )

    @classmethod
    def resolve(cls, *layers: Mapping[str, Any]) -> "SamplingParams":
        """Merge settings, the first layer that has a value wins (request, command line, generation config).

        None means "not set". Raises ValueError for an unknown name.
        """
        known = {f.name for f in fields(cls)}
        merged: dict[str, Any] = {}
        for layer in layers:
            for name, value in layer.items():
                require(name in known, f"{name}: unknown sampling parameter; known are {', '.join(sorted(known))}")
                if value is not None:
                    merged.setdefault(name, value)
        return cls(**merged)


_INF = float("inf")
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
)

"""A model's shape, read from a Hugging Face config.json of either generation."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tiny_llm.config.fields import JsonFields, require

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
    def of_model(cls, config: JsonFields) -> "QuantizationConfig | None":
        """What config.json says, None for a dense model. Other libraries' quantization is refused."""
        table, other = config.table("quantization"), config.table("quantization_config")
        if table is not None:
            return cls.from_hf(table)
        require(
            other is None or "quant_method" not in other.data,
            f"{config.source}: quantization_config: expected MLX's quantization, found quant_method "
            f"{other and other.data.get('quant_method')!r}; take the model's MLX version (the mlx-community ones)",
        )
        return None

    @classmethod
    def from_hf(cls, table: JsonFields) -> "QuantizationConfig":
        table.choice("mode", ("affine",), "affine")
        layers: dict[str, QuantizationConfig | None] = {}
        for path, value in table.data.items():
            if isinstance(value, Mapping):
                layers[path] = cls.from_hf(JsonFields(value, f"{table.source}: {path}"))
            elif value is False:
                layers[path] = None
        return cls(table.choice("bits", QUANTIZED_BITS), table.choice("group_size", GROUP_SIZES), layers)


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
        config.choice("hidden_act", ("silu",), "silu")
        heads, kv_heads, head_dim = _heads(config)
        layers = config.integer("num_hidden_layers", high=10_000)
        window, sliding = _sliding(config, layers)
        length = config.integer("max_position_embeddings", 32768)
        return cls(
            model_type=model_type,
            hidden_size=config.integer("hidden_size"),
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
            quantization=QuantizationConfig.of_model(config),
        )


def _heads(config: JsonFields) -> tuple[int, int, int]:
    """Query heads, K/V heads and their width, which is hidden_size / heads unless given."""
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    kv_heads = config.integer("num_key_value_heads", heads)
    for name, value, whole, of in (
        ("num_key_value_heads", kv_heads, heads, "num_attention_heads"),
        ("num_attention_heads", heads, hidden if config.data.get("head_dim") is None else heads, "hidden_size"),
    ):
        require(whole % value == 0, f"{config.source}: {name}: expected a divisor of {of} ({whole}), found {value}")
    head_dim = config.integer("head_dim", hidden // heads)
    require(head_dim % 2 == 0, f"{config.source}: head_dim: expected an even number, found {head_dim}")
    return heads, kv_heads, head_dim


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

"""A model's shape, read from a Hugging Face config.json of either generation."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tiny_llm.config.check import check_keys
from tiny_llm.config.fields import JsonFields, as_json, require
from tiny_llm.config.keys import CONFIG
from tiny_llm.config.moe import MoeConfig
from tiny_llm.config.rope import RopeConfig

ARCHITECTURES = ("llama", "qwen2", "qwen3", "qwen2_moe", "qwen3_moe")
QUANTIZED_BITS = (2, 3, 4, 6, 8)
GROUP_SIZES = (32, 64, 128)


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
        method = other.data.get("quant_method") if other else None
        if table is None:
            require(
                method is None,
                f"{config.source}: quantization_config: expected MLX's quantization, found quant_method "
                f"{method!r:.40}; take the model's MLX version (the mlx-community ones)",
            )
            return cls.from_hf(other) if other and other.data else None
        found = cls.from_hf(table)
        if other and other.data and method is None:
            require(
                cls.from_hf(other) == found,
                f"{config.source}: quantization_config: expected what quantization says, found {other.data!r:.100}; "
                "remove the wrong one",
            )
        return found

    @classmethod
    def from_hf(cls, table: JsonFields) -> "QuantizationConfig":
        table.choice("mode", ("affine",), "affine")
        layers: dict[str, QuantizationConfig | None] = {}
        for path, value in table.data.items():
            if isinstance(value, Mapping):
                layers[path] = cls.from_hf(JsonFields(value, f"{table.source}: {path}"))
            elif value is False:
                layers[path] = None
            elif path not in ("bits", "group_size", "mode") and value not in (True, None):
                raise ValueError(
                    f"{table.source}: {path}: expected bits, group_size, mode or a layer's own settings, "
                    f"found {value!r:.100}"
                )
        return cls(table.choice("bits", QUANTIZED_BITS), table.choice("group_size", GROUP_SIZES), layers)


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a Llama, Qwen2, Qwen2.5 or Qwen3 model, dense or with experts. Sizes are in elements."""

    model_type: Literal["llama", "qwen2", "qwen3", "qwen2_moe", "qwen3_moe"]
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
    mlp_bias: bool = False
    moe: MoeConfig | None = None

    @property
    def o_bias(self) -> bool:
        """Whether the output projection has a bias: with `qkv_bias` it has one, but not in a Qwen2."""
        return self.qkv_bias and self.model_type not in ("qwen2", "qwen2_moe")

    @property
    def max_context(self) -> int:
        """How many tokens a text may have: `max_position_embeddings`, or more where YaRN stretches positions."""
        return self.rope.max_context(self.max_position_embeddings)

    def context(self, wanted: int | None) -> int:
        """`wanted` tokens of context, all there is with None. Raises ValueError for more than there is."""
        limit = self.max_context
        reason = "the model's max_position_embeddings"
        remedy = "lower max_context, or add the rope_scaling that the model's makers name"
        if limit > self.max_position_embeddings:
            reason = f"YaRN's factor {self.rope.factor:g} times {self.rope.original_max_position_embeddings} positions"
            remedy = "lower max_context, or set the factor of rope_scaling that the model's makers name"
        return context_within(wanted, limit, reason, remedy)

    def window_of(self, layer: int) -> int | None:
        """How many keys a query of this layer sees at most, itself included; None for all."""
        return self.sliding_window if layer in self.sliding_layers else None

    @classmethod
    def from_hf(cls, data: Mapping[str, Any], source: str = "config.json") -> "ModelConfig":
        """Read a parsed Hugging Face `config.json`. Raises ValueError naming `source`, key, expected and found."""
        config = JsonFields(data, source)
        model_type = config.choice("model_type", ARCHITECTURES)
        check_keys(config, CONFIG)
        _check_head(config)
        config.choice("hidden_act", ("silu", "swish"), "silu")
        heads, kv_heads, head_dim = _heads(config, model_type)
        layers = config.integer("num_hidden_layers", high=10_000)
        window, sliding = _sliding(config, layers, model_type)
        is_llama = model_type == "llama"
        length = config.integer("max_position_embeddings", 2048 if is_llama else 32768)
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
            qkv_bias=_qkv_bias(config, model_type),
            qk_norm=model_type.startswith("qwen3"),
            sliding_window=window,
            sliding_layers=sliding,
            quantization=QuantizationConfig.of_model(config),
            mlp_bias=is_llama and config.flag("mlp_bias", False),
            moe=MoeConfig.from_hf(config, model_type, layers) if model_type.endswith("_moe") else None,
        )


def context_within(
    wanted: int | None,
    limit: int,
    reason: str = "what the model was loaded with",
    remedy: str = "lower the scheduler's max_context or load the model with a larger one",
) -> int:
    """`wanted` tokens of context, `limit` with None.

    Raises ValueError for more than `limit`, with the `reason` of the limit and the `remedy`.
    """
    require(
        wanted is None or wanted <= limit,
        f"max_context: expected at most {limit} tokens ({reason}), found {wanted}; {remedy}",
    )
    return limit if wanted is None else wanted


def _check_head(config: JsonFields) -> None:
    """Refuse a model whose last layer does not give the next token's logits."""
    names = config.data.get("architectures")
    if names is None:
        names = []
    if not isinstance(names, list):
        names = [names]
    other = [name for name in names if not (isinstance(name, str) and name.endswith("ForCausalLM"))]
    require(
        not other,
        f"{config.source}: architectures: expected a model …ForCausalLM, found {as_json(other)}; "
        "this engine generates text: take the model's version for that",
    )


def _qkv_bias(config: JsonFields, model_type: str) -> bool:
    """Whether queries, keys and values have biases: a qwen2 always has them, and a qwen2_moe may do without."""
    if model_type == "qwen2_moe":
        return config.flag("qkv_bias", True)
    return config.flag("attention_bias", False) or model_type == "qwen2"


def _heads(config: JsonFields, model_type: str) -> tuple[int, int, int]:
    """Query heads, K/V heads and their width. A key that is missing has the value that transformers gives it."""
    hidden = config.integer("hidden_size")
    heads = config.integer("num_attention_heads")
    missing = {"num_key_value_heads", "head_dim"} - config.data.keys()
    kv_default = {"qwen2_moe": 16, "qwen3_moe": 4}.get(model_type, heads)
    if model_type in ("qwen2", "qwen3") and "num_key_value_heads" in missing and heads % 32 == 0:
        kv_default = 32
    kv_heads = config.integer("num_key_value_heads", kv_default)
    _check_divides(config, "num_key_value_heads", kv_heads, "num_attention_heads", heads)
    if model_type == "qwen3" and "head_dim" in missing:
        return heads, kv_heads, 128
    if config.data.get("head_dim") is None:
        _check_divides(config, "num_attention_heads", heads, "hidden_size", hidden)
    head_dim = config.integer("head_dim", hidden // heads)
    require(head_dim % 2 == 0, f"{config.source}: head_dim: expected an even number, found {head_dim}")
    return heads, kv_heads, head_dim


def _check_divides(config: JsonFields, name: str, value: int, of: str, whole: int) -> None:
    require(whole % value == 0, f"{config.source}: {name}: expected a divisor of {of} ({whole}), found {value}")


def _sliding(config: JsonFields, layers: int, model_type: str) -> tuple[int | None, tuple[int, ...]]:
    """The window and the layers that use it: `layer_types`, or all from `max_window_layers` on."""
    kinds = _layer_types(config, layers)
    used = config.flag("use_sliding_window", False)
    window = None
    if used and (config.data.get("sliding_window") is not None or "sliding_window" not in config.data):
        window = config.integer("sliding_window", 4096)
    if kinds is None:
        begin = config.integer("max_window_layers", 28, low=0) if window is not None else layers
        sliding = tuple(range(begin, layers))
    else:
        sliding = tuple(i for i, kind in enumerate(kinds) if kind == "sliding_attention")
    require(
        not sliding or window is not None,
        f"{config.source}: layer_types: expected no sliding_attention without a window, found {len(sliding)} such "
        "layers; set sliding_window and use_sliding_window, or make them full_attention",
    )
    require(
        not sliding or model_type in ("qwen2", "qwen3"),
        f"{config.source}: sliding_window: expected no layers with a window in a {model_type}, found {len(sliding)}; "
        "remove use_sliding_window and layer_types if the model was trained without one",
    )
    return (window, sliding) if sliding else (None, ())


def _layer_types(config: JsonFields, layers: int) -> list[str] | None:
    """The kind of attention of each layer, None where the file does not say."""
    kinds, known = config.data.get("layer_types"), ("full_attention", "sliding_attention")
    if kinds is None:
        return None
    if isinstance(kinds, list):
        kinds = ["full_attention" if kind == "attention" else kind for kind in kinds]  # an older name
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in known for kind in kinds):
        expected = f"{layers} of {' and '.join(known)}"
        raise ValueError(f"{config.source}: layer_types: expected {expected}, found {as_json(kinds)}")
    return kinds

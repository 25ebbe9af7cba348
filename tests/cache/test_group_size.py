"""Which heads keys and values can be packed for, and that an error advises what exists."""

from typing import Any

import mlx.core as mx
import pytest

from tiny_llm.cache.choose import new_cache, slot_bytes
from tiny_llm.cache.packed import PackedPool
from tiny_llm.cache.quantized import group_size_for
from tiny_llm.config import EngineConfig, ModelConfig
from tiny_llm.model.fused import choose_ops

FITS = {64: 64, 80: None, 96: 32, 128: 64, 256: 64, 48: None, 32: 32}
PACKED = [EngineConfig(cache="quantized"), EngineConfig(cache="quantized", kv_bits=4)]
PACKED += [EngineConfig(cache="rotating", kv_bits=8), EngineConfig(cache="rotating", kv_bits=4, window=64, sinks=2)]
NOT_PACKED = [EngineConfig(), EngineConfig(cache="rotating")]


def config(head_dim: int) -> ModelConfig:
    shape: dict[str, Any] = dict.fromkeys(("hidden_size", "intermediate_size", "vocab_size"), 64)
    shape |= {"model_type": "qwen3", "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    return ModelConfig.from_hf({**shape, "head_dim": head_dim})


def attend(engine: EngineConfig, head_dim: int) -> mx.array:
    cache = new_cache(config(head_dim), choose_ops("fused"), engine)
    cache.begin(3)
    q, kv = mx.ones((3, 2, head_dim)), mx.ones((3, 1, head_dim))
    return cache.attend(0, q, kv, kv)


@pytest.mark.parametrize("head_dim", FITS)
@pytest.mark.parametrize("engine", [*PACKED, *NOT_PACKED], ids=lambda e: f"{e.cache} {e.kv_bits}")
def test_a_cache_takes_a_head_or_says_what_to_do(head_dim: int, engine: EngineConfig) -> None:
    """With heads of 80 numbers the error advised another group size; no group size divides 80."""
    if engine in NOT_PACKED or FITS[head_dim] is not None:
        assert attend(engine, head_dim).shape == (3, 2, head_dim)
        assert slot_bytes(config(head_dim), engine, 4) > 0
        return
    message = (
        rf"^cache: expected a head_dim that is a multiple of 32 .*, found the model's {head_dim}; "
        "take the contiguous or the rotating cache and leave kv_bits and kv_group_size out$"
    )
    for call in (lambda: attend(engine, head_dim), lambda: slot_bytes(config(head_dim), engine, 4)):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("head_dim", FITS)
def test_the_serving_engines_pool_says_the_same(head_dim: int) -> None:
    def made() -> tuple[int, PackedPool]:
        shape = config(head_dim)
        return 8 * slot_bytes(shape, PACKED[0], 4), PackedPool(shape, choose_ops("fused"), 2, 8)

    if FITS[head_dim] is not None:
        assert made()[0] > 0
        return
    with pytest.raises(ValueError, match=rf"cache: expected .* found the model's {head_dim}; .* leave kv_bits"):
        made()


@pytest.mark.parametrize(("head_dim", "size"), FITS.items())
def test_the_group_size_that_is_not_set(head_dim: int, size: int | None) -> None:
    if size is not None:
        assert group_size_for(head_dim) == size


@pytest.mark.parametrize(
    ("head_dim", "wanted", "possible"), [(64, 128, "32 or 64"), (96, 64, "32"), (96, 128, "32"), (32, 64, "32")]
)
def test_a_group_size_that_does_not_fit_names_those_that_do(head_dim: int, wanted: int, possible: str) -> None:
    message = (
        rf"^kv_group_size: expected {possible} with the model's head_dim \({head_dim}\), found {wanted}; set that or"
    )
    with pytest.raises(ValueError, match=message):
        group_size_for(head_dim, wanted)
    for size in map(int, possible.split(" or ")):
        assert group_size_for(head_dim, size) == size

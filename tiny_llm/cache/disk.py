"""A cache in a file, so that a long prompt is read once and not in each process."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import mlx.core as mx

from tiny_llm.cache import sealed
from tiny_llm.cache.contiguous import ContiguousCache
from tiny_llm.config.fields import require

FORMAT, VERSION = "tiny-llm prompt cache", 1
FLOATS = (mx.float32, mx.float16, mx.bfloat16)


def save(path: Path, cache: ContiguousCache, tokens: Sequence[int], model: str) -> None:
    """Write the cache of `tokens`, of the model with this fingerprint; whatever fails, an old file stays whole.

    Raises OSError naming the file.
    """
    arrays = {"tokens": mx.array(list(tokens[: cache.offset]), mx.int32)}
    counters = {name: getattr(cache, name) for name in cache.COUNTERS}
    used = max(counters.values())  # slots; there may be fewer
    for name, buffers in (("keys", cache.keys), ("values", cache.values)):
        arrays |= {f"{name}.{i}": mx.contiguous(buffer[:, :used]) for i, buffer in enumerate(buffers)}
    about = {"format": FORMAT, "version": str(VERSION), "model": model, **_settings(cache)}
    about |= {name: str(count) for name, count in counters.items()}
    sealed.write(path, about, arrays)


def load(path: Path, cache: ContiguousCache, model: str) -> list[int]:
    """Fill an empty cache from a file and return its tokens. Raises ValueError for a file that is damaged, of another
    format, of another model, of a cache with other settings, or whose arrays are not those of such a cache; it leaves
    the cache as it was."""
    about = sealed.check(path, FORMAT, VERSION)
    require(
        about.get("model") == model,
        f"{path}: is of another model than the one that is loaded; load that one, or name another file",
    )
    for name, value in _settings(cache).items():
        require(
            about.get(name) == value,
            f"{path}: {name}: expected {value} as this run sets it, found {about.get(name)}; "
            "run with the settings that it was written with, or name another file",
        )
    arrays = mx.load(str(path), format="safetensors")
    assert isinstance(arrays, dict)
    try:
        counters = {name: _natural(about, name) for name in cache.COUNTERS}
        count = _check_arrays(arrays, cache, counters)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; {sealed.REMEDY}") from None
    cache.keys, cache.values = ([arrays[f"{name}.{i}"] for i in range(count)] for name in ("keys", "values"))
    cache.capacity = cache.keys[0].shape[1] if count else 0
    for name, number in counters.items():
        setattr(cache, name, number)
    return cast(list[int], arrays["tokens"].tolist())


def _natural(about: Mapping[str, str], name: str) -> int:
    text = about.get(name, "")
    require(re.fullmatch("[0-9]{1,9}", text, re.ASCII) is not None, f"{name}: expected a number, found {text!r:.80}")
    return int(text)


def _check_arrays(arrays: Mapping[str, mx.array], cache: ContiguousCache, counters: Mapping[str, int]) -> int:
    """Evaluate the arrays and return how many hold the keys. Raises ValueError where `cache` would not have made them.

    A file may carry a right digest and still be made by hand: MLX reads beyond a buffer that is too short, and a number
    that is not finite spoils every answer.
    """
    parts = _parts(cache)
    count = (len(arrays) - 1) // 2
    require(count in (0, len(parts)), f"expected {len(parts)} arrays of keys, found {count}")
    slots = min(max(counters.values()), getattr(cache, "full", 2**31))
    expected: dict[str, tuple[tuple[int, ...], tuple[mx.Dtype, ...]]] = {}
    expected["tokens"] = (counters["offset"],), (mx.int32,)
    for i, part in enumerate(parts[:count]):
        for side in ("keys", "values"):
            expected[f"{side}.{i}"] = (part.heads, slots, part.width), part.dtypes
    require(arrays.keys() == expected.keys(), f"expected {sorted(expected)}, found {sorted(arrays)}")
    require(count > 0 or slots == 0, f"expected keys of {slots} tokens, found none")
    for name, (shape, dtypes) in expected.items():
        array = arrays[name]
        ok = array.shape == shape and array.dtype in dtypes
        require(ok, f"{name}: expected {' or '.join(map(str, dtypes))} {shape}, found {array.dtype} {array.shape}")
        require(sealed.usable(array), f"{name}: expected finite numbers, found others")
    tokens, vocab = arrays["tokens"], cache.config.vocab_size
    require(bool(((tokens >= 0) & (tokens < vocab)).all().item()), f"tokens: expected ids from 0 to {vocab - 1}")
    return count


class Part(NamedTuple):
    """One of the arrays that hold a layer's keys, or its values."""

    heads: int
    width: int
    dtypes: tuple[mx.Dtype, ...]


def _parts(cache: ContiguousCache) -> list[Part]:
    """The arrays that hold the keys of all layers, in their order."""
    heads, dim, bits = cache.config.num_key_value_heads, cache.config.head_dim, getattr(cache, "bits", None)
    if bits is None:
        layer = [Part(heads, dim, FLOATS)]
    else:
        scaling = Part(heads, dim // getattr(cache, "group_size", dim), FLOATS)
        layer = [Part(heads, dim * bits // 32, (mx.uint32,)), scaling, scaling]
    return layer * cache.config.num_hidden_layers


def _settings(cache: ContiguousCache) -> dict[str, str]:
    """What makes a cache of one kind and size unlike another."""
    kind = re.sub(r"\B(?=[A-Z])", " ", type(cache).__name__.removesuffix("Cache")).lower()
    return {"cache": kind} | {name: str(getattr(cache, name)) for name in cache.SETTINGS}

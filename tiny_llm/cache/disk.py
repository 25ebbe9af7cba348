"""A cache in a file, so that a long prompt is computed once and not in each process."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import mlx.core as mx

from tiny_llm.cache import sealed
from tiny_llm.cache.base import FLOATS, Part
from tiny_llm.cache.contiguous import ContiguousCache
from tiny_llm.config.fields import require

FORMAT, VERSION = "tiny-llm prompt cache", 1
FLOAT = "float"  # activations that are not rounded to 8 bits


def save(path: Path, cache: ContiguousCache, tokens: Sequence[int], model: str) -> None:
    """Write the cache of `tokens`, of the model with this fingerprint; where writing fails, an old file stays whole.

    Raises OSError naming the file.
    """
    counters = {name: getattr(cache, name) for name in cache.COUNTERS}
    used = max(counters.values())  # slots; a rotating cache has fewer
    kept = list(tokens[: cache.offset])
    arrays = {"tokens": mx.array(kept, mx.int32)}
    for i, buffer in enumerate(cache.keys):
        arrays[f"keys.{i}"] = mx.contiguous(buffer[:, :used])
    for i, buffer in enumerate(cache.values):
        arrays[f"values.{i}"] = mx.contiguous(buffer[:, :used])
    about = {"format": FORMAT, "version": str(VERSION), "model": model}
    about |= _settings(cache)
    for name, count in counters.items():
        about[name] = str(count)
    sealed.write(path, about, arrays)


def load(path: Path, cache: ContiguousCache, model: str) -> list[int]:
    """Fill an empty cache from a file and return its tokens.

    Raises ValueError for a file that is damaged, of another format, of another model, of a cache with other settings,
    or whose arrays such a cache would not have; the cache is then as it was.
    """
    about = sealed.check(path, FORMAT, VERSION)
    require(
        about.get("model") == model,
        f"{path}: is of another model than the one that is loaded; load that one, or name another file",
    )
    stored = {"activations": FLOAT} | about  # files of earlier versions do not name their activations
    for name, value in _settings(cache).items():
        found = stored.get(name)
        require(
            found == value,
            f"{path}: {name}: expected {value} as this run sets it, found {found}; "
            "run with the settings that it was written with, or name another file",
        )
    arrays = mx.load(str(path), format="safetensors")
    assert isinstance(arrays, dict)
    try:
        counters = {name: _natural(about, name) for name in cache.COUNTERS}
        count = _check_arrays(arrays, cache, counters)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; {sealed.REMEDY}") from None
    cache.keys = [_as_read(arrays[f"keys.{i}"], cache) for i in range(count)]
    cache.values = [_as_read(arrays[f"values.{i}"], cache) for i in range(count)]
    cache.capacity = cache.keys[0].shape[1] if count else 0
    for name, number in counters.items():
        setattr(cache, name, number)
    return cast(list[int], arrays["tokens"].tolist())


def _settings(cache: ContiguousCache) -> dict[str, str]:
    """Return the kind and the settings that the file's cache must share with the cache that reads it."""
    settings = {"cache": cache.KIND, "activations": "int8" if cache.ops.int8 else FLOAT}
    for name in cache.SETTINGS:
        settings[name] = str(getattr(cache, name))
    return settings


def _as_read(buffer: mx.array, cache: ContiguousCache) -> mx.array:
    """Return a buffer in a number format that the cache's operations read: the CPU kernels read float32 alone."""
    if cache.ops.native and buffer.dtype in FLOATS:
        return buffer.astype(mx.float32)
    return buffer


def _natural(about: Mapping[str, str], name: str) -> int:
    text = about.get(name, "")
    is_number = re.fullmatch("[0-9]{1,9}", text, re.ASCII) is not None
    require(is_number, f"{name}: expected a number, found {text!r:.80}")
    return int(text)


def _check_arrays(arrays: Mapping[str, mx.array], cache: ContiguousCache, counters: Mapping[str, int]) -> int:
    """Evaluate the arrays and return how many hold the keys. Raises ValueError where `cache` would not have made them.

    A file made by hand may carry a right digest: MLX reads beyond a buffer that is too short, and a number that is not
    finite spoils every answer.
    """
    config = cache.config
    parts = cache.layout * config.num_hidden_layers
    count = (len(arrays) - 1) // 2
    require(count in (0, len(parts)), f"expected {len(parts)} arrays of keys, found {count}")
    slots = max(counters.values())
    if cache.max_slots is not None:
        slots = min(slots, cache.max_slots)
    require(count > 0 or slots == 0, f"expected keys of {slots} tokens, found none")
    buffers = dict[str, Part]()
    for i, part in enumerate(parts[:count]):
        buffers[f"keys.{i}"] = part
        buffers[f"values.{i}"] = part
    expected = sorted(["tokens", *buffers])
    found = sorted(arrays)
    require(found == expected, f"expected {expected}, found {found}")
    _check_tokens(arrays["tokens"], counters["offset"], config.vocab_size)
    for name, part in buffers.items():
        shape = part.heads, slots, part.width
        _check_array(name, arrays[name], shape, part.dtypes)
    return count


def _check_tokens(tokens: mx.array, count: int, vocab_size: int) -> None:
    """Raise ValueError where these are not `count` ids of the vocabulary."""
    _check_array("tokens", tokens, (count,), (mx.int32,))
    known = (tokens >= 0) & (tokens < vocab_size)
    all_known = bool(known.all().item())
    require(all_known, f"tokens: expected ids from 0 to {vocab_size - 1}")


def _check_array(name: str, array: mx.array, shape: tuple[int, ...], dtypes: tuple[mx.Dtype, ...]) -> None:
    """Raise ValueError where an array is of another shape or dtype, or holds a number that is not finite."""
    types = " or ".join(str(dtype) for dtype in dtypes)
    found = f"{array.dtype} {array.shape}"
    fits = array.shape == shape and array.dtype in dtypes
    require(fits, f"{name}: expected {types} {shape}, found {found}")
    require(sealed.usable(array), f"{name}: expected finite numbers, found others")

"""A cache in a file, so that a long prompt is read once and not in each process."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import mlx.core as mx

from tiny_llm.cache import sealed
from tiny_llm.cache.contiguous import ContiguousCache
from tiny_llm.config.fields import require

FORMAT, VERSION = "tiny-llm prompt cache", 1


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
    format, of another model or of a cache with other settings; it leaves the cache as it was."""
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
    mx.eval(arrays)
    count = (len(arrays) - 1) // 2
    cache.keys, cache.values = ([arrays[f"{name}.{i}"] for i in range(count)] for name in ("keys", "values"))
    cache.capacity = cache.keys[0].shape[1] if count else 0
    for name in cache.COUNTERS:
        setattr(cache, name, int(about[name]))
    return cast(list[int], arrays["tokens"].tolist())


def _settings(cache: ContiguousCache) -> dict[str, str]:
    """What makes a cache of one kind and size unlike another."""
    kind = re.sub(r"\B(?=[A-Z])", " ", type(cache).__name__.removesuffix("Cache")).lower()
    return {"cache": kind} | {name: str(getattr(cache, name)) for name in cache.SETTINGS}

"""A cache in a file, so that a long prompt is read once and not in each process: safetensors, checked as a whole.

The header's metadata says what the file is for, and holds the digest of all its bytes (computed with zeros in the
digest's place): a file that was cut off or changed is refused before MLX sees it.
"""

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, cast

import mlx.core as mx
import numpy as np

from tiny_llm.cache.contiguous import ContiguousCache
from tiny_llm.config.fields import require
from tiny_llm.model.directory import read_bytes
from tiny_llm.model.safetensors import read_header

FORMAT, VERSION = "tiny-llm prompt cache", 1
DTYPES = {mx.float32: "F32", mx.float16: "F16", mx.bfloat16: "BF16", mx.uint32: "U32", mx.int32: "I32"}
DIGEST = re.compile(rb'"sha256":"([0-9a-f]{64})"')
REMEDY = "delete it, and it will be written anew"


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
    header, end = dict[str, Any](__metadata__=about | {"sha256": "0" * 64}), 0
    for name, array in arrays.items():
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": DTYPES[array.dtype], "shape": list(array.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    with _replacing(path) as file:
        digest = hashlib.sha256()
        parts = (np.array(array.reshape(-1).view(mx.uint8)).tobytes() for array in arrays.values())
        for part in chain((len(text).to_bytes(8, "little"), text), parts):
            file.write(part)
            digest.update(part)
        file.seek(8 + text.index(b"0" * 64))
        file.write(digest.hexdigest().encode())


def load(path: Path, cache: ContiguousCache, model: str) -> list[int]:
    """Fill an empty cache from a file and return its tokens. Raises ValueError for a file that is damaged, of another
    format, of another model or of a cache with other settings; it leaves the cache as it was."""
    about = _checked(path)
    version = about.get("version")
    require(version == str(VERSION), f"{path}: version: expected {VERSION}, found {version!r}; {REMEDY}")
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
    arrays = mx.load(str(path))
    assert isinstance(arrays, dict)
    mx.eval(arrays)
    count = (len(arrays) - 1) // 2
    cache.keys, cache.values = ([arrays[f"{name}.{i}"] for i in range(count)] for name in ("keys", "values"))
    cache.capacity = cache.keys[0].shape[1] if count else 0
    for name in cache.COUNTERS:
        setattr(cache, name, int(about[name]))
    return cast(list[int], arrays["tokens"].tolist())


def _checked(path: Path) -> dict[str, str]:
    """The metadata of a file whose every byte is as it was written."""
    prefix = read_bytes(path, 8)
    size = path.stat().st_size
    length = int.from_bytes(prefix, "little")
    header = read_bytes(path, 8 + length) if len(prefix) == 8 and length <= size - 8 else b""
    found = DIGEST.search(header)
    is_ours = b'"format":"%s"' % FORMAT.encode() in header
    require(
        found is not None and is_ours, f"{path}: expected a {FORMAT}, found something else or a damaged one; {REMEDY}"
    )
    assert found is not None
    digest = hashlib.sha256(header[: found.start(1)] + b"0" * 64 + header[found.end(1) :])
    with path.open("rb") as file:
        file.seek(len(header))
        for data in iter(lambda: file.read(1 << 20), b""):
            digest.update(data)
    require(
        digest.hexdigest().encode() == found[1],
        f"{path}: is damaged: its bytes are not those that were written; {REMEDY}",
    )
    read_header(path)
    about: dict[str, str] = json.loads(header[8:])["__metadata__"]
    return about


def _settings(cache: ContiguousCache) -> dict[str, str]:
    """What makes a cache of one kind and size unlike another."""
    return {"cache": type(cache).__name__.removesuffix("Cache").lower()} | {
        name: str(getattr(cache, name)) for name in cache.SETTINGS
    }


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file beside `path` that takes its place, whole and on the disk, when the block ends; on an error it is gone."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException as error:
        os.unlink(name)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise

"""safetensors files with a SHA-256 digest, verified on load.

The header's metadata says what the file is for, and holds the digest of all its bytes (computed with zeros in the
digest's place): a file that was cut off or changed is refused before MLX sees it.
"""

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import mlx.core as mx
import numpy as np

from tiny_llm.config.fields import require
from tiny_llm.model.directory import read_bytes
from tiny_llm.model.safetensors import read_header

DTYPES = {mx.float32: "F32", mx.float16: "F16", mx.bfloat16: "BF16", mx.uint32: "U32", mx.int32: "I32"}
DIGEST = re.compile(rb'"sha256":"([0-9a-f]{64})"')
LARGEST = 1e15  # of keys, values and codes; those of a model are far below
REMEDY = "delete it, and it will be written anew"


def write(path: Path, about: Mapping[str, str], arrays: Mapping[str, mx.array], durable: bool = True) -> None:
    """Write `arrays` and the metadata `about`, which has a "format"; whatever fails, an old file stays whole.

    `durable` waits until the disk has it. Raises OSError naming the file.
    """
    header, end = dict[str, Any](__metadata__={**about, "sha256": "0" * 64}), 0
    for name, array in arrays.items():
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": DTYPES[array.dtype], "shape": list(array.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    with _replacing(path, durable) as file:
        digest = hashlib.sha256()
        parts = (np.array(array.reshape(-1).view(mx.uint8)).tobytes() for array in arrays.values())
        for part in chain((len(text).to_bytes(8, "little"), text), parts):
            file.write(part)
            digest.update(part)
        file.seek(8 + text.index(b"0" * 64))
        file.write(digest.hexdigest().encode())


def check(path: Path, form: str, version: int) -> dict[str, str]:
    """The metadata of a file whose every byte is as it was written.

    Raises ValueError for one that is damaged, or of another format or version.
    """
    prefix = read_bytes(path, 8)
    size = path.stat().st_size
    length = int.from_bytes(prefix, "little")
    header = read_bytes(path, 8 + length) if len(prefix) == 8 and length <= size - 8 else b""
    found = DIGEST.search(header)
    is_ours = b'"format":"%s"' % form.encode() in header
    require(
        found is not None and is_ours, f"{path}: expected a {form}, found something else or a damaged one; {REMEDY}"
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
    texts = isinstance(about, dict) and all(isinstance(value, str) for value in about.values())
    require(texts, f"{path}: __metadata__: expected an object of texts, found something else; {REMEDY}")
    found_version = about.get("version")
    require(found_version == str(version), f"{path}: version: expected {version}, found {found_version!r}; {REMEDY}")
    return about


def usable(array: mx.array) -> bool:
    """Whether attention can work with these numbers: none is NaN, infinite or so large that a product overflows."""
    return array.size == 0 or bool((mx.abs(array.astype(mx.float32)).max() < LARGEST).item())


@contextlib.contextmanager
def _replacing(path: Path, durable: bool) -> Iterator[BinaryIO]:
    """A file beside `path` that takes its place, whole and on the disk, when the block ends; on an error it is gone."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException as error:
        os.unlink(name)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise

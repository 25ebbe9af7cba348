"""safetensors files with a SHA-256 digest, verified on load.

The header's metadata names the file's format, and holds the digest of all its bytes (computed with zeros in the
digest's place). A file that was cut off or changed is refused before MLX reads it.
"""

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import mlx.core as mx
import numpy as np

from tiny_llm.config.fields import require
from tiny_llm.model.files import read_bytes
from tiny_llm.model.safetensors import read_header

DTYPES = {mx.float32: "F32", mx.float16: "F16", mx.bfloat16: "BF16", mx.uint32: "U32", mx.int32: "I32"}
ZEROS = b"0" * 64
DIGEST = re.compile(rb'"sha256":"([0-9a-f]{64})"')
LARGEST = 1e15  # of keys, values and codes; the numbers of a model are far below
REMEDY = "delete it, and it will be written anew"


def write(path: Path, about: Mapping[str, str], arrays: Mapping[str, mx.array], durable: bool = True) -> None:
    """Write `arrays` and the metadata `about`, which has a "format"; where writing fails, an old file stays whole.

    With `durable` wait until the data is on the disk. Raises OSError naming the file.
    """
    header = dict[str, Any](__metadata__={**about, "sha256": ZEROS.decode()})
    end = 0
    for name, array in arrays.items():
        begin = end
        end += array.nbytes
        header[name] = {"dtype": DTYPES[array.dtype], "shape": list(array.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    digest = hashlib.sha256()
    with _replacing(path, durable) as file:
        for part in _parts(text, arrays):
            file.write(part)
            digest.update(part)
        file.seek(8 + text.index(ZEROS))
        file.write(digest.hexdigest().encode())


def _parts(header: bytes, arrays: Mapping[str, mx.array]) -> Iterator[bytes]:
    """Yield a file's bytes in their order: the header's length, the header, each array."""
    yield len(header).to_bytes(8, "little")
    yield header
    for array in arrays.values():
        yield np.array(array.reshape(-1).view(mx.uint8)).tobytes()


def check(path: Path, form: str, version: int) -> dict[str, str]:
    """Return the metadata of a file whose every byte is as it was written.

    Raises ValueError for a file that is damaged, or of another format or version.
    """
    header = _header(path)
    found = DIGEST.search(header)
    is_ours = b'"format":"%s"' % form.encode() in header
    require(
        found is not None and is_ours, f"{path}: expected a {form}, found something else or a damaged one; {REMEDY}"
    )
    assert found is not None
    require(
        _digest(path, header, found) == found[1],
        f"{path}: is damaged: its bytes are not those that were written; {REMEDY}",
    )
    read_header(path)
    about: dict[str, str] = json.loads(header[8:])["__metadata__"]
    texts = isinstance(about, dict) and all(isinstance(value, str) for value in about.values())
    require(texts, f"{path}: __metadata__: expected an object of texts, found something else; {REMEDY}")
    found_version = about.get("version")
    require(found_version == str(version), f"{path}: version: expected {version}, found {found_version!r}; {REMEDY}")
    return about


def _header(path: Path) -> bytes:
    """Return the header with the 8 bytes of its length; empty where the file is too short for it."""
    prefix = read_bytes(path, 8)
    size = path.stat().st_size
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > size - 8:
        return b""
    return read_bytes(path, 8 + length)


def _digest(path: Path, header: bytes, found: re.Match[bytes]) -> bytes:
    """Return the digest of a file, with zeros where it was found."""
    digest = hashlib.sha256(header[: found.start(1)] + ZEROS + header[found.end(1) :])
    with path.open("rb") as file:
        file.seek(len(header))
        while data := file.read(1 << 20):
            digest.update(data)
    return digest.hexdigest().encode()


def usable(array: mx.array) -> bool:
    """Return whether attention can use these numbers: none is NaN, infinite or so large that a product overflows."""
    if array.size == 0:
        return True
    largest = mx.abs(array.astype(mx.float32)).max()
    return bool((largest < LARGEST).item())


@contextlib.contextmanager
def _replacing(path: Path, durable: bool) -> Iterator[BinaryIO]:
    """Open a new file that takes the place of `path` when the block ends; on an error it is deleted."""
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

"""Read and check the header of a GGUF file: each count, length, type and place, before the rest of the file is read.

A file of version 2 or 3 is the magic, the version, the numbers of tensors and of metadata entries, then the entries
(key, type, value), then the tensors (name, dimensions, type, offset), then the tensors' blocks of numbers. All numbers
are little-endian, and each tensor begins at a multiple of general.alignment. (github.com/ggml-org/ggml, docs/gguf.md)
"""

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from tiny_llm.config.fields import JsonFields, expect, require
from tiny_llm.model.files import GGUF_MAGIC, read_bytes
from tiny_llm.model.gguf_blocks import BLOCKS, UNREADABLE, BlockType

VERSIONS = (2, 3)
LARGEST_HEADER = 64 * 2**20  # bytes; a vocabulary of 256,000 tokens takes 10 million
LONGEST_NAME = 65_535  # bytes, the format's own limit for a key
MOST_DIMENSIONS = 4
ALIGNMENT = 32  # of a file that names none
LENGTH = struct.Struct("<Q")
TEXT, ARRAY = 8, 9  # type numbers of a metadata value
NUMBERS = {  # those of numbers, as struct and NumPy write them
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
LEAST_ENTRY = 8 + 4 + 1  # bytes of a metadata entry: the key's length, the type, the value
LEAST_TENSOR = 8 + 4 + 8 + 4 + 8  # bytes of a tensor's entry: the name's length, dimensions, type, offset
DAMAGED = "the file is cut off or damaged: download it again"


@dataclass(frozen=True)
class GgufTensor:
    """A tensor's type, shape (rows first) and place: its first byte in the file."""

    kind: BlockType
    shape: tuple[int, ...]
    begin: int

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return prod(self.shape) // self.kind.length * self.kind.size


@dataclass(frozen=True)
class GgufHeader:
    """The metadata and the tensors of a file."""

    metadata: JsonFields
    tensors: Mapping[str, GgufTensor]


def read_gguf_header(path: Path) -> GgufHeader:
    """Return the header. Raises ValueError naming file, key, expected and found unless all tensors lie in the file."""
    magic = read_bytes(path, len(GGUF_MAGIC))
    if magic != GGUF_MAGIC:
        raise ValueError(f"{path}: expected a GGUF file, which begins with {GGUF_MAGIC!r}, found {magic!r}")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        reader = _HeaderReader(path, data)
        version = reader.number("<u4", "version")
        require(version in VERSIONS, f"{path}: version: expected 2 or 3, found {version}; {_remedy(version)}")
        num_tensors = reader.count("number of tensors", LEAST_TENSOR)
        num_entries = reader.count("number of metadata entries", LEAST_ENTRY)
        metadata: dict[str, Any] = {}
        for i in range(num_entries):
            key = reader.text(f"key of metadata entry {i}", LONGEST_NAME)
            require(key not in metadata, f"{path}: {key!r:.100}: expected once, found twice; {DAMAGED}")
            metadata[key] = reader.value(key)
        fields = JsonFields(metadata, str(path))
        parts = fields.integer("split.count", 1, low=0)
        require(
            parts < 2,
            f"{path}: split.count: expected a whole file, found one of {parts} parts; join them: "
            "llama-gguf-split --merge FIRST_PART WHOLE_FILE",
        )
        entries = _tensor_entries(reader, num_tensors)
        return GgufHeader(fields, _placed(reader, fields, entries))


def _remedy(version: int) -> str:
    if int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS:
        return "the file is for big-endian machines: take its little-endian version"
    return "take a file made by a current llama.cpp"


def _tensor_entries(reader: "_HeaderReader", count: int) -> dict[str, tuple[BlockType, tuple[int, ...], int]]:
    """Return each tensor's type, shape and offset in the data, by name."""
    entries = {}
    for i in range(count):
        name = reader.text(f"name of tensor {i}", LONGEST_NAME)
        where = f"{reader.path}: {name:.100}"
        require(name not in entries, f"{where}: expected once, found twice; {DAMAGED}")
        dimensions = reader.number("<u4", name)
        expect(1 <= dimensions <= MOST_DIMENSIONS, f"{where}: dimensions", f"1 to {MOST_DIMENSIONS}", dimensions)
        reversed_shape = [reader.number("<u8", name) for _ in range(dimensions)]
        kind = _block_type(where, reader.number("<u4", name))
        offset = reader.number("<u8", name)
        shape = tuple(reversed(reversed_shape))
        fits = 0 < prod(shape) < 2**48 and shape[-1] % kind.length == 0
        expect(fits, f"{where}: shape", f"rows of a multiple of {kind.length} for {kind.name}", list(shape))
        entries[name] = kind, shape, offset
    return entries


def _block_type(where: str, number: int) -> BlockType:
    kind = BLOCKS.get(number)
    if kind is None:
        known = ", ".join(each.name for each in BLOCKS.values())
        found = UNREADABLE.get(number, f"type {number}")
        raise ValueError(f"{where}: expected one of {known}, found {found}; take the model's Q4_K_M or Q8_0 file")
    return kind


def _placed(
    reader: "_HeaderReader", metadata: JsonFields, entries: Mapping[str, tuple[BlockType, tuple[int, ...], int]]
) -> dict[str, GgufTensor]:
    """Return the tensors with their places. Check that they follow each other and end within the file."""
    alignment = metadata.integer("general.alignment", ALIGNMENT, low=1, high=2**16)
    power = alignment & (alignment - 1) == 0
    expect(power, f"{reader.path}: general.alignment", "a power of 2", alignment)
    first = _aligned(reader.at, alignment)
    end = 0
    tensors = {}
    for name, (kind, shape, offset) in entries.items():
        require(
            offset == end,
            f"{reader.path}: {name:.100}: offset: expected {end}, where the tensor before ends, found {offset}; "
            + DAMAGED,
        )
        tensors[name] = GgufTensor(kind, shape, first + offset)
        last = offset + tensors[name].size
        end = _aligned(last, alignment)
        require(
            first + last <= reader.size,
            f"{reader.path}: {name:.100}: expected {tensors[name].size} bytes from byte {first + offset} on, found "
            f"{max(0, reader.size - first - offset)}; {DAMAGED}",
        )
    return tensors


def _aligned(place: int, alignment: int) -> int:
    return -(-place // alignment) * alignment


class _HeaderReader:
    """Reads one value after the other from a file's first bytes. No value may end beyond `end`."""

    def __init__(self, path: Path, data: mmap.mmap):
        self.path = path
        self.data = data
        self.size = len(data)
        self.end = min(self.size, LARGEST_HEADER)
        self.at = len(GGUF_MAGIC)

    def number(self, dtype: str, where: str) -> Any:
        """Return a number of a NumPy type. A float32 becomes the shortest float that rounds to it: 1e-05."""
        number = self._numbers(dtype, 1, where)[0]
        return float(str(np.float32(number))) if dtype == "<f4" else number

    def count(self, where: str, least: int) -> int:
        """Return a number of things that take at least `least` bytes each, so that the rest of the file limits it."""
        count = int(self.number("<u8", where))
        most = (self.end - self.at) // least
        require(count <= most, f"{self.path}: {where:.100}: expected at most {most}, found {count}; {DAMAGED}")
        return count

    def text(self, where: str, longest: int = LARGEST_HEADER) -> str:
        length = self.number("<u8", where)
        expect(length <= longest, f"{self.path}: {where:.100}: length", f"at most {longest}", length)
        self._check(length, where)
        data = self.data[self.at : self.at + length]
        self.at += length
        return self._decoded(data, where)

    def value(self, key: str) -> Any:
        """Return a metadata value: a number, a text or a list of either."""
        kind = self.number("<u4", key)
        if kind == ARRAY:
            kind = self.number("<u4", key)
            if kind == TEXT:
                return self._texts(self.count(key, LENGTH.size), key)
            dtype = self._dtype(kind, key)
            return self._numbers(dtype, self.count(key, np.dtype(dtype).itemsize), key)
        if kind == TEXT:
            return self.text(key)
        return self.number(self._dtype(kind, key), key)

    def _dtype(self, kind: int, key: str) -> str:
        if kind not in NUMBERS:
            expected = "a number, a text or a list of them"
            raise ValueError(f"{self.path}: {key!r:.100}: expected {expected}, found a value of type {kind}; {DAMAGED}")
        return NUMBERS[kind]

    def _numbers(self, dtype: str, count: int, where: str) -> list[Any]:
        size = np.dtype(dtype).itemsize * count
        self._check(size, where)
        numbers = np.frombuffer(self.data[self.at : self.at + size], dtype)
        self.at += size
        return list(numbers.tolist())

    def _texts(self, count: int, where: str) -> list[str]:
        texts = []
        for _ in range(count):
            begin = self.at + LENGTH.size
            if begin > self.end:
                self._check(LENGTH.size, where)
            (length,) = LENGTH.unpack_from(self.data, self.at)
            self.at = begin
            if begin + length > self.end:
                self._check(length, where)
            self.at += length
            texts.append(self._decoded(self.data[begin : self.at], where))
        return texts

    def _decoded(self, data: bytes, where: str) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path}: {where:.100}: expected UTF-8 text, found: {error}") from None

    def _check(self, size: int, where: str) -> None:
        if size <= self.end - self.at:
            return
        limit = "the file ends" if self.end == self.size else f"the header is longer than {LARGEST_HEADER} bytes"
        raise ValueError(
            f"{self.path}: {where:.100}: expected {size} bytes more, found {self.end - self.at}: {limit}; {DAMAGED}"
        )

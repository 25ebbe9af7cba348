"""Read and check the headers of safetensors files: MLX trusts them, so an error must be found before it loads a file.

A file is an 8-byte little-endian length, a JSON header {name: {dtype, shape, data_offsets}} of that length, and the
tensors' bytes without gaps (github.com/huggingface/safetensors).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from tiny_llm.config.fields import JsonFields, parse_object, require
from tiny_llm.model.files import read_bytes, read_json

INDEX = "model.safetensors.index.json"
PLAIN_NAME = r"model[\w.-]{0,200}\.safetensors"
MAX_HEADER = 100_000_000  # bytes; the format's own limit
FLOATS = ("F32", "F16", "BF16")
WIDTHS = {  # bytes of one element
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}


@dataclass(frozen=True)
class TensorEntry:
    """A tensor's file, type, shape and place in the file's data. `dtype`: the format's name, such as BF16."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_entries(directory: Path) -> dict[str, TensorEntry]:
    """Return a model directory's tensors by name. Raises ValueError naming file, key, expected and found."""
    files, weight_map = weight_files(directory)
    entries: dict[str, TensorEntry] = {}
    for file in files:
        for name, entry in read_header(file).items():
            if name in entries:
                raise ValueError(f"{file}: {name}: expected in one file only, found in {entries[name].file.name} too")
            entries[name] = entry
    for name, expected in weight_map.items():
        found = "nowhere"
        if name in entries:
            file_name = entries[name].file.name
            if file_name == expected:
                continue
            found = f"in {file_name}"
        raise ValueError(f"{directory / INDEX}: {name}: expected in {expected}, found {found}")
    return entries


def is_unused(name: str, tied: bool) -> bool:
    """Return whether a tensor is a rotary table of old files, or the head although it is `tied` to the embedding."""
    if tied and name.startswith("lm_head."):
        return True
    return name.endswith("rotary_emb.inv_freq")


def weight_files(directory: Path) -> tuple[list[Path], dict[str, str]]:
    """Return the files that hold the weights, and the index's {tensor: file name} ({} without an index).

    An index may name files of its own directory only. Raises ValueError if a file is missing.
    """
    index = directory / INDEX
    if not index.exists():
        files = sorted(directory.glob("model*.safetensors"))
        require(bool(files), f"{directory}: expected model*.safetensors, found no such file")
        return files, {}
    fields = read_json(index)
    table = fields.table("weight_map")
    if table is None or not table.data:
        raise ValueError(f"{index}: weight_map: expected an object, found nothing")
    for name, file in table.data.items():
        place = f"{table.source}: {name}"
        plain = isinstance(file, str) and re.fullmatch(PLAIN_NAME, file, re.ASCII)
        require(bool(plain), f"{place}: expected a model*.safetensors beside it, found {file!r:.100}")
        require((directory / file).is_file(), f"{place}: expected the file {file}, found none")
    names = sorted(set(table.data.values()))
    files = [directory / name for name in names]
    return files, dict(table.data)


def read_header(file: Path) -> dict[str, TensorEntry]:
    """Return the tensors of one file by name. Raises ValueError unless they cover the file's data exactly."""
    prefix = read_bytes(file, 8)
    size = file.stat().st_size
    length = int.from_bytes(prefix, "little")
    require(
        len(prefix) == 8 and length <= min(MAX_HEADER, size - 8),
        f"{file}: header length: expected at most {max(size - 8, 0)} (the file's size), found {length}; "
        "the file is cut off or no safetensors: download it again",
    )
    header = parse_object(read_bytes(file, 8 + length)[8:], str(file))
    entries = {}
    for name in header.data:
        if name != "__metadata__":
            entries[name] = _entry(file, header, name)
    _check_gaps(file, entries, size - 8 - length)
    return entries


def _check_gaps(file: Path, entries: Mapping[str, TensorEntry], size: int) -> None:
    """Check that the tensors follow each other without gaps in `size` bytes of data."""
    end = 0
    in_order = sorted(entries, key=lambda name: (entries[name].begin, entries[name].end))
    for name in in_order:
        begin = entries[name].begin
        if begin != end:
            raise ValueError(f"{file}: {name}: data_offsets: expected to begin at {end}, found {begin}")
        end = entries[name].end
    if end != size:
        raise ValueError(
            f"{file}: expected {end} bytes of tensors, found {size}; the file is damaged: download it again"
        )


def _entry(file: Path, header: JsonFields, name: str) -> TensorEntry:
    fields = header.table(name)
    if fields is None:
        raise ValueError(f"{file}: {name}: expected an object, found null")
    dtype = fields.choice("dtype", tuple(WIDTHS))
    shape = _naturals(fields, "shape")
    offsets = _naturals(fields, "data_offsets")
    size = prod(shape) * WIDTHS[dtype]
    require(
        len(offsets) == 2 and offsets[1] - offsets[0] == size,
        f"{fields.source}: data_offsets: expected a pair {size} bytes apart, found {offsets!r:.100}",
    )
    return TensorEntry(file, dtype, shape, offsets[0], offsets[1])


def _naturals(fields: JsonFields, key: str) -> tuple[int, ...]:
    """Return a list of at most 8 natural numbers, such as a shape."""
    values: Any = fields.data.get(key)
    ok = isinstance(values, list) and len(values) <= 8
    ok = ok and all(_is_natural(value) for value in values)
    require(ok, f"{fields.source}: {key}: expected a list of natural numbers, found {values!r:.100}")
    return tuple(values)


def _is_natural(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63

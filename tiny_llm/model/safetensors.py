"""What the safetensors files of a model directory hold, read and checked before MLX touches them.

A file is an 8-byte little-endian length, a JSON header {name: {dtype, shape, data_offsets}} of that length, and the
tensors' bytes without gaps (github.com/huggingface/safetensors). MLX trusts the header, so a wrong one is found here.
"""

import re
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from tiny_llm.config.fields import JsonFields, parse_object, require
from tiny_llm.model.directory import read_bytes, read_json

INDEX = "model.safetensors.index.json"
MAX_HEADER = 100_000_000  # bytes; the format's own limit
FLOATS = ("F32", "F16", "BF16")
WIDTHS = {  # bytes of one element
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies and what it is. `dtype` is the format's name, such as BF16."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_entries(directory: Path, tied: bool) -> dict[str, Entry]:
    """A model directory's tensors by name. Raises ValueError naming file, key, expected and found.

    Left out are the rotary tables of old files and, where the head is `tied` to the embedding, a head stored anyway.
    """
    files, weight_map = weight_files(directory)
    entries: dict[str, Entry] = {}
    for file in files:
        for name, entry in read_header(file).items():
            if name in entries:
                raise ValueError(f"{file}: {name}: expected in one file only, found in {entries[name].file.name} too")
            entries[name] = entry
    for name, file_name in weight_map.items():
        if name not in entries or entries[name].file.name != file_name:
            found = f"in {entries[name].file.name}" if name in entries else "nowhere"
            raise ValueError(f"{directory / INDEX}: {name}: expected in {file_name}, found {found}")
    unused = re.compile(r".*rotary_emb\.inv_freq|lm_head\..*" if tied else r".*rotary_emb\.inv_freq")
    return {name: entry for name, entry in entries.items() if not unused.fullmatch(name)}


def weight_files(directory: Path) -> tuple[list[Path], dict[str, str]]:
    """The files that hold the weights, and the index's {tensor: file name} ({} without an index).

    An index may name files of its own directory only. Raises ValueError where one is missing.
    """
    index = directory / INDEX
    if not index.exists():
        files = sorted(directory.glob("model*.safetensors"))
        require(bool(files), f"{directory}: expected model*.safetensors, found no such file")
        return files, {}
    fields = read_json(index)
    table = fields.table("weight_map")
    require(table is not None and len(table.data) > 0, f"{index}: weight_map: expected an object, found nothing")
    assert table is not None
    for name, file in table.data.items():
        plain = isinstance(file, str) and re.fullmatch(r"model[\w.-]{0,200}\.safetensors", file, re.ASCII)
        require(bool(plain), f"{table.source}: {name}: expected a model*.safetensors beside it, found {file!r:.100}")
        require((directory / file).is_file(), f"{table.source}: {name}: expected the file {file}, found none")
    return [directory / file for file in sorted(set(table.data.values()))], dict(table.data)


def read_header(file: Path) -> dict[str, Entry]:
    """The tensors of one file, checked to cover its data exactly."""
    prefix = read_bytes(file, 8)
    size = file.stat().st_size
    length = int.from_bytes(prefix, "little")
    require(
        len(prefix) == 8 and length <= min(MAX_HEADER, size - 8),
        f"{file}: header length: expected at most {max(size - 8, 0)} (the file's size), found {length}; "
        "the file is cut off or no safetensors: download it again",
    )
    header = parse_object(read_bytes(file, 8 + length)[8:], str(file))
    entries = {name: _entry(file, header, name) for name in header.data if name != "__metadata__"}
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != end:
            raise ValueError(f"{file}: {name}: data_offsets: expected to begin at {end}, found {entry.begin}")
        end = entry.end
    require(
        end == size - 8 - length,
        f"{file}: expected {end} bytes of tensors, found {size - 8 - length}; the file is damaged: download it again",
    )
    return entries


def _entry(file: Path, header: JsonFields, name: str) -> Entry:
    fields = header.table(name)
    require(fields is not None, f"{file}: {name}: expected an object, found null")
    assert fields is not None
    dtype = fields.choice("dtype", tuple(WIDTHS))
    shape = _naturals(fields, "shape")
    offsets = _naturals(fields, "data_offsets")
    size = prod(shape) * WIDTHS[dtype]
    require(
        len(offsets) == 2 and offsets[1] - offsets[0] == size,
        f"{fields.source}: data_offsets: expected a pair {size} bytes apart, found {offsets!r:.100}",
    )
    return Entry(file, dtype, shape, offsets[0], offsets[1])


def _naturals(fields: JsonFields, key: str) -> tuple[int, ...]:
    values: Any = fields.data.get(key)
    ok = isinstance(values, list) and len(values) <= 8 and all(type(v) is int and 0 <= v < 2**63 for v in values)
    require(ok, f"{fields.source}: {key}: expected a list of natural numbers, found {values!r:.100}")
    return tuple(values)

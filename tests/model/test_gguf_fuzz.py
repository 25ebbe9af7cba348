"""Broken GGUF files: always a ValueError that names the file and what was expected, never a crash or endless memory."""

import shutil
import struct
import time
import tracemalloc
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.gguf_files import ARRAY, STRING, UINT32, Stored, make_twins, pack, text, write_gguf
from tiny_llm.model.directory import load_config, load_generation_defaults
from tiny_llm.model.gguf_header import read_gguf_header
from tiny_llm.model.loader import check_memory, load_weights
from tiny_llm.model.source import open_source
from tiny_llm.model.tokenizer import Tokenizer

SIZES = {
    "num_hidden_layers": 1,
    "hidden_size": 32,
    "intermediate_size": 32,
    "vocab_size": 268,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
FUZZ = settings(derandomize=True, max_examples=150, deadline=None)
HUGE = st.sampled_from([2**63, 2**64 - 1, 2**62, 2**32, 2**31 - 1, 2**40 + 7, 10**6, 3])
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    twin = make_twins(tmp_path_factory.mktemp("whole"), "llama", {"": "Q4_1", "output": "Q8_0"}, exact=False, **SIZES)
    return twin.file.read_bytes()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("place") / "model.gguf"


def read(file: Path) -> None:
    """Everything that loading a model reads."""
    source = open_source(file)
    config = load_config(source)
    check_memory(source, config, None, 16, 10**30)
    load_generation_defaults(source)
    Tokenizer.from_dir(source)
    load_weights(source, config)


def read_or_refused(file: Path, data: bytes) -> str:
    """Read a file of these bytes; return the error's message, "" without one."""
    file.write_bytes(data)
    try:
        read(file)
    except ValueError as error:
        assert str(error).startswith(f"{file}: "), error
        assert "expected" in str(error), error
        assert len(str(error)) < 600
        return str(error)
    return ""


def header_length(data: bytes) -> int:
    """Bytes before the first tensor's."""
    return data.index(text("output_norm.weight"))


def places_of_lengths(data: bytes) -> Iterator[int]:
    """The first bytes of all lengths and counts of 8 bytes in the header."""
    yield from (8, 16)
    end = header_length(data)
    for i in range(24, end):
        (length,) = struct.unpack_from("<Q", data, i)
        if 0 < length < 10_000 and i + 8 + length <= len(data):
            yield i


def test_the_untouched_file_is_read(whole: bytes, place: Path) -> None:
    assert read_or_refused(place, whole) == ""


@given(data=st.data())
@FUZZ
def test_truncated_files(whole: bytes, place: Path, data: st.DataObject) -> None:
    end = data.draw(st.integers(0, len(whole) - 33) | st.integers(0, 60) | st.integers(0, header_length(whole)))
    message = read_or_refused(place, whole[:end])
    assert message
    assert end < 4 or "damaged" in message


@given(data=st.data())
@FUZZ
def test_flipped_bytes(whole: bytes, place: Path, data: st.DataObject) -> None:
    """A flipped byte may stay unseen where it is a value, such as a character of a token."""
    content = bytearray(whole)
    at = data.draw(st.integers(0, header_length(whole) + 900) | st.integers(0, 700))
    content[at] ^= data.draw(st.integers(1, 255))
    read_or_refused(place, bytes(content))


@given(data=st.data())
@FUZZ
def test_flipped_bytes_in_the_list_of_tensors(whole: bytes, place: Path, data: st.DataObject) -> None:
    begin = header_length(whole) - 8
    end = whole.index(bytes(64), begin) if bytes(64) in whole[begin:] else begin + 600
    content = bytearray(whole)
    at = data.draw(st.integers(begin, min(end, begin + 600)))
    content[at] ^= data.draw(st.integers(1, 255))
    read_or_refused(place, bytes(content))


@given(data=st.data())
@FUZZ
def test_inserted_and_lost_bytes(whole: bytes, place: Path, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, header_length(whole) + 400))
    new = data.draw(st.binary(min_size=1, max_size=40))
    lost = data.draw(st.booleans())
    content = whole[:at] + (b"" if lost else new) + whole[at + (len(new) if lost else 0) :]
    read_or_refused(place, content)


@given(data=st.data())
@FUZZ
def test_huge_lengths_and_counts(whole: bytes, place: Path, data: st.DataObject) -> None:
    content = bytearray(whole)
    at = data.draw(st.sampled_from(list(places_of_lengths(whole))))
    struct.pack_into("<Q", content, at, data.draw(HUGE))
    tracemalloc.start()
    start = time.thread_time()
    read_or_refused(place, bytes(content))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50 * len(whole)
    assert time.thread_time() - start < 5


ODD: tuple[Any, ...] = (
    0,
    1,
    2**32 - 1,
    -1.0,
    float("nan"),
    float("inf"),
    1e30,
    True,
    "",
    "x" * 300,
    [],
    [1],
    ["a"],
    [0.5],
)


@given(data=st.data())
@FUZZ
def test_odd_values(whole: bytes, place: Path, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    place.write_bytes(whole)
    header = read_gguf_header(place)
    metadata = dict(header.metadata.data)
    metadata[data.draw(st.sampled_from(sorted(metadata)))] = data.draw(st.sampled_from(ODD))
    tensors = {
        name: Stored(tensor.kind.name, tensor.shape, whole[tensor.begin : tensor.begin + tensor.size])
        for name, tensor in header.tensors.items()
    }
    read_or_refused(place, write_gguf(place, metadata, tensors).read_bytes())


@given(data=st.data())
@FUZZ
def test_missing_renamed_and_exchanged_tensors(whole: bytes, place: Path, data: st.DataObject) -> None:
    place.write_bytes(whole)
    header = read_gguf_header(place)
    stored = {
        name: Stored(tensor.kind.name, tensor.shape, whole[tensor.begin : tensor.begin + tensor.size])
        for name, tensor in header.tensors.items()
    }
    first, second = data.draw(st.sampled_from(sorted(stored))), data.draw(st.sampled_from(sorted(stored)))
    action = data.draw(st.sampled_from(["remove", "rename", "exchange"]))
    if action == "exchange":
        stored[first], stored[second] = stored[second], stored[first]
        write_gguf(place, header.metadata.data, stored)
        message = read_or_refused(place, place.read_bytes())
        assert bool(message) == (stored[first].shape != stored[second].shape)
        return
    moved = stored.pop(first)
    if action == "rename":
        stored[first + data.draw(st.sampled_from(["x", ".weight", "\x00", "é"]))] = moved
    write_gguf(place, header.metadata.data, stored)
    message = read_or_refused(place, place.read_bytes())
    assert message or first == "output.weight"  # without a head the model is tied


@given(number=st.integers(0, 2**32 - 1) | st.integers(0, 50), count=st.integers(0, 50))
@FUZZ
def test_unknown_types_of_values(place: Path, number: int, count: int) -> None:
    values = struct.pack("<II", number, count) + bytes(64)
    message = read_or_refused(place, write_gguf(place, {"general.architecture": values}, {}).read_bytes())
    assert "general.architecture" in message or "token_embd" in message


@given(content=st.binary(max_size=200), magic=st.booleans(), version=st.sampled_from([0, 1, 2, 3, 4, 3 << 24]))
@FUZZ
def test_files_that_are_no_gguf(place: Path, content: bytes, magic: bool, version: int) -> None:
    data = b"GGUF" + struct.pack("<I", version) + content if magic else content
    assert read_or_refused(place, data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "expected a GGUF file, which begins with b'GGUF', found b''"),
        (b"GGU", "expected a GGUF file"),
        (b"PK\x03\x04rest", r"expected a GGUF file, which begins with b'GGUF', found b'PK\\x03\\x04'"),
        (b"GGUF", "version: expected 4 bytes more, found 0: the file ends; the file is cut off or damaged"),
        (b"GGUF" + struct.pack("<I", 1), "version: expected 2 or 3, found 1; take a file made by a current llama.cpp"),
        (
            b"GGUF" + struct.pack(">I", 3),
            "version: expected 2 or 3, found 50331648; the file is for big-endian machines",
        ),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 2**40, 0),
            "number of tensors: expected at most 0, found 1099511627776; the f",
        ),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 9) + bytes(26), "number of metadata entries: expected at most 2, found 9"),
        (
            b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 70_000) + bytes(80_000),
            "key of metadata entry 0: length: expected at mo",
        ),
        (
            b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 5000) + bytes(80),
            "key of metadata entry 0: expected 5000 bytes more, fo",
        ),
        (
            b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"\xff" + bytes(80),
            "key of metadata entry 0: expected UTF-8 text, fo",
        ),
    ],
    ids=str,
)
def test_a_wrong_beginning_is_named(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "model.gguf").write_bytes(data)
    with pytest.raises(ValueError, match=f"^{tmp_path}/model.gguf: {message}"):
        open_source(tmp_path / "model.gguf")


def entries(*parts: bytes, count: int) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, 0, count) + b"".join(parts) + bytes(64)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            entries(text("a"), struct.pack("<I", 13), count=1),
            "'a': expected a number, a text or a list of them, found a v",
        ),
        (
            entries(text("a"), struct.pack("<II", ARRAY, ARRAY), count=1),
            "'a': expected a number, a text .*, found .*type 9",
        ),
        (
            entries(text("a"), struct.pack("<IIQ", ARRAY, STRING, 2**50), count=1),
            r"a: expected at most \d+, found 11258999",
        ),
        (
            entries(text("a"), struct.pack("<IIQ", ARRAY, UINT32, 2**50), count=1),
            r"a: expected at most \d+, found 11258999",
        ),
        (entries(*2 * [text("a") + struct.pack("<II", UINT32, 1)], count=2), "'a': expected once, found twice"),
    ],
    ids=str,
)
def test_a_wrong_value_is_named(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "model.gguf").write_bytes(data)
    with pytest.raises(ValueError, match=f"^{tmp_path}/model.gguf: {message}"):
        open_source(tmp_path / "model.gguf")


def tensor(name: str, dimensions: list[int], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, kind, offset)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([tensor("a", [])], r"a: dimensions: expected 1 to 4, found 0"),
        ([tensor("a", [1] * 5)], r"a: dimensions: expected 1 to 4, found 5"),
        ([tensor("a", [0])], r"a: shape: expected rows of a multiple of 1 for F32, found \[0\]"),
        ([tensor("a", [2**62, 2**62])], r"a: shape: expected rows of a multiple of 1 for F32, found \[4611"),
        ([tensor("a", [33, 2], 3)], r"a: shape: expected rows of a multiple of 32 for Q4_1, found \[2, 33\]"),
        (
            [tensor("a", [8], 77)],
            r"a: expected one of F32, F16, .*, found type 77; take the model's Q4_K_M or Q8_0 file",
        ),
        ([tensor("a", [8], offset=32)], r"a: offset: expected 0, where the tensor before ends, found 32"),
        ([tensor("a", [8]), tensor("a", [8], offset=32)], r"a: expected once, found twice"),
        ([tensor("a", [8]), tensor("b", [8])], r"b: offset: expected 32, where the tensor before ends, found 0"),
        (
            [tensor("a", [10**6])],
            r"a: expected 4000000 bytes from byte 64 on, found \d+; the file is cut off or damaged",
        ),
    ],
    ids=str,
)
def test_a_wrong_tensor_is_named(tmp_path: Path, tensors: list[bytes], message: str) -> None:
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 0) + b"".join(tensors)
    (tmp_path / "model.gguf").write_bytes(head + bytes(256))
    with pytest.raises(ValueError, match=f"^{tmp_path}/model.gguf: {message}"):
        open_source(tmp_path / "model.gguf")


@pytest.mark.parametrize("alignment", [0, 3, 2**20, -1.0, "32"], ids=str)
def test_a_wrong_alignment_is_named(tmp_path: Path, alignment: Any) -> None:
    tensors = {"a": pack("F32", np.ones(8))}
    file = write_gguf(tmp_path / "x.gguf", {"general.alignment": alignment}, tensors)
    with pytest.raises(ValueError, match=r"x.gguf: general.alignment: expected (an integer|a power of 2)"):
        open_source(file)


def test_a_header_without_end_is_not_read(tmp_path: Path) -> None:
    """A hole of gigabytes in a file takes no room on the disk; its header must not take the machine's memory."""
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 2**20) + bytes(100)
    file = tmp_path / "model.gguf"
    with file.open("wb") as handle:
        handle.write(head + text("a") + struct.pack("<IIQ", ARRAY, STRING, 2**32))
        handle.truncate(2**35)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"expected"):
        open_source(file)
    array = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IIQ", ARRAY, STRING, 2**30)
    with file.open("r+b") as handle:
        handle.write(array)
    with pytest.raises(ValueError, match=r"a: expected at most 8388\d+, found 1073741824"):
        open_source(file)
    assert tracemalloc.get_traced_memory()[1] < 10**7
    tracemalloc.stop()


def test_a_file_that_shrinks_while_it_is_read_is_named(whole: bytes, place: Path) -> None:
    place.write_bytes(whole)
    source = open_source(place)
    config = load_config(source)
    place.write_bytes(whole[:3000])
    with pytest.raises(
        ValueError, match=r"model.gguf: expected \d+ bytes from byte \d+ on, found less: the file has ch"
    ):
        load_weights(source, config)


def test_other_things_in_place_of_a_file(tmp_path: Path, whole: bytes) -> None:
    (tmp_path / "folder.gguf").mkdir()
    with pytest.raises(ValueError, match=r"folder.gguf/config.json: expected a file, found nothing"):
        load_config(tmp_path / "folder.gguf")
    (tmp_path / "x.gguf").write_bytes(whole)
    shutil.copy(tmp_path / "x.gguf", tmp_path / "without-ending")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_config(tmp_path / "without-ending") == load_config(tmp_path / "x.gguf")

"""Broken model directories: always a ValueError that names a file of the directory, never a crash or garbage."""

import json
import shutil
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten

from tests.support import make_model, write_json
from tiny_llm.config.model import ARCHITECTURES
from tiny_llm.model.loader import check_memory, load_config, load_generation_defaults, load_weights
from tiny_llm.model.tokenizer import Tokenizer

SIZES = {
    "num_hidden_layers": 1,
    "hidden_size": 32,
    "intermediate_size": 32,
    "vocab_size": 268,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
WEIRD: tuple[Any, ...] = (
    *(float("nan"), float("inf"), -float("inf"), 1e308, 1e-320, 0.5, -1.0, 10**400),
    *(-1, 0, 1, 3, 2**31, 2**63, 10**30, True, False),
    *(None, "", "qwen3", "x" * 300, "\x00", "\ud800", [], [1], {}, {"a": [None]}, [[[]]]),
)
FUZZ = settings(derandomize=True, max_examples=120, deadline=None)
ATTENTION, SHARD = "model.layers.0.self_attn", "model-00001-of-00002.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("whole"), **SIZES)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    quantize = {"bits": 4, "group_size": 32, f"{ATTENTION}.v_proj": {"bits": 8, "group_size": 32}}
    return make_model(tmp_path_factory.mktemp("sharded"), "qwen2", shards=2, quantize=quantize, **SIZES)


@contextmanager
def copy_of(directory: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as target:
        yield Path(shutil.copytree(directory, target, dirs_exist_ok=True))


def read(directory: Path) -> tuple[list[tuple[str, mx.array]], Any]:
    """Everything that loading a model reads."""
    config = load_config(directory)
    check_memory(directory, config, None, 16, 10**30)
    others = load_generation_defaults(directory), Tokenizer.from_dir(directory).eos_token_ids
    return tree_flatten(load_weights(directory, config)), others


def same_or_refused(directory: Path, original: Path) -> None:
    """Either the weights of the original, or a ValueError that names a path of the directory."""
    try:
        weights, _ = read(directory)
    except ValueError as error:
        assert str(error).startswith(str(directory)), error
        assert "expected" in str(error), error
        return
    expected, _ = read(original)
    assert [name for name, _ in weights] == [name for name, _ in expected]
    assert all(mx.array_equal(a, b).item() for (_, a), (_, b) in zip(weights, expected, strict=True))


def refused(directory: Path, *named: str) -> None:
    with pytest.raises(ValueError, match="expected") as error:
        read(directory)
    assert str(error.value).startswith(str(directory))
    assert all(name in str(error.value) for name in named), error.value


def header_of(file: Path) -> tuple[dict[str, Any], bytes]:
    data = file.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write_header(file: Path, header: Any, body: bytes) -> None:
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + body)


@given(data=st.data())
@FUZZ
def test_truncated_files(whole: Path, sharded: Path, data: st.DataObject) -> None:
    source = data.draw(st.sampled_from([whole, sharded]))
    names = sorted(path.name for path in source.iterdir())
    name = data.draw(st.sampled_from(names))
    with copy_of(source) as directory:
        content = (directory / name).read_bytes()
        ends = st.integers(0, len(content) - 1) | st.integers(0, min(40, len(content) - 1))
        (directory / name).write_bytes(content[: data.draw(ends)])
        refused(directory, name)


@given(data=st.data())
@FUZZ
def test_flipped_header_bytes(whole: Path, data: st.DataObject) -> None:
    with copy_of(whole) as directory:
        file = directory / "model.safetensors"
        content = bytearray(file.read_bytes())
        length = struct.unpack("<Q", content[:8])[0]
        place = data.draw(st.integers(0, 7) | st.integers(8, 7 + length))
        content[place] ^= data.draw(st.integers(1, 255))
        file.write_bytes(content)
        same_or_refused(directory, whole)


@given(data=st.data())
@FUZZ
def test_inserted_and_lost_bytes(whole: Path, data: st.DataObject) -> None:
    with copy_of(whole) as directory:
        file = directory / "model.safetensors"
        content = file.read_bytes()
        place = data.draw(st.integers(0, len(content) - 1))
        new = data.draw(st.binary(min_size=1, max_size=20))
        lost = data.draw(st.booleans())
        file.write_bytes(content[:place] + (b"" if lost else new) + content[place + (len(new) if lost else 0) :])
        refused(directory, "model.safetensors")


@given(data=st.data())
@FUZZ
def test_odd_values_in_the_header(whole: Path, data: st.DataObject) -> None:
    with copy_of(whole) as directory:
        file = directory / "model.safetensors"
        header, body = header_of(file)
        name = data.draw(st.sampled_from(sorted(header)))
        key = data.draw(st.sampled_from(["dtype", "shape", "data_offsets", None]))
        weird = st.sampled_from([*WEIRD, "F16", "I32", "F64"])
        value = data.draw(weird | st.lists(weird, min_size=1, max_size=3))
        if key is None or name == "__metadata__":
            header[name] = value
        else:
            header[name][key] = value
        write_header(file, header, body)
        same_or_refused(directory, whole)


@given(data=st.data())
@FUZZ
def test_missing_renamed_and_exchanged_tensors(whole: Path, data: st.DataObject) -> None:
    with copy_of(whole) as directory:
        file = directory / "model.safetensors"
        header, body = header_of(file)
        names = sorted(set(header) - {"__metadata__"})
        first, second = data.draw(st.sampled_from(names)), data.draw(st.sampled_from(names))
        action = data.draw(st.sampled_from(["remove", "rename", "exchange"]))
        if action == "exchange":
            header[first], header[second] = header[second], header[first]
            write_header(file, header, body)
            if header[first]["shape"] != header[second]["shape"]:
                refused(directory, "model.safetensors")
            return
        entry = header.pop(first)
        if action == "rename":
            header[first + data.draw(st.sampled_from(["x", ".weight", "\x00", "é"]))] = entry
        write_header(file, header, body)
        refused(directory, "safetensors")


@given(data=st.data())
@FUZZ
def test_odd_values_in_the_json_files(sharded: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["config", "generation_config", "tokenizer_config", "model.safetensors.index"]))
    with copy_of(sharded) as directory:
        file = directory / f"{name}.json"
        table = json.loads(file.read_text())
        inner = data.draw(st.sampled_from([None, *(key for key, value in table.items() if isinstance(value, dict))]))
        target = table[inner] if inner else table
        target[data.draw(st.sampled_from(sorted(target)))] = data.draw(st.sampled_from(WEIRD))
        file.write_text(json.dumps(table))
        same_or_refused(directory, sharded)


@given(
    kind=st.sampled_from(["default", "linear", "yarn", "llama3", "dynamic", 3]),
    key=st.sampled_from(["factor", "rope_theta", "original_max_position_embeddings", "beta_fast", "low_freq_factor"]),
    value=st.sampled_from(WEIRD),
    nested=st.sampled_from(["rope_scaling", "rope_parameters"]),
)
@FUZZ
def test_odd_rope_settings(whole: Path, kind: Any, key: str, value: Any, nested: str) -> None:
    with copy_of(whole) as directory:
        table = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(
            json.dumps({**table, nested: {"rope_type": kind, "factor": 2.0, key: value}})
        )
        same_or_refused(directory, whole)


@given(data=st.data())
@FUZZ
def test_index_files_that_point_elsewhere(sharded: Path, data: st.DataObject) -> None:
    entry = data.draw(
        st.sampled_from(["/etc/passwd", "../x", "a/b", "..", ".", "", SHARD + "/", "./" + SHARD, "\x00"])
        | st.text(max_size=10)
        | st.builds(lambda text: f"model{text}.safetensors", st.text(max_size=300))
        | st.sampled_from(WEIRD)
    )
    with copy_of(sharded) as directory:
        index = directory / "model.safetensors.index.json"
        table = json.loads(index.read_text())
        table["weight_map"][data.draw(st.sampled_from(sorted(table["weight_map"])))] = entry
        index.write_text(json.dumps(table))
        refused(directory, "model.safetensors.index.json: ")


@given(architecture=st.text(max_size=12).filter(lambda name: name not in ARCHITECTURES) | st.sampled_from(WEIRD[:-9]))
@FUZZ
def test_unknown_architectures(whole: Path, architecture: Any) -> None:
    with copy_of(whole) as directory:
        table = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps({**table, "model_type": architecture}))
        refused(directory, "config.json: model_type: expected one of llama, qwen2, qwen3, qwen2_moe, qwen3_moe")


@given(content=st.binary(max_size=60) | st.sampled_from([b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}", b"[1]"]))
@FUZZ
def test_files_that_are_no_json(whole: Path, content: bytes) -> None:
    with copy_of(whole) as directory:
        for name in ("model.safetensors.index.json", "config.json"):
            (directory / name).write_bytes(content)
            refused(directory, name)


@given(content=st.binary(max_size=80), length=st.integers(0, 2**64 - 1) | st.integers(0, 80))
@FUZZ
def test_files_that_are_no_safetensors(whole: Path, content: bytes, length: int) -> None:
    with copy_of(whole) as directory:
        (directory / "model.safetensors").write_bytes(struct.pack("<Q", length) + content)
        refused(directory, "model.safetensors")


def test_swapped_files(whole: Path, sharded: Path) -> None:
    with copy_of(sharded) as directory:
        second = directory / "model-00002-of-00002.safetensors"
        (directory / SHARD).rename(directory / "x")
        second.rename(directory / SHARD)
        (directory / "x").rename(second)
        refused(directory, "model.safetensors.index.json", "found in model-0000")
    with copy_of(sharded) as directory:
        shutil.copy(whole / "config.json", directory)
        refused(directory, ".safetensors")
    with copy_of(whole) as directory:
        shutil.copy(sharded / "config.json", directory)
        refused(directory, "model.safetensors")
    with copy_of(whole) as directory:
        shutil.copy(directory / "config.json", directory / "model.safetensors")
        refused(directory, "model.safetensors: header length")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_directory_in_place_of_a_file(whole: Path, name: str) -> None:
    with copy_of(whole) as directory:
        (directory / name).unlink()
        (directory / name).mkdir()
        refused(directory, f"{name}: expected a file, found something else")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": [8, 8]}, "data_offsets: expected a pair 256 bytes apart, found (0, "),
        ({"dtype": "F16"}, "data_offsets: expected a pair 17152 bytes apart, found (0, 34304)"),
        ({"data_offsets": [0, 4, 8]}, "data_offsets: expected a pair 34304 bytes apart, found (0, 4, 8)"),
        ({"shape": [-268, -32]}, "shape: expected a list of natural numbers, found [-268, -32]"),
        ({"shape": [268.0, 32]}, "shape: expected a list of natural numbers, found [268.0, 32]"),
        ({"dtype": "F4"}, "dtype: expected one of BOOL, U8, "),
    ],
    ids=str,
)
def test_a_wrong_header_is_found_before_mlx_reads_it(whole: Path, change: dict[str, Any], message: str) -> None:
    with copy_of(whole) as directory:
        file = directory / "model.safetensors"
        header, body = header_of(file)
        name = next(name for name, entry in header.items() if entry.get("data_offsets", [1])[0] == 0)
        assert header[name]["shape"] == [268, 32]
        write_header(file, {**header, name: {**header[name], **change}}, body)
        refused(directory, f"model.safetensors: {name}: {message}")


@pytest.mark.parametrize("length", [10**5, 10**9, 2**63])
def test_a_header_longer_than_its_file(whole: Path, length: int) -> None:
    with copy_of(whole) as directory:
        (directory / "model.safetensors").write_bytes(struct.pack("<Q", length) + b"{}" * 100)
        refused(directory, f"model.safetensors: header length: expected at most 200 (the file's size), found {length}")


def test_overlapping_tensors(whole: Path) -> None:
    with copy_of(whole) as directory:
        header, body = header_of(directory / "model.safetensors")
        first, second = f"{ATTENTION}.q_norm.weight", f"{ATTENTION}.k_norm.weight"
        header[first]["data_offsets"] = header[second]["data_offsets"]
        write_header(directory / "model.safetensors", header, body)
        refused(directory, "model.safetensors", "data_offsets: expected to begin at")


def test_a_key_that_appears_twice(whole: Path) -> None:
    with copy_of(whole) as directory:
        text = (directory / "config.json").read_text()
        (directory / "config.json").write_text(text.replace("{", '{"hidden_size": 32,', 1))
        refused(directory, "config.json", "'hidden_size' appears twice")


def test_the_untouched_directories_load(whole: Path, sharded: Path) -> None:
    for directory in (whole, sharded):
        with copy_of(directory) as copied:
            write_json(copied / "unrelated.json", {})
            assert len(read(copied)[0]) > 10

"""A cache on disk: back as it was, or refused; and what was there before stays whole when writing fails."""

import errno
import os
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.cache.kinds import CONFIG, KINDS, inputs, oracle, step
from tiny_llm.cache import disk, sealed
from tiny_llm.cache.contiguous import ContiguousCache
from tiny_llm.cache.quantized import QuantizedCache
from tiny_llm.cache.rotating import RotatingCache
from tiny_llm.cache.rotating_quantized import RotatingQuantizedCache
from tiny_llm.model.ops import PLAIN

MODEL = "a" * 64
NATIVE = PLAIN._replace(kernels="cpu")
TOKENS = list(range(40, 90))


def filled(kind: str, length: int, trimmed: int = 0):
    cache, layers = KINDS[kind](CONFIG, PLAIN), [inputs(CONFIG, 50, seed) for seed in (0, 1)]
    if length:
        step(cache, layers, 0, length)
    cache.trim(trimmed)
    return cache, layers


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "prompt.safetensors"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("length", "trimmed"), [(0, 0), (1, 0), (5, 2), (20, 0), (40, 1)])
def test_round_trip_and_on_from_there(path: Path, kind: str, length: int, trimmed: int) -> None:
    cache, layers = filled(kind, length, trimmed)
    disk.save(path, cache, TOKENS, MODEL)
    back, kept = KINDS[kind](CONFIG, PLAIN), length - trimmed
    assert disk.load(path, back, MODEL) == TOKENS[:kept]
    assert (back.offset, back.trimmable) == (cache.offset, cache.trimmable)
    got = np.array(mx.concatenate([step(back, layers, at, at + 1)[1] for at in range(kept, 50)]))
    np.testing.assert_allclose(got, oracle(kind, *layers[1])[kept:], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_states_the_arrays_that_it_has(kind: str) -> None:
    cache, _ = filled(kind, 40)
    parts = cache.layout * CONFIG.num_hidden_layers
    for buffers in (cache.keys, cache.values):
        assert len(buffers) == len(parts)
        for buffer, part in zip(buffers, parts, strict=True):
            assert (buffer.shape[0], buffer.shape[2]) == (part.heads, part.width) and buffer.dtype in part.dtypes
            assert cache.max_slots is None or buffer.shape[1] == cache.max_slots
    assert (cache.max_slots is None) == ("rotating" not in kind)


def by_hand(path: Path, changes: dict[str, mx.array | None], about: dict[str, str] | None = None) -> None:
    """Write the file again with other arrays (None leaves one out) and metadata, and a digest that is right."""
    arrays, metadata = mx.load(str(path), return_metadata=True)
    changed = {name: array for name, array in (arrays | changes).items() if array is not None}
    metadata.pop("sha256")
    sealed.write(path, metadata | (about or {}), changed)


KEYS = mx.zeros((2, 20, 32))
BAD_ARRAYS = {
    "a layer is missing": {"keys.1": None, "values.1": None},
    "one array is missing": {"values.1": None},
    "an array too many": {"keys.2": KEYS, "values.2": KEYS},
    "an array of another name": {"keys.1": None, "key.1": KEYS},
    "too few slots": {"keys.1": KEYS[:, :3]},
    "no slots": {"keys.1": KEYS[:, :0]},
    "too many slots": {"keys.1": mx.zeros((2, 21, 32))},
    "too few heads": {"values.0": KEYS[:1]},
    "another width": {"values.0": KEYS[..., :16]},
    "another rank": {"values.0": KEYS[0]},
    "integers": {"keys.0": KEYS.astype(mx.int32)},
    "NaN": {"keys.0": KEYS * mx.nan},
    "infinity": {"values.1": KEYS + mx.inf},
    "too few tokens": {"tokens": mx.array([1, 2, 3], mx.int32)},
    "a token outside the vocabulary": {"tokens": mx.full(20, CONFIG.vocab_size, mx.int32)},
    "a negative token": {"tokens": mx.full(20, -1, mx.int32)},
    "tokens of another type": {"tokens": mx.zeros(20)},
}


@pytest.mark.parametrize("what", BAD_ARRAYS)
def test_arrays_made_by_hand_are_refused(path: Path, what: str) -> None:
    """A missing layer was a read of memory that is not there; NaN and short keys gave wrong answers."""
    disk.save(path, filled("contiguous", 20)[0], TOKENS, MODEL)
    by_hand(path, {})
    assert disk.load(path, KINDS["contiguous"](CONFIG, PLAIN), MODEL) == TOKENS[:20]
    by_hand(path, BAD_ARRAYS[what])
    cache = KINDS["contiguous"](CONFIG, PLAIN)
    with pytest.raises(ValueError, match="prompt.safetensors: .*delete it"):
        disk.load(path, cache, MODEL)
    assert cache.offset == 0 and not cache.state


@pytest.mark.parametrize("offset", ["21", "19", "-1", "2e1", "", "9" * 30])
def test_a_length_that_is_not_the_arrays_is_refused(path: Path, offset: str) -> None:
    disk.save(path, filled("contiguous", 20)[0], TOKENS, MODEL)
    by_hand(path, {}, {"offset": offset})
    with pytest.raises(ValueError, match="delete it"):
        disk.load(path, KINDS["contiguous"](CONFIG, PLAIN), MODEL)


@pytest.mark.parametrize("kind", ["8 bits", "4 bits", "rotating, 8 bits"])
@pytest.mark.parametrize("part", range(3))
def test_packed_arrays_made_by_hand_are_refused(path: Path, kind: str, part: int) -> None:
    """Codes, scales and biases, each of another width, another type and not finite."""
    disk.save(path, filled(kind, 20)[0], TOKENS, MODEL)
    array = mx.load(str(path))[f"values.{part}"]
    bad = [array[..., :0], array.astype(mx.int32), array[:, :-1]] + ([array * mx.nan] if part else [])
    for changed in bad:
        by_hand(path, {f"values.{part}": changed})
        with pytest.raises(ValueError, match=f"values.{part}: expected"):
            disk.load(path, KINDS[kind](CONFIG, PLAIN), MODEL)


def test_a_file_of_any_name(tmp_path: Path) -> None:
    """MLX takes the format from a name's end, and a name without one was written and never read again."""
    cache, _ = filled("contiguous", 5)
    for name in ("kept", "kept.cache", "kept.npz"):
        disk.save(tmp_path / name, cache, TOKENS, MODEL)
        assert disk.load(tmp_path / name, KINDS["contiguous"](CONFIG, PLAIN), MODEL) == TOKENS[:5]


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_half_precision_comes_back_bit_by_bit(path: Path, dtype: mx.Dtype) -> None:
    cache, back = (KINDS["contiguous"](CONFIG, PLAIN) for _ in range(2))
    step(cache, [tuple(x.astype(dtype) for x in inputs(CONFIG, 9, seed)) for seed in (0, 1)], 0, 9)
    disk.save(path, cache, TOKENS, MODEL)
    disk.load(path, back, MODEL)
    for a, b in zip(cache.state, back.state, strict=True):
        assert b.dtype == dtype and mx.array_equal(a[:, :9], b)


def test_the_file_is_safetensors_and_holds_no_spare_room(path: Path) -> None:
    cache, _ = filled("contiguous", 10)
    disk.save(path, cache, TOKENS, MODEL)
    arrays, about = mx.load(str(path), return_metadata=True)
    assert sorted(arrays) == ["keys.0", "keys.1", "tokens", "values.0", "values.1"]
    assert arrays["keys.1"].shape == (2, 10, 32)
    assert about["format"] == "tiny-llm prompt cache" and about["offset"] == "10"


@pytest.mark.parametrize("kind", ["contiguous", "rotating", "4 bits"])
def test_cut_off_anywhere_it_is_refused(path: Path, kind: str) -> None:
    disk.save(path, filled(kind, 3)[0], TOKENS, MODEL)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for length in {*range(header + 40), *range(header, len(whole), 97), len(whole) - 1}:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=f"{path}: .*delete it, and it will be written anew"):
            disk.load(path, KINDS[kind](CONFIG, PLAIN), MODEL)
    path.write_bytes(whole + b"\0")
    with pytest.raises(ValueError, match="damaged"):
        disk.load(path, KINDS[kind](CONFIG, PLAIN), MODEL)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bytes of a file of each kind."""
    path = tmp_path_factory.mktemp("saved") / "x"
    files = {}
    for kind in ("contiguous", "rotating", "8 bits"):
        disk.save(path, filled(kind, 3)[0], TOKENS, MODEL)
        files[kind] = path.read_bytes()
    return files


@settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_changed_byte_anywhere_is_noticed(path: Path, saved: dict[str, bytes], data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(saved)))
    whole = bytearray(saved[kind])
    header = 8 + int.from_bytes(whole[:8], "little")
    at = data.draw(st.one_of(st.integers(0, header - 1), st.integers(header, len(whole) - 1)))
    whole[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(whole)
    cache = KINDS[kind](CONFIG, PLAIN)
    with pytest.raises(ValueError, match=f"{path}: "):
        disk.load(path, cache, MODEL)
    assert (cache.offset, cache.state) == (0, [])


def test_every_byte_of_the_header_counts(path: Path) -> None:
    disk.save(path, filled("contiguous", 2)[0], TOKENS, MODEL)
    whole = path.read_bytes()
    for at in range(8 + int.from_bytes(whole[:8], "little")):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(ValueError, match=f"{path}: "):
            disk.load(path, KINDS["contiguous"](CONFIG, PLAIN), MODEL)


@pytest.mark.parametrize("content", [b"", b"{}", b"\0" * 100, b"\xff" * 100, b"\x02\0\0\0\0\0\0\0{}"])
def test_other_files_are_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(ValueError, match="expected a tiny-llm prompt cache"):
        disk.load(path, KINDS["contiguous"](CONFIG, PLAIN), MODEL)
    with pytest.raises(ValueError, match="expected a file, found something else"):
        disk.load(path.parent, KINDS["contiguous"](CONFIG, PLAIN), MODEL)


def test_other_models_versions_and_settings_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.save(path, filled("rotating", 3)[0], TOKENS, MODEL)
    with pytest.raises(ValueError, match="is of another model"):
        disk.load(path, KINDS["rotating"](CONFIG, PLAIN), "b" * 64)
    for other, message in (
        (KINDS["contiguous"](CONFIG, PLAIN), "cache: expected contiguous .* found rotating"),
        (KINDS["rotating, 8 bits"](CONFIG, PLAIN), "cache: expected rotating quantized as .* found rotating;"),
        (RotatingCache(CONFIG, PLAIN, window=10, sinks=2, spare=5), "window: expected 10 .* found 9"),
        (RotatingCache(CONFIG, PLAIN, window=9, sinks=3, spare=5), "sinks: expected 3 .* found 2"),
    ):
        with pytest.raises(ValueError, match=f"{path}: {message}"):
            disk.load(path, other, MODEL)
    disk.save(path, filled("4 bits", 3)[0], TOKENS, MODEL)
    with pytest.raises(ValueError, match="bits: expected 8 .* found 4"):
        disk.load(path, QuantizedCache(CONFIG, PLAIN, 8), MODEL)
    disk.save(path, filled("rotating, 8 bits", 3)[0], TOKENS, MODEL)
    with pytest.raises(ValueError, match="bits: expected 4 .* found 8"):
        disk.load(path, RotatingQuantizedCache(CONFIG, PLAIN, 4, window=9, sinks=2, spare=5), MODEL)
    monkeypatch.setattr(disk, "VERSION", 2)
    with pytest.raises(ValueError, match="version: expected 2, found '1'"):
        disk.load(path, KINDS["4 bits"](CONFIG, PLAIN), MODEL)


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_whole(path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    disk.save(path, filled("contiguous", 3)[0], TOKENS, MODEL)
    before = path.read_bytes()

    def full(*_args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
        disk.save(path, filled("contiguous", 9)[0], TOKENS, MODEL)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_named(path: Path) -> None:
    with pytest.raises(OSError, match=f"No such file or directory: '{path.parent}/none/x'"):
        disk.save(path.parent / "none" / "x", filled("contiguous", 3)[0], TOKENS, MODEL)


@pytest.mark.parametrize("kind", ["contiguous", "8 bits"])
def test_the_cpu_kernels_get_float32(path: Path, kind: str) -> None:
    """They refused a cache in half precision in the middle of a step."""
    cache, back = KINDS[kind](CONFIG, PLAIN), KINDS[kind](CONFIG, NATIVE)
    step(cache, [tuple(x.astype(mx.float16) for x in inputs(CONFIG, 9, seed)) for seed in (0, 1)], 0, 9)
    disk.save(path, cache, TOKENS, MODEL)
    disk.load(path, back, MODEL)
    assert {array.dtype for array in back.state} <= {mx.float32, mx.uint32}
    for a, b in zip(cache.state, back.state, strict=True):
        assert mx.array_equal(a[:, :9], b)


def test_a_cache_of_other_activations_is_refused(path: Path) -> None:
    """Keys and values that were computed with int8 activations differ."""
    rounding = NATIVE._replace(int8=True)
    disk.save(path, ContiguousCache(CONFIG, rounding), TOKENS, MODEL)
    assert disk.load(path, ContiguousCache(CONFIG, rounding), MODEL) == []
    with pytest.raises(ValueError, match="activations: expected float as this run sets it, found int8; run with"):
        disk.load(path, ContiguousCache(CONFIG, NATIVE), MODEL)
    disk.save(path, ContiguousCache(CONFIG, NATIVE), TOKENS, MODEL)
    with pytest.raises(ValueError, match="activations: expected int8 as this run sets it, found float"):
        disk.load(path, ContiguousCache(CONFIG, rounding), MODEL)


def test_a_file_without_activations_is_of_floats(path: Path) -> None:
    """Files of earlier versions do not name them."""
    disk.save(path, filled("contiguous", 5)[0], TOKENS, MODEL)
    arrays, metadata = mx.load(str(path), return_metadata=True)
    for name in ("sha256", "activations"):
        metadata.pop(name)
    sealed.write(path, metadata, arrays)
    assert disk.load(path, KINDS["contiguous"](CONFIG, PLAIN), MODEL) == TOKENS[:5]

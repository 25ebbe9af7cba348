"""Write a quantized copy of a dense model directory, in the format that MLX's programs read.

The new directory is written beside its place under another name, and moved there when it is complete and checked. After
a failure the old directory is still there.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx

from tiny_llm.config import QuantizationConfig
from tiny_llm.config.fields import require
from tiny_llm.model.directory import load_config, read_json
from tiny_llm.model.safetensors import INDEX, read_entries, read_header
from tiny_llm.model.template import DIRECTORY as TEMPLATES
from tiny_llm.quantize.affine import check_fit
from tiny_llm.quantize.plan import as_json, matrices, settings_of

SHARD = 5 * 10**9  # bytes of a file at most, as on the Hub
COPIED = ("*.json", "*.jinja", f"{TEMPLATES}/*.jinja", "*.txt", "*.jsonl", "*.tiktoken", "tokenizer.model", "LICENSE*")
REWRITTEN = ("config.json", INDEX)


def check_place(source: Path, out: Path, overwrite: bool) -> None:
    """Check that a model made of `source` may be written to `out`. Raises ValueError with the remedy if not."""
    place = out.resolve()
    origin = source.resolve()
    nested = origin in place.parents or place in origin.parents
    if nested or place == origin:
        raise ValueError(f"{out}: expected a place of its own for the result, found the input {source}: name another")
    if not out.exists():
        return
    require(overwrite, f"{out}: expected no such directory yet, found one: name another, or allow to overwrite it")
    known = out.is_dir() and _is_replaceable(out)
    require(known, f"{out}: expected a quantized model to overwrite, found something else: name another directory")


def _is_replaceable(directory: Path) -> bool:
    """Return whether a directory is empty or holds a quantized model."""
    config = read_json(directory / "config.json", optional=True)
    return "quantization" in config.data or not any(directory.iterdir())


def write_quantized(source: Path, out: Path, plan: QuantizationConfig, *, overwrite: bool = False) -> None:
    """Quantize a model directory by `plan` and write it, with its tokenizer and other small files, to `out`.

    Weights stored in float32 become bfloat16 first: scales have the weights' type, and float32 scales would make 5 bits
    a weight out of 4. Raises ValueError for what `check_place` and `matrices` refuse and for weights that are not
    finite, OSError if a file cannot be written.
    """
    check_place(source, out, overwrite)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(out)) from error
    try:
        _write_weights(new, _quantized(source, plan))
        _write_rest(source, new, plan)
        new.chmod(0o755)
        _move(new, out)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _quantized(source: Path, plan: QuantizationConfig) -> Iterator[tuple[str, mx.array]]:
    """Yield the names and tensors of the quantized model, evaluated one by one."""
    config = load_config(source)
    known = {matrix.path for matrix in matrices(source)}
    entries = read_entries(source, config.tie_word_embeddings)
    files = {entry.file for entry in entries.values()}
    for file in sorted(files):
        loaded = mx.load(str(file))
        assert isinstance(loaded, dict)
        names = [name for name in entries if entries[name].file == file]
        for name in sorted(names):
            array = loaded.pop(name)
            if array.dtype == mx.float32:
                array = array.astype(mx.bfloat16)
            path = name.removesuffix(".weight")
            own = None
            if path in known and path != name:
                own = settings_of(plan, path)
            tensors = {name: array} if own is None else _packed(array, own, path)
            mx.eval(tensors)
            yield from tensors.items()


def _packed(matrix: mx.array, own: QuantizationConfig, path: str) -> dict[str, mx.array]:
    """Quantize one matrix by MLX, which is faster than its plain twin `affine.quantize` and equal bit for bit."""
    finite = mx.isfinite(matrix).all()
    require(bool(finite.item()), f"{path}: expected finite weights, found others: the file is bad")
    check_fit(matrix.shape[1], own.group_size, own.bits, path)
    packed, scales, biases = mx.quantize(matrix, group_size=own.group_size, bits=own.bits)
    return {f"{path}.weight": packed, f"{path}.scales": scales, f"{path}.biases": biases}


def _write_weights(directory: Path, tensors: Iterator[tuple[str, mx.array]]) -> None:
    """Write model.safetensors or, if it were larger than SHARD bytes, several files and an index."""
    shards: list[list[str]] = []  # the names of the tensors in each file
    waiting: dict[str, mx.array] = {}
    size = 0
    total = 0
    for name, tensor in tensors:
        if waiting and size + tensor.nbytes > SHARD:
            _write_shard(_shard(directory, len(shards)), waiting)
            shards.append(list(waiting))
            waiting.clear()
            size = 0
        waiting[name] = tensor
        size += tensor.nbytes
        total += tensor.nbytes
    _write_shard(_shard(directory, len(shards)), waiting)
    shards.append(list(waiting))
    if len(shards) == 1:
        _shard(directory, 0).rename(directory / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for i, names in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        _shard(directory, i).rename(directory / file)
        weight_map |= dict.fromkeys(names, file)
    _write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _shard(directory: Path, number: int) -> Path:
    """Return the name of a file of weights until the number of files is known."""
    return directory / f"shard-{number}.safetensors"


def _write_shard(file: Path, tensors: dict[str, mx.array]) -> None:
    try:
        mx.save_safetensors(str(file), tensors, {"format": "mlx"})
    except RuntimeError as error:  # MLX's error for a full disk, if it notices
        place = file.parent.parent
        raise OSError(f"{place}: weights can't be written there: {error} Is the disk full?") from error
    read_header(file)  # finds a file that is cut off because the disk was full


def _write_rest(source: Path, directory: Path, plan: QuantizationConfig) -> None:
    """Write the configuration with the plan in it, and copies of the tokenizer's and all other small files."""
    config = dict(read_json(source / "config.json").data)
    table = as_json(plan)
    for key in ("torch_dtype", "dtype"):
        if config.get(key) == "float32":
            config[key] = "bfloat16"
    _write_json(directory / "config.json", config | {"quantization": table, "quantization_config": table})
    for pattern in COPIED:
        for file in source.glob(pattern):
            if not file.is_file() or file.name in REWRITTEN:
                continue
            copy = directory / file.relative_to(source)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, copy)


def _write_json(file: Path, data: Any) -> None:
    text = json.dumps(data, indent=2, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8")


def _move(new: Path, out: Path) -> None:
    """Move a complete directory to its place; delete an old one there only after the new one has its place."""
    for file in [*new.rglob("*"), new]:
        handle = os.open(file, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    if not out.exists():
        new.rename(out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent))
    out.rename(old / out.name)
    try:
        new.rename(out)
    except BaseException:
        (old / out.name).rename(out)
        old.rmdir()
        raise
    shutil.rmtree(old)

"""From a dense model directory to a quantized one, in the format that MLX's programs read.

The new directory is made beside its place under another name and moved there when all of it is written and checked:
a failure leaves what was there before.
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
from tiny_llm.model.ops import Weight
from tiny_llm.model.safetensors import INDEX, read_entries, read_header
from tiny_llm.model.template import DIRECTORY as TEMPLATES
from tiny_llm.quantize.affine import check_fit
from tiny_llm.quantize.plan import as_json, matrices, settings_of

SHARD = 5 * 10**9  # bytes of a file at most, as on the Hub
COPIED = ("*.json", "*.jinja", f"{TEMPLATES}/*.jinja", "*.txt", "*.jsonl", "*.tiktoken", "tokenizer.model", "LICENSE*")
REWRITTEN = ("config.json", INDEX)


def check_place(source: Path, out: Path, overwrite: bool) -> None:
    """Whether a model made of `source` may be written to `out`. Raises ValueError with the remedy where not."""
    place, origin = out.resolve(), source.resolve()
    if place == origin or origin in place.parents or place in origin.parents:
        raise ValueError(f"{out}: expected a place of its own for the result, found the input {source}: name another")
    if not out.exists():
        return
    require(overwrite, f"{out}: expected no such directory yet, found one: name another, or allow to overwrite it")
    config = read_json(out / "config.json", optional=True) if out.is_dir() else None
    known = config is not None and (not any(out.iterdir()) or "quantization" in config.data)
    require(known, f"{out}: expected a quantized model to overwrite, found something else: name another directory")


def write_quantized(source: Path, out: Path, plan: QuantizationConfig, *, overwrite: bool = False) -> None:
    """Quantize a model directory by `plan` and write it with all that belongs to it to `out`.

    Weights stored in float32 become bfloat16 first: scales keep the weights' type, and in float32 they would cost 5
    bits a weight where 4 are meant. Raises ValueError for what `check_place` and `matrices` refuse, and for weights
    that are not finite; OSError where nothing can be written.
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
    """The new tensors, evaluated one by one."""
    config, known = load_config(source), {matrix.path for matrix in matrices(source)}
    entries = read_entries(source, config.tie_word_embeddings)
    for file in sorted({entry.file for entry in entries.values()}):
        loaded = mx.load(str(file))
        assert isinstance(loaded, dict)
        for name in sorted(name for name, entry in entries.items() if entry.file == file):
            path, array = name.removesuffix(".weight"), loaded.pop(name)
            array = array.astype(mx.bfloat16) if array.dtype == mx.float32 else array
            own = settings_of(plan, path) if path in known and path != name else None
            tensors = {name: array}
            if own:
                tensors = {f"{path}.{part}": tensor for part, tensor in _packed(array, own, path).items()}
            mx.eval(tensors)
            yield from tensors.items()


def _packed(matrix: mx.array, own: QuantizationConfig, path: str) -> Weight:
    """One matrix, quantized by MLX: much faster than `affine.quantize`, its plain twin, and the same bit for bit."""
    require(bool(mx.isfinite(matrix).all().item()), f"{path}: expected finite weights, found others: the file is bad")
    check_fit(matrix.shape[1], own.group_size, own.bits, path)
    parts = mx.quantize(matrix, group_size=own.group_size, bits=own.bits)
    return dict(zip(("weight", "scales", "biases"), parts, strict=True))


def _write_weights(directory: Path, tensors: Iterator[tuple[str, mx.array]]) -> None:
    """model.safetensors or, beyond SHARD bytes, several files and an index."""
    shards: list[list[str]] = []
    waiting: dict[str, mx.array] = {}
    total = size = 0

    def flush() -> None:
        file = directory / f"shard-{len(shards)}.safetensors"
        try:
            mx.save_safetensors(str(file), waiting, {"format": "mlx"})
        except RuntimeError as error:  # so MLX speaks of a full disk, if it does
            raise OSError(f"{directory.parent}: weights can't be written there: {error} Is the disk full?") from error
        read_header(file)  # a disk that filled up shows here, too
        shards.append(list(waiting))
        waiting.clear()

    for name, tensor in tensors:
        if waiting and size + tensor.nbytes > SHARD:
            flush()
            size = 0
        waiting[name] = tensor
        size, total = size + tensor.nbytes, total + tensor.nbytes
    flush()
    count = len(shards)
    names = [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    names = names if count > 1 else ["model.safetensors"]
    for i, name in enumerate(names):
        (directory / f"shard-{i}.safetensors").rename(directory / name)
    if count > 1:
        weight_map = {tensor: file for file, shard in zip(names, shards, strict=True) for tensor in shard}
        _write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_rest(source: Path, directory: Path, plan: QuantizationConfig) -> None:
    """The configuration with the plan in it, and copies of the tokenizer's and all other small files."""
    config = dict(read_json(source / "config.json").data)
    table = as_json(plan)
    for key in ("torch_dtype", "dtype"):
        if config.get(key) == "float32":
            config[key] = "bfloat16"
    _write_json(directory / "config.json", config | {"quantization": table, "quantization_config": table})
    for file in sorted({file for pattern in COPIED for file in source.glob(pattern)}):
        if file.is_file() and file.name not in REWRITTEN:
            copy = directory / file.relative_to(source)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, copy)


def _write_json(file: Path, data: Any) -> None:
    file.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _move(new: Path, out: Path) -> None:
    """Put a whole directory into its place; one that is there goes only when the new one stands."""
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

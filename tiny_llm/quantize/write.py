"""Write a model directory in the format that MLX's programs read: a quantized copy of a dense model, or a GGUF file's.

The new directory is written beside its place under another name, and moved there when it is complete and checked. After
a failure the old directory is still there.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import mlx.core as mx

from tiny_llm.config import QuantizationConfig
from tiny_llm.config.fields import require
from tiny_llm.model.directory import load_config
from tiny_llm.model.files import read_json, write_json
from tiny_llm.model.gguf import GgufFile
from tiny_llm.model.safetensors import INDEX, read_header
from tiny_llm.model.source import ModelSource, open_source
from tiny_llm.quantize.affine import check_fit
from tiny_llm.quantize.plan import as_json, matrices, settings_of
from tiny_llm.quantize.stacks import written_names

SHARD = 5 * 10**9  # bytes of a file at most, as on the Hub


def check_place(source: Path, out: Path, overwrite: bool) -> None:
    """Check that a model made of `source` may be written to `out`. Raises ValueError with the remedy if not."""
    place = out.resolve()
    origin = source.resolve()
    nested = origin in place.parents or place in origin.parents
    if nested or place == origin:
        raise ValueError(f"{out}: expected a place of its own for the result, found the input {source}: name another")
    _check_parent(out)
    if not out.exists():
        return
    require(overwrite, f"{out}: expected no such directory yet, found one: name another, or allow to overwrite it")
    known = out.is_dir() and _is_replaceable(out)
    require(known, f"{out}: expected a quantized model to overwrite, found something else: name another directory")


def _check_parent(out: Path) -> None:
    """Check that a directory can be made at `out`. Raises ValueError with the remedy if not."""
    require(
        out.exists() or not out.is_symlink(), f"{out}: expected no such directory yet, found a link that leads nowhere"
    )
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    require(parent.is_dir(), f"{parent}: expected a folder, found a file: name another place")
    require(os.access(parent, os.W_OK | os.X_OK), f"{parent}: nothing can be written there: name another place")


def _is_replaceable(directory: Path) -> bool:
    """Return whether a directory is empty or holds a quantized model."""
    config = read_json(directory / "config.json", optional=True)
    return "quantization" in config.data or not any(directory.iterdir())


def write_quantized(model: Path | ModelSource, out: Path, plan: QuantizationConfig, *, overwrite: bool = False) -> None:
    """Quantize a model by `plan` and write it, with its tokenizer and other small files, to `out`.

    Weights stored in float32 become bfloat16 first, or float16 among others in float16: scales have the weights' type,
    and float32 scales would make 5 bits a weight out of 4. Raises ValueError for what `check_place` and `matrices`
    refuse and for weights that are not finite, OSError if a file cannot be written.
    """
    source = open_source(model)
    check_place(source.path, out, overwrite)
    config = dict(source.json("config.json").data)
    for key in ("torch_dtype", "dtype"):
        if config.get(key) == "float32":
            config[key] = "bfloat16"
    config["quantization"] = config["quantization_config"] = as_json(plan)
    _write_model(source, out, config, _quantized(source, plan))


def convert(file: Path, out: Path) -> None:
    """Write the model of a GGUF file to the directory `out`, packed weights as they are.

    Norms in float32 become float16 or bfloat16, like the rest of the model, where that does not round them: other
    programs would compute in float32 otherwise. Raises ValueError for a broken file and a place that is taken, OSError
    if a file cannot be written.
    """
    require(not file.is_dir(), f"{file}: expected a GGUF file to convert, found a directory, which needs no conversion")
    _check_parent(out)
    require(not out.exists(), f"{out}: expected no such directory yet, found one: name another or remove it")
    source = GgufFile(file)
    _write_model(source, out, dict(source.json("config.json").data), _converted(source))


def _converted(source: ModelSource) -> Iterator[tuple[str, mx.array]]:
    """Yield the names and arrays of a model, evaluated one by one."""
    entries = source.entries(load_config(source).tie_word_embeddings)
    arrays = source.arrays()
    for name in entries:
        array = arrays.pop(name)
        if array.dtype == mx.float32 and array.ndim == 1 and source.dtype is not None:
            narrow = array.astype(source.dtype)
            if mx.array_equal(narrow.astype(mx.float32), array):
                array = narrow
        finite = array.dtype == mx.uint32 or bool(mx.isfinite(array).all().item())
        require(finite, f"{source.where(name)}: expected finite numbers, found others: the file is damaged")
        yield name, array


def _write_model(
    source: ModelSource, out: Path, config: Mapping[str, object], tensors: Iterator[tuple[str, mx.array]]
) -> None:
    """Write weights, configuration and the small files of `source` to `out`, whole or not at all."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(out)) from error
    try:
        _write_weights(new, tensors)
        write_json(new / "config.json", config)
        source.write_rest(new)
        new.chmod(0o755)
        _move(new, out)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _quantized(source: ModelSource, plan: QuantizationConfig) -> Iterator[tuple[str, mx.array]]:
    """Yield the names and tensors of the quantized model, evaluated one by one."""
    known = {matrix.path for matrix in matrices(source)}
    half = mx.bfloat16
    if source.dtype is not None and source.dtype == mx.float16:
        half = mx.float16
    config = load_config(source)
    entries = source.entries(config.tie_word_embeddings)
    written = written_names(source, config)
    arrays = source.arrays()
    for name in sorted(written, key=lambda name: (entries[written[name][0]].file, name)):
        path = name.removesuffix(".weight")
        own = None
        if path in known and path != name:
            own = settings_of(plan, path)
        parts = [_written(arrays.pop(stored), half, own, name) for stored in written[name]]
        tensors = parts[0]
        if written[name] != [name]:
            tensors = {key: mx.stack([part[key] for part in parts]) for key in parts[0]}
            mx.eval(tensors)
        yield from tensors.items()


def _written(array: mx.array, half: mx.Dtype, own: QuantizationConfig | None, name: str) -> dict[str, mx.array]:
    """Return what is written of a stored tensor, evaluated, so that its own memory can be freed."""
    if array.dtype == mx.float32:
        array = array.astype(half)
    tensors = {name: array}
    if own is not None:
        tensors = _packed(array, own, name.removesuffix(".weight"))
    mx.eval(tensors)
    return tensors


def _packed(matrix: mx.array, own: QuantizationConfig, path: str) -> dict[str, mx.array]:
    """Quantize a matrix, or a stack of them, by MLX: equal to its plain twin `affine.quantize`, and faster."""
    finite = mx.isfinite(matrix).all()
    require(bool(finite.item()), f"{path}: expected finite weights, found others: the file is bad")
    check_fit(matrix.shape[-1], own.group_size, own.bits, path)
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
    write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


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

"""Checkpoints that survive a kill at any moment: written aside, flushed to disk, then renamed; the last one is kept."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import mlx.core as mx

NAME, PREVIOUS = "checkpoint.safetensors", "checkpoint.previous.safetensors"
SPARE = 1.05  # room asked for, in sizes of the checkpoint


@dataclass(frozen=True)
class Checkpoint:
    """Arrays by name and the state that fits into JSON."""

    recipe: str
    arrays: dict[str, mx.array]
    state: dict[str, Any]


def save(directory: Path, checkpoint: Checkpoint) -> Path:
    """Write the checkpoint; the one before stays as `checkpoint.previous.safetensors`.

    Raises OSError when the disk has too little room, before anything that is there is touched.
    """
    directory.mkdir(parents=True, exist_ok=True)
    needed = int(sum(array.nbytes for array in checkpoint.arrays.values()) * SPARE) + 65536
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise OSError(
            f"{directory}: a checkpoint needs {needed >> 20} MB and {free >> 20} MB are free: make room and resume"
        )
    new = directory / "checkpoint.new.safetensors"
    metadata = {"recipe": checkpoint.recipe, "state": json.dumps(checkpoint.state)}
    try:
        mx.save_safetensors(str(new), checkpoint.arrays, metadata)
        flush(new)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    path = directory / NAME
    if path.exists():
        os.replace(path, directory / PREVIOUS)
    os.replace(new, path)
    flush(directory)
    return path


def flush(path: Path) -> None:
    """Have the file or directory really written."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def find(directory: Path) -> Path | None:
    """The newest checkpoint that is there."""
    return next((directory / name for name in (NAME, PREVIOUS) if (directory / name).exists()), None)


def load(path: Path, recipe: str | None) -> Checkpoint:
    """Read a checkpoint that `recipe` made, or any recipe when it is None.

    Raises ValueError when another recipe made it or the file is damaged.
    """
    try:
        arrays, metadata = cast(tuple[dict[str, mx.array], dict[str, str]], mx.load(str(path), return_metadata=True))
    except RuntimeError as error:
        raise ValueError(f"{path}: damaged ({error}): delete it, and {PREVIOUS} counts") from error
    maker = metadata.get("recipe", "unknown")
    if recipe not in (None, maker):
        raise ValueError(
            f"{path}: made by recipe {maker}, this is {recipe}: use another --out, the version of tiny-llm that began "
            "this training, or --relearn to go on from its weights with the lessons of today"
        )
    return Checkpoint(maker, arrays, json.loads(metadata["state"]))

"""Read single experts out of the files of a Hugging Face directory, whose other bytes are not touched."""

import os
from math import prod
from pathlib import Path

import mlx.core as mx
import numpy as np

from tiny_llm.config import ModelConfig
from tiny_llm.config.fields import require
from tiny_llm.model.expert_store import ExpertStore
from tiny_llm.model.loader import joined
from tiny_llm.model.moe import Matrices
from tiny_llm.model.ops import Ops
from tiny_llm.model.safetensors import FLOATS, TensorEntry
from tiny_llm.model.source import Directory, ModelSource

DTYPES = {"F32": mx.float32, "F16": mx.float16, "BF16": mx.bfloat16, "U32": mx.uint32}
PARTS = ("weight", "scales", "biases")


def open_store(
    source: ModelSource, config: ModelConfig, ops: Ops, dtype: mx.Dtype | None, expert_bytes: int
) -> ExpertStore:
    """Return a store of the model's experts, at most `expert_bytes` of them in memory, laid out for the operations.

    Raises ValueError for a model without experts, one that is no directory, and fewer bytes than an expert takes.
    """
    moe = config.moe
    if moe is None:
        raise ValueError("expert_bytes: expected a model with experts, found one without; leave it out")
    files = ExpertFiles(source, config, None if ops.native else dtype)

    def read(layer: int, expert: int) -> Matrices:
        mlp = files.read(layer, expert)
        ops.lay_out_mlp(mlp, config.hidden_size, moe.expert_size)
        return mlp

    nbytes = nbytes_of(read(moe.layers[0], 0))
    require(
        expert_bytes >= nbytes,
        f"expert_bytes: expected at least the {nbytes} bytes of one expert, found {expert_bytes}; all experts take "
        f"{nbytes * moe.num_experts * len(moe.layers)}",
    )
    return ExpertStore(read, moe.layers, nbytes, expert_bytes)


class ExpertFiles:
    """The experts of a directory. `dtype` as in `load_weights`, which has checked the files."""

    def __init__(self, source: ModelSource, config: ModelConfig, dtype: mx.Dtype | None):
        if not isinstance(source, Directory):
            raise ValueError(
                f"expert_bytes: {source.path} is no directory of safetensors, and experts are read from these alone; "
                "convert it with `tiny-llm models convert`"
            )
        self.entries = source.entries(config.tie_word_embeddings)
        self.dtype = dtype
        self._files: dict[Path, TensorFile] = {}
        for entry in self.entries.values():
            self._open(entry.file)  # all of them now, so that a later file of that name is not mixed in

    def read(self, layer: int, expert: int) -> Matrices:
        """Return the MLP of one expert: {"gate_up_proj", "down_proj"}."""
        path = f"model.layers.{layer}.mlp"
        gate = self._matrix(path, "gate_proj", expert)
        up = self._matrix(path, "up_proj", expert)
        return {"gate_up_proj": joined(gate, up), "down_proj": self._matrix(path, "down_proj", expert)}

    def _matrix(self, path: str, name: str, expert: int) -> Matrices:
        weight: Matrices = {}
        for part in PARTS:
            stack = self.entries.get(f"{path}.switch_mlp.{name}.{part}")
            entry = self.entries.get(f"{path}.experts.{expert}.{name}.{part}")
            if stack:
                weight[part] = self._array(stack, stack.shape[1:], expert)
            elif entry:
                weight[part] = self._array(entry, entry.shape, 0)
        return weight

    def _array(self, entry: TensorEntry, shape: tuple[int, ...], index: int) -> mx.array:
        """Return array number `index` of those of this shape that a tensor consists of."""
        dtype = DTYPES[entry.dtype]
        size = prod(shape) * dtype.size
        data = self._open(entry.file).read(entry.begin + index * size, size)
        array = mx.array(np.frombuffer(data, np.uint8)).view(dtype).reshape(shape)
        if self.dtype is None or entry.dtype not in FLOATS:
            return array
        return array.astype(self.dtype)

    def _open(self, file: Path) -> "TensorFile":
        if file not in self._files:
            self._files[file] = TensorFile(file)
        return self._files[file]


class TensorFile:
    """An open safetensors file. One that another file has replaced is read on; one that was written into is refused."""

    def __init__(self, path: Path):
        self.path = path
        self._stream = path.open("rb", buffering=0)
        self._state = self._now()
        self._data = 8 + int.from_bytes(self._stream.read(8), "little")  # where the tensors begin, behind the header

    def read(self, begin: int, size: int) -> bytes:
        """Return bytes of the tensors. Raises ValueError where the file has changed since it was opened."""
        data = os.pread(self._stream.fileno(), size, self._data + begin)
        if len(data) < size or self._now() != self._state:
            raise ValueError(f"{self.path}: expected the file that was loaded, found it changed; load the model again")
        return data

    def _now(self) -> tuple[int, int]:
        """Return the file's size and the time of its last change."""
        found = os.fstat(self._stream.fileno())
        return found.st_size, found.st_mtime_ns


def nbytes_of(mlp: Matrices) -> int:
    """Return the bytes of an MLP's matrices, laid out or not."""
    total = 0
    for weight in mlp.values():
        for part in weight.get("parts", [weight]):
            total += sum(array.nbytes for array in part.values())
    return total

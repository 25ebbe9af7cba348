"""Read single experts from the files of a Hugging Face directory."""

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


def open_store(files: "ExpertFiles", ops: Ops, expert_bytes: int) -> ExpertStore:
    """Return a store of a model's experts, which keeps at most `expert_bytes` of them, laid out for the operations.

    Raises ValueError for fewer bytes than an expert takes.
    """
    moe = files.moe

    def read(layer: int, expert: int) -> Matrices:
        mlp = files.read(layer, expert)
        ops.lay_out_mlp(mlp, files.hidden_size, moe.expert_size)
        return mlp

    sizes = {layer: mlp_bytes(read(layer, 0)) for layer in moe.layers}  # layers may have different bits
    largest = max(sizes.values())
    require(
        expert_bytes >= largest,
        f"expert_bytes: expected at least the {largest} bytes of one expert, found {expert_bytes}; all experts take "
        f"{sum(sizes.values()) * moe.num_experts}",
    )
    return ExpertStore(read, sizes, expert_bytes)


class ExpertFiles:
    """The experts of a directory, whose files are opened at once, and must be checked by `load_weights` before a read.

    `dtype` as in `load_weights`. Raises ValueError for a model without experts, and for a source that is no directory.
    """

    def __init__(self, source: ModelSource, config: ModelConfig, dtype: mx.Dtype | None):
        if config.moe is None:
            raise ValueError(
                f"expert_bytes: expected a model with experts, found {source.path}, a dense one; leave it out"
            )
        if not isinstance(source, Directory):
            raise ValueError(
                f"expert_bytes: expected a directory of safetensors files, found {source.path}; convert it with "
                "`tiny-llm models convert`"
            )
        self.moe = config.moe
        self.hidden_size = config.hidden_size
        self.dtype = dtype
        self.entries = source.entries(config.tie_word_embeddings)
        self._files: dict[Path, TensorFile] = {}
        for entry in self.entries.values():
            self._open(entry.file)  # before the first read: a file that replaces one later must not be mixed in

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
        """Return array number `index` of a tensor that consists of arrays of this shape."""
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
    """An open safetensors file. It can be read after another file has taken its name, but not after it was changed."""

    def __init__(self, path: Path):
        self.path = path
        self._stream = path.open("rb", buffering=0)
        self._state = self._now()
        self._data = 8 + int.from_bytes(self._stream.read(8), "little")  # the tensors begin after the header

    def read(self, begin: int, size: int) -> bytes:
        """Return `size` bytes of the tensors from `begin` on. Raises ValueError if the file was changed meanwhile."""
        data = os.pread(self._stream.fileno(), size, self._data + begin)
        if len(data) < size or self._now() != self._state:
            raise ValueError(f"{self.path}: expected the file that was loaded, found it changed; load the model again")
        return data

    def _now(self) -> tuple[int, int]:
        """Return the file's size and the time of its last change."""
        found = os.fstat(self._stream.fileno())
        return found.st_size, found.st_mtime_ns


def mlp_bytes(mlp: Matrices) -> int:
    """Return the bytes of an MLP's matrices, whether they are laid out for the CPU kernels or not."""
    total = 0
    for weight in mlp.values():
        for part in weight.get("parts", [weight]):
            total += sum(array.nbytes for array in part.values())
    return total

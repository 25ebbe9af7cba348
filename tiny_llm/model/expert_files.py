"""Read single experts out of the files of a Hugging Face directory, whose other bytes are not touched."""

from functools import cache
from math import prod
from pathlib import Path

import mlx.core as mx
import numpy as np

from tiny_llm.config import ModelConfig
from tiny_llm.model.loader import joined
from tiny_llm.model.moe import Weight
from tiny_llm.model.safetensors import FLOATS, TensorEntry
from tiny_llm.model.source import Directory, ModelSource

DTYPES = {"F32": mx.float32, "F16": mx.float16, "BF16": mx.bfloat16, "U32": mx.uint32}
PARTS = ("weight", "scales", "biases")


class ExpertFiles:
    """The experts of a directory. `dtype` as in `load_weights`; the files' tensors have been checked by that."""

    def __init__(self, source: ModelSource, config: ModelConfig, dtype: mx.Dtype | None):
        if not isinstance(source, Directory):
            raise ValueError(
                f"expert_bytes: {source.path} is no directory of safetensors, and experts are read from these alone; "
                "convert it with `tiny-llm models convert`"
            )
        self.entries = source.entries(config.tie_word_embeddings)
        self.dtype = dtype

    def read(self, layer: int, expert: int) -> Weight:
        """Return the MLP of one expert: {"gate_up_proj", "down_proj"}."""
        path = f"model.layers.{layer}.mlp"
        gate = self._matrix(path, "gate_proj", expert)
        up = self._matrix(path, "up_proj", expert)
        return {"gate_up_proj": joined(gate, up), "down_proj": self._matrix(path, "down_proj", expert)}

    def _matrix(self, path: str, name: str, expert: int) -> Weight:
        weight: Weight = {}
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
        begin = data_begin(entry.file) + entry.begin + index * size
        mapped = np.memmap(entry.file, np.uint8, "r", begin, (size,))
        array = mx.array(np.array(mapped)).view(dtype).reshape(shape)
        if self.dtype is None or entry.dtype not in FLOATS:
            return array
        return array.astype(self.dtype)


@cache
def data_begin(file: Path) -> int:
    """Return where the tensors of a safetensors file begin, behind its header."""
    with file.open("rb") as stream:
        return 8 + int.from_bytes(stream.read(8), "little")

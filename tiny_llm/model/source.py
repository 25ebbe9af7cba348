"""Where a model comes from: a directory as on the Hugging Face Hub, or one GGUF file, read in the same way."""

import shutil
from functools import cached_property
from pathlib import Path
from typing import Protocol

import mlx.core as mx
import tokenizers

from tiny_llm.config.fields import JsonFields
from tiny_llm.model.files import is_gguf, read_bytes, read_json
from tiny_llm.model.gguf import GgufFile
from tiny_llm.model.safetensors import INDEX, TensorEntry, is_unused, read_entries
from tiny_llm.model.template import DIRECTORY as TEMPLATES
from tiny_llm.model.template import read_templates

COPIED = ("*.json", "*.jinja", f"{TEMPLATES}/*.jinja", "*.txt", "*.jsonl", "*.tiktoken", "tokenizer.model", "LICENSE*")


class StoredArrays(Protocol):
    """The arrays of a model, each of which can be taken once, so that its memory can be freed."""

    def pop(self, name: str) -> mx.array:
        """Return an array, as it is stored."""


class ModelSource(Protocol):
    """The files of a model. Their errors are ValueErrors that name the file, the key, expected and found."""

    path: Path
    dtype: mx.Dtype | None  # to compute in where no type is asked for; None: that of each array

    def json(self, name: str, *, optional: bool = False) -> JsonFields:
        """Return config.json, generation_config.json or tokenizer_config.json; empty if `optional` and missing."""

    def tokenizer(self) -> tokenizers.Tokenizer:
        """Return the tokenizer of tokenizer.json."""

    def templates(self) -> dict[str, str]:
        """Return the chat templates by name."""

    def entries(self, tied: bool) -> dict[str, TensorEntry]:
        """Return the type, shape and size of each array by its Hugging Face name, from the headers alone.

        Arrays that no model uses are left out, and the head if it is `tied` to the embedding.
        """

    def where(self, name: str) -> str:
        """Return the file that has or should have an array, and the array's name, for an error message."""

    def arrays(self) -> StoredArrays:
        """Open the arrays."""

    def write_rest(self, directory: Path) -> None:
        """Write all files of the model to a directory but config.json and those of the weights."""


class Directory:
    """A Hugging Face directory."""

    dtype: mx.Dtype | None = None

    def __init__(self, path: Path):
        self.path = path

    def json(self, name: str, *, optional: bool = False) -> JsonFields:
        return read_json(self.path / name, optional=optional)

    def tokenizer(self) -> tokenizers.Tokenizer:
        file = self.path / "tokenizer.json"
        data = read_bytes(file)
        try:
            return tokenizers.Tokenizer.from_buffer(data)
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"{file}: expected a tokenizer, found something else: {error}") from error

    def templates(self) -> dict[str, str]:
        return read_templates(self.path, self.json("tokenizer_config.json", optional=True))

    def entries(self, tied: bool) -> dict[str, TensorEntry]:
        return {name: entry for name, entry in self._stored.items() if not is_unused(name, tied)}

    def where(self, name: str) -> str:
        entry = self._stored.get(name)
        if entry is not None:
            return f"{entry.file}: {name}"
        index = self.path / INDEX
        file = index if index.exists() else self.path / "model*.safetensors"
        return f"{file}: {name}"

    def arrays(self) -> dict[str, mx.array]:
        """Open all files. MLX reads an array when it is evaluated."""
        arrays: dict[str, mx.array] = {}
        for file in sorted({entry.file for entry in self._stored.values()}):
            try:
                loaded = mx.load(str(file))
            except Exception as error:  # MLX raises errors of several types for a file that it cannot read
                raise ValueError(f"{file}: expected safetensors, found what MLX cannot read: {error}") from error
            assert isinstance(loaded, dict)
            arrays |= loaded
        return arrays

    def write_rest(self, directory: Path) -> None:
        for pattern in COPIED:
            for file in self.path.glob(pattern):
                if not file.is_file() or file.name in ("config.json", INDEX):
                    continue
                copy = directory / file.relative_to(self.path)
                copy.parent.mkdir(exist_ok=True)
                shutil.copyfile(file, copy)

    @cached_property
    def _stored(self) -> dict[str, TensorEntry]:
        return read_entries(self.path)


def open_source(model: Path | ModelSource) -> ModelSource:
    """Return the source of a model that lies at a path. A source is returned as it is."""
    if not isinstance(model, Path):
        return model
    return GgufFile(model) if is_gguf(model) else Directory(model)

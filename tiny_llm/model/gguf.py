"""A GGUF file as a source of a model: llama.cpp's format, which holds weights, settings and tokenizer in one file.

MLX can read such files itself. It is not asked, because it trusts the header, opens the file for writing, and holds all
of it twice while it reads. Here one tensor is read at a time.
"""

import warnings
from collections import Counter
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import tokenizers

from tiny_llm.config.fields import JsonFields, require
from tiny_llm.model.files import write_json
from tiny_llm.model.gguf_blocks import GROUP, read_blocks
from tiny_llm.model.gguf_config import ARCHITECTURES, FACTORS, architecture, float_type, hf_config, hf_names
from tiny_llm.model.gguf_header import GgufTensor, read_gguf_header
from tiny_llm.model.gguf_tokenizer import (
    Vocabulary,
    build_tokenizer,
    chat_templates,
    end_ids,
    tokenizer_config,
)
from tiny_llm.model.safetensors import WIDTHS, TensorEntry

MB = 1e6
SAMPLING = {  # the names of generation_config.json, and those of general.sampling
    "temperature": "temp",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "penalty_repeat",
}


class GgufFile:
    """A GGUF file under the names of a Hugging Face directory, see `source.ModelSource`.

    Raises ValueError naming file, key, expected and found. Warns of types that take more memory than in the file.
    """

    def __init__(self, path: Path):
        self.path = path
        self.header = read_gguf_header(path)
        self.names = hf_names(self.header)
        self.dtype: mx.Dtype | None = float_type(self.header)
        factors: list[float] | None = None
        if FACTORS in self.header.tensors:
            factors = np.array(self._read(FACTORS)["weight"]).tolist()
        self._config = hf_config(self.header, self.names, factors)
        self._entries: dict[str, TensorEntry] = {}
        self._places: dict[str, str] = {}  # the name of the tensor in the file that holds an entry
        for own, name in self.names.items():
            entries = self._entries_of(self.header.tensors[own], name)
            self._entries |= entries
            self._places |= dict.fromkeys(entries, own)
        self._warn_of_growth()

    def json(self, name: str, *, optional: bool = False) -> JsonFields:
        if name == "config.json":
            return JsonFields(self._config, str(self.path))
        if name == "generation_config.json":
            return JsonFields(self._generation_config(), str(self.path))
        assert name == "tokenizer_config.json"
        return JsonFields(tokenizer_config(self._vocabulary), str(self.path))

    def tokenizer(self) -> tokenizers.Tokenizer:
        return build_tokenizer(self._vocabulary)

    def templates(self) -> dict[str, str]:
        return chat_templates(self.header.metadata)

    def entries(self, tied: bool) -> dict[str, TensorEntry]:
        return self._entries

    def where(self, name: str) -> str:
        return f"{self.path}: {self._places.get(name, name)}"

    def arrays(self) -> "GgufArrays":
        return GgufArrays(self)

    def write_rest(self, directory: Path) -> None:
        text = self.tokenizer().to_str(pretty=True)
        (directory / "tokenizer.json").write_text(text, encoding="utf-8")
        settings = tokenizer_config(self._vocabulary)
        templates = self.templates()
        if list(templates) == ["default"]:
            settings["chat_template"] = templates["default"]
        elif templates:
            settings["chat_template"] = [{"name": name, "template": text} for name, text in templates.items()]
        write_json(directory / "tokenizer_config.json", settings)
        write_json(directory / "generation_config.json", self._generation_config())

    def read(self, name: str) -> dict[str, mx.array]:
        """Return the arrays of the tensor that holds the entry `name`, by the names of all its entries."""
        own = self._places[name]
        parts = self._read(own)
        whole = self.names[own]
        if len(parts) == 1:
            return {whole: parts["weight"]}
        path = whole.removesuffix(".weight")
        return {f"{path}.{part}": array for part, array in parts.items()}

    def _read(self, own: str) -> dict[str, mx.array]:
        """Read a tensor: {"weight", "scales", "biases"} if it is packed, or {"weight"}, evaluated."""
        tensor = self.header.tensors[own]
        rows = tensor.shape[:-1]
        heads = self._heads_to_turn(own)
        parts = {}
        for name, array in read_blocks(self.path, tensor.begin, tensor.size, tensor.kind).items():
            array = array.reshape(*rows, -1)
            if heads:
                require(
                    len(array) % (2 * heads) == 0,
                    f"{self.path}: {own}: expected rows for {heads} heads of an even width, found {len(array)}",
                )
                array = _halves_apart(array, heads)
            parts[name] = array
        mx.eval(parts)
        return parts

    def _heads_to_turn(self, own: str) -> int:
        """Return the number of heads in a tensor whose rotary pairs are side by side, 0 for any other tensor."""
        stem = own.split(".")[-2]
        keys = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
        if stem not in keys or not ARCHITECTURES[architecture(self.header)].pairs:
            return 0
        return int(self._config[keys[stem]])

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(self.header.metadata)

    def _generation_config(self) -> dict[str, Any]:
        config: dict[str, Any] = {}
        ends = end_ids(self._vocabulary)
        if ends:
            config["eos_token_id"] = ends
        for key, own in (("bos_token_id", "bos_token_id"), ("pad_token_id", "padding_token_id")):
            number = self._vocabulary.special(own)
            if number is not None:
                config[key] = number
        for key, own in SAMPLING.items():
            value = self.header.metadata.data.get(f"general.sampling.{own}")
            if value is not None:
                config[key] = value
        return config

    def _entries_of(self, tensor: GgufTensor, name: str) -> dict[str, TensorEntry]:
        """Return the arrays that a tensor becomes, as a safetensors file would have them."""
        kind = tensor.kind
        if not kind.bits:
            return {name: self._entry(kind.dtype, *tensor.shape)}
        num_axes = 3 if ".switch_mlp." in name else 2
        if len(tensor.shape) != num_axes or not name.endswith(".weight"):
            raise ValueError(f"{self.path}: {name}: expected floats, found {kind.name} of shape {list(tensor.shape)}")
        path = name.removesuffix(".weight")
        *rows, columns = tensor.shape
        return {
            name: self._entry("U32", *rows, columns * kind.bits // 32),
            f"{path}.scales": self._entry("F16", *rows, columns // GROUP),
            f"{path}.biases": self._entry("F16", *rows, columns // GROUP),
        }

    def _warn_of_growth(self) -> None:
        """Name the types that take more memory than in the file, because MLX's format lacks them."""
        here: Counter[str] = Counter()
        there: Counter[str] = Counter()
        for own, name in self.names.items():
            tensor = self.header.tensors[own]
            form = f"{tensor.kind.name} {tensor.kind.grows_to}"
            if tensor.kind.grows_to:
                entries = self._entries_of(tensor, name)
                here[form] += sum(entry.end for entry in entries.values())
                there[form] += tensor.size
        listed = [f"{form} {size / MB:,.0f} MB instead of {there[form] / MB:,.0f}" for form, size in here.most_common()]
        if listed:
            warnings.warn(f"{self.path}: takes more memory than the file: {', '.join(listed)}", stacklevel=4)

    def _entry(self, dtype: str, *shape: int) -> TensorEntry:
        return TensorEntry(self.path, dtype, shape, 0, prod(shape) * WIDTHS[dtype])


class GgufArrays:
    """The arrays of a file, each of which is read when it is taken, and can be taken once."""

    def __init__(self, file: GgufFile):
        self.file = file
        self._waiting: dict[str, mx.array] = {}  # the other parts of the tensors that were read

    def pop(self, name: str) -> mx.array:
        if name not in self._waiting:
            self._waiting |= self.file.read(name)
        return self._waiting.pop(name)


def _halves_apart(array: mx.array, heads: int) -> mx.array:
    """Return the rows (heads · D, …), in which pairs stand side by side, with the two of a pair D/2 rows apart."""
    pairs = array.reshape(heads, -1, 2, *array.shape[1:])
    return pairs.swapaxes(1, 2).reshape(array.shape)

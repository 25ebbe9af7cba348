"""Read and write the files of heads for speculation: a config.json beside a safetensors file, checked name by name."""

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path

import mlx.core as mx
import numpy as np

from tiny_llm.config.fields import JsonFields, require
from tiny_llm.model.files import read_json
from tiny_llm.model.qwen3 import Qwen3
from tiny_llm.model.safetensors import read_header

FILES = ("model.safetensors", "medusa_lm_head.safetensors")
UNSAFE = ("pytorch_model.bin", "medusa_lm_head.pt")  # reading such a file can run code
BASE = "base_model_fingerprint"  # the key in config.json that names the model of a head


class HeadFiles:
    """The config and the tensors of a directory. `take` gives each tensor once; `finish` refuses what is left."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.config: JsonFields = read_json(directory / "config.json")
        found = [directory / name for name in FILES if (directory / name).is_file()]
        unsafe = [name for name in UNSAFE if (directory / name).is_file()]
        remedy = f"; {unsafe[0]} may hold code: convert it to safetensors" if unsafe else ""
        require(bool(found), f"{directory}: expected {' or '.join(FILES)}, found neither{remedy}")
        self.file = found[0]
        read_header(self.file)
        self.tensors: dict[str, mx.array] = dict(mx.load(str(self.file)))  # type: ignore[arg-type]

    def take(self, name: str, shape: tuple[int, ...]) -> mx.array:
        """Return a tensor. Raises ValueError where it is missing, or has another shape."""
        require(name in self.tensors, f"{self.file}: {name}: expected the shape {shape}, found no such tensor")
        found = self.tensors.pop(name)
        require(found.shape == shape, f"{self.file}: {name}: expected the shape {shape}, found {found.shape}")
        return found

    def finish(self, unused: Collection[str] = ()) -> None:
        """Raise ValueError where a tensor is left that is not among the `unused` ones."""
        left = sorted(set(self.tensors) - set(unused))
        require(not left, f"{self.file}: expected no further tensors, found {', '.join(left[:5])}")

    def check_base(self, model: Qwen3) -> None:
        """Raise ValueError where these are the heads of another model: by hidden size, vocabulary or fingerprint."""
        source, config = self.config.source, model.config
        for key, want in (("hidden_size", config.hidden_size), ("vocab_size", config.vocab_size)):
            if key in self.config.data:
                found = self.config.integer(key)
                require(found == want, f"{source}: {key}: expected the model's {want}, found {found}")
        named = self.config.data.get(BASE)
        require(
            named is None or named == base_fingerprint(model),
            f"{source}: {BASE}: expected {base_fingerprint(model)}, found {named!r:.80}: these heads were trained for "
            "another model; train them for this one",
        )


def base_fingerprint(model: Qwen3) -> str:
    """Return 16 hex digits that name a model whatever the number format of its matrices: a digest of its norms."""
    norms = [layer["post_attention_layernorm"]["weight"] for layer in model.weights["layers"]]
    norms.append(model.weights["norm"]["weight"])
    digest = hashlib.sha256()
    for norm in norms:
        digest.update(np.array(norm.astype(mx.bfloat16).view(mx.uint16)).tobytes())
    return digest.hexdigest()[:16]


def write_head(directory: Path, config: Mapping[str, object], tensors: Mapping[str, mx.array]) -> None:
    """Write config.json and model.safetensors, floats in bfloat16."""
    directory.mkdir(parents=True, exist_ok=True)
    stored = {}
    for name, tensor in tensors.items():
        is_float = mx.issubdtype(tensor.dtype, mx.floating)
        stored[name] = mx.contiguous(tensor).astype(mx.bfloat16) if is_float else tensor
    mx.save_safetensors(str(directory / FILES[0]), stored, {"format": "pt"})
    text = json.dumps(config, indent=2) + "\n"
    (directory / "config.json").write_text(text, encoding="utf-8")

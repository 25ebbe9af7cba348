"""The model of the race in each form that a contender reads."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import mlx.core as mx

from tests.support import make_model

LLAMA_CPP = "python -m venv llama && llama/bin/pip install llama-cpp-python, then LLAMA_CPP_PYTHON=llama/bin/python"
QWEN3 = {  # Qwen3-0.6B
    "num_hidden_layers": 28,
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rope_theta": 1000000,
    "tie_word_embeddings": True,
}


def find_llama_cpp() -> str | None:
    """Return a Python that has llama-cpp-python: LLAMA_CPP_PYTHON, or the one that runs."""
    if named := os.environ.get("LLAMA_CPP_PYTHON"):
        return named
    return sys.executable if find_spec("llama_cpp") else None


def packed_directory(gguf: Path, folder: Path) -> Path:
    """Convert the file to an MLX directory in `folder`, with the weights as they are; kept from an earlier run."""
    target = folder / "packed"
    if not target.exists():
        command = [sys.executable, "-m", "tiny_llm", "models", "convert", str(gguf), "-o", str(target)]
        subprocess.run(command, check=True, stdout=sys.stderr)
    return target


def dense_directory(packed: Path, folder: Path) -> Path:
    """Unpack an MLX directory to float32 in `folder`; kept from an earlier run."""
    target = folder / "dense"
    if target.exists():
        return target
    making = folder / "dense.making"
    shutil.copytree(packed, making, ignore=shutil.ignore_patterns("*.safetensors*"), dirs_exist_ok=True)
    config = json.loads((packed / "config.json").read_text())
    settings = config.pop("quantization")
    config.pop("quantization_config", None)
    config["torch_dtype"] = "float32"
    (making / "config.json").write_text(json.dumps(config, indent=1))
    stored = {name: array for file in packed.glob("*.safetensors") for name, array in mx.load(str(file)).items()}
    weights = {}
    for name, array in stored.items():
        path, _, part = name.rpartition(".")
        if f"{path}.scales" not in stored:
            weights[name] = array.astype(mx.float32)
        elif part == "weight":
            own = settings.get(path, settings)
            scales, biases = (stored[f"{path}.{p}"].astype(mx.float32) for p in ("scales", "biases"))
            weights[name] = mx.dequantize(array, scales, biases, group_size=own["group_size"], bits=own["bits"])
    mx.save_safetensors(str(making / "model.safetensors"), weights, metadata={"format": "mlx"})
    making.rename(target)
    return target


def qwen_directory(folder: Path) -> Path:
    """Write a model of Qwen3-0.6B's shape with random weights in 4 bits; kept from an earlier run."""
    target = folder / "qwen3-0.6b-4bit"
    if not target.exists():
        making = make_model(
            folder / "qwen3.making", "qwen3", dtype="bfloat16", quantize={"group_size": 64, "bits": 4}, **QWEN3
        )
        making.rename(target)
    return target

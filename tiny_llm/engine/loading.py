"""Load the parts of a model: its weights on operations that suit this machine, and its tokenizer."""

import warnings
from typing import cast

import mlx.core as mx

from tiny_llm._temporary import temporary_folder_fault
from tiny_llm.config import EngineConfig, ModelConfig
from tiny_llm.config.fields import require
from tiny_llm.kernels.table import operations
from tiny_llm.model import loader
from tiny_llm.model.expert_files import ExpertFiles, open_store
from tiny_llm.model.expert_store import stored_experts
from tiny_llm.model.fingerprint import fingerprint
from tiny_llm.model.ops import PLAIN, Ops
from tiny_llm.model.qwen3 import Qwen3
from tiny_llm.model.source import ModelSource
from tiny_llm.model.tokenizer import Tokenizer
from tiny_llm.quantize.affine import unfused


def dtype_of(config: EngineConfig) -> mx.Dtype | None:
    """Return the number format to compute in; None keeps the format of the files.

    A CPU computes in float32 by default, because its half-precision matmuls are fifty times slower.
    """
    if config.dtype != "auto":
        return cast(mx.Dtype, getattr(mx, config.dtype))
    return None if mx.default_device() == mx.gpu else mx.float32


def choose_operations(config: EngineConfig, dtype: mx.Dtype | None) -> Ops:
    """Choose the operations for this machine. Raises ValueError for settings that can't be had here."""
    _check_compiler()
    if mx.default_device() == mx.cpu and dtype != mx.float32:
        warnings.warn(
            f"dtype {config.dtype}: a CPU computes about fifty times slower in 16 bits; float32 is faster, and keeps "
            "weights stored in 16 bits as they are in the CPU kernels",
            RuntimeWarning,
            stacklevel=3,
        )
    return operations(config, unfused(PLAIN), dtype)


def load_model(
    source: ModelSource, shape: ModelConfig, ops: Ops, dtype: mx.Dtype | None, expert_bytes: int | None = None
) -> Qwen3:
    """Read the weights and lay them out for the operations.

    With `expert_bytes` experts stay in the files. Raises ValueError as `load_weights`, `ExpertFiles` and `open_store`.
    """
    if expert_bytes is None:
        weights = loader.load_weights(source, shape, dtype, ops.native)
        name = fingerprint(shape, weights)  # before a layout changes the arrays, or drops them
    else:
        files = ExpertFiles(source, shape, None if ops.native else dtype)
        weights = loader.load_weights(source, shape, dtype, ops.native, experts=False)
        name = fingerprint(shape, weights, first_expert=lambda layer: files.read(layer, 0))
        ops = ops._replace(experts=stored_experts, compile=lambda function: function)
        store = open_store(files, ops, expert_bytes)
        for layer in store.sizes:
            weights["layers"][layer]["experts"] = {"store": store, "layer": layer}
    ops.lay_out(weights, shape)
    make = ops.model or Qwen3
    model: Qwen3 = make(shape, weights, ops)
    model.fingerprint = name
    return model


def load_tokenizer(source: ModelSource, shape: ModelConfig) -> Tokenizer:
    """Read the tokenizer. Raises ValueError for broken files, and for end tokens outside the model's vocabulary."""
    tokenizer = Tokenizer.from_dir(source)
    strange = sorted(token for token in tokenizer.eos_token_ids if token >= shape.vocab_size)
    require(
        not strange, f"{source.path}: eos_token_id: expected ids below vocab_size ({shape.vocab_size}), found {strange}"
    )
    return tokenizer


def _check_compiler() -> None:
    """Switch `mx.compile` off where the folder for temporary files, in which MLX compiles on a CPU, is unusable."""
    if mx.default_device() == mx.gpu:
        return
    fault = temporary_folder_fault()
    if fault:
        warnings.warn(f"{fault}; until then nothing is compiled, which is slower", RuntimeWarning, stacklevel=4)
        mx.disable_compile()

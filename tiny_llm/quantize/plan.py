"""Which matrices of a model directory get how many bits."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from tiny_llm.config import QuantizationConfig
from tiny_llm.config.fields import require
from tiny_llm.model.directory import load_config
from tiny_llm.model.safetensors import FLOATS, read_entries
from tiny_llm.quantize.affine import check_fit

Predicate = Literal["all", "body"]
ENDS = ("model.embed_tokens", "lm_head")
BOTH_FLOATS = 32  # bits of a group's scale and bias, 16 each


class Matrix(NamedTuple):
    """A linear layer's or the embedding's weight, by its path in the files."""

    path: str
    rows: int
    columns: int

    @property
    def size(self) -> int:
        return self.rows * self.columns


def matrices(directory: Path) -> list[Matrix]:
    """What of a model can be quantized. Raises ValueError where it is quantized already, or its files are broken."""
    config = load_config(directory)
    entries = read_entries(directory, config.tie_word_embeddings)
    if config.quantization or any(name.endswith(".scales") for name in entries):
        bits = f"to {config.quantization.bits} bits " if config.quantization else ""
        raise ValueError(f"{directory}: expected a dense model, found one quantized {bits}already: take its original")
    found = [
        Matrix(name.removesuffix(".weight"), *entry.shape)
        for name, entry in sorted(entries.items())
        if name.endswith(".weight") and len(entry.shape) == 2 and entry.dtype in FLOATS
    ]
    require(bool(found), f"{directory}: expected matrices to quantize, found none")
    return found


def uniform(found: Iterable[Matrix], bits: int, group_size: int, predicate: Predicate = "all") -> QuantizationConfig:
    """The same bits for "all" matrices, or for those of the "body": embedding and head stay as they are.

    Raises ValueError for a group size that divides not all of them.
    """
    require(predicate in ("all", "body"), f"predicate: expected all or body, found {predicate!r}")
    layers = {m.path: None for m in found if predicate == "body" and m.path in ENDS}
    for matrix in found:
        if matrix.path not in layers:
            check_fit(matrix.columns, group_size, bits, matrix.path)
    return QuantizationConfig(bits, group_size, layers)


def settings_of(plan: QuantizationConfig, path: str) -> QuantizationConfig | None:
    """Bits and group size of one matrix, None where it stays dense."""
    return plan.layers.get(path, plan)


def bits_per_weight(found: Iterable[Matrix], plan: QuantizationConfig) -> float:
    """Stored bits for each weight of the quantized matrices, scales and biases included."""
    own = [(m.size, q) for m in found if (q := settings_of(plan, m.path))]
    require(bool(own), "plan: expected at least one matrix to quantize, found none")
    return sum(size * stored_bits(q.bits, q.group_size) for size, q in own) / sum(size for size, _ in own)


def stored_bits(bits: int, group_size: int) -> float:
    """Bits that a weight takes, its part of scale and bias included."""
    return bits + BOTH_FLOATS / group_size


def as_json(plan: QuantizationConfig) -> Mapping[str, object]:
    """config["quantization"] as MLX's programs write it; dense layers are known by having no scales."""
    own = {path: q for path, q in plan.layers.items() if q}
    table = {path: {"group_size": q.group_size, "bits": q.bits, "mode": "affine"} for path, q in own.items()}
    return {"group_size": plan.group_size, "bits": plan.bits, "mode": "affine", **table}

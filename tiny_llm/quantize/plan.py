"""Which matrices of a model directory get how many bits."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from tiny_llm.config import QuantizationConfig
from tiny_llm.config.fields import require
from tiny_llm.config.model import GROUP_SIZES
from tiny_llm.model.directory import load_config
from tiny_llm.model.safetensors import FLOATS, read_entries
from tiny_llm.quantize.affine import check_format

Predicate = Literal["all", "body"]
ENDS = ("model.embed_tokens", "lm_head")
DENSE = 16  # bits of a weight that is not quantized
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


def uniform(found: Sequence[Matrix], bits: int, group_size: int, predicate: Predicate = "all") -> QuantizationConfig:
    """The same bits for "all" matrices, or for those of the "body": embedding and head stay as they are.

    A matrix whose rows the group size does not divide stays dense. Raises ValueError for bits or a group size that the
    format lacks, and for a group size that divides no matrix's rows.
    """
    require(predicate in ("all", "body"), f"predicate: expected all or body, found {predicate!r}")
    check_format(group_size, bits)
    wanted = [matrix for matrix in found if predicate == "all" or matrix.path not in ENDS]
    fitting = {matrix.path for matrix in wanted if matrix.columns % group_size == 0}
    require(bool(wanted), f"predicate: expected matrices to quantize, found none of {predicate!r}; take another model")
    require(bool(fitting), _nothing_fits(wanted, group_size))
    return QuantizationConfig(bits, group_size, {m.path: None for m in found if m.path not in fitting})


def _nothing_fits(wanted: Iterable[Matrix], group_size: int) -> str:
    widths = sorted({matrix.columns for matrix in wanted})
    others = [size for size in GROUP_SIZES if any(width % size == 0 for width in widths)]
    remedy = f"take {' or '.join(map(str, others))}" if others else "this format can't hold the model, leave it dense"
    rows = " or ".join(map(str, widths))
    return f"group size: expected one that divides a layer's rows of {rows}, found {group_size}: {remedy}"


def unfit(found: Iterable[Matrix], plan: QuantizationConfig) -> list[Matrix]:
    """The matrices that stay dense because the group size does not divide their rows."""
    return [m for m in found if settings_of(plan, m.path) is None and m.columns % plan.group_size != 0]


def settings_of(plan: QuantizationConfig, path: str) -> QuantizationConfig | None:
    """Bits and group size of one matrix, None where it stays dense."""
    return plan.layers.get(path, plan)


def bits_per_weight(found: Iterable[Matrix], plan: QuantizationConfig) -> float:
    """Stored bits for each weight of the quantized matrices, scales and biases included."""
    own = [(m.size, q) for m in found if (q := settings_of(plan, m.path))]
    require(bool(own), "plan: expected at least one matrix to quantize, found none")
    return sum(size * stored_bits(q.bits, q.group_size) for size, q in own) / sum(size for size, _ in own)


def bits_overall(found: Sequence[Matrix], plan: QuantizationConfig) -> float:
    """Stored bits for each weight of all matrices: 16 in those that stay dense."""
    own = [(m.size, settings_of(plan, m.path)) for m in found]
    bits = sum(size * (stored_bits(q.bits, q.group_size) if q else DENSE) for size, q in own)
    return bits / sum(size for size, _ in own)


def stored_bits(bits: int, group_size: int) -> float:
    """Bits that a weight takes, its part of scale and bias included."""
    return bits + BOTH_FLOATS / group_size


def as_json(plan: QuantizationConfig) -> Mapping[str, object]:
    """config["quantization"] as MLX's programs write it, with `false` for each layer that stays dense."""
    table: dict[str, object] = {"group_size": plan.group_size, "bits": plan.bits, "mode": "affine"}
    for path, own in plan.layers.items():
        table[path] = {"group_size": own.group_size, "bits": own.bits, "mode": "affine"} if own else False
    return table

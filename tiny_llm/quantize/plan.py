"""Plan how many bits each matrix of a model gets."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from tiny_llm.config import QuantizationConfig
from tiny_llm.config.fields import require
from tiny_llm.config.model import GROUP_SIZES
from tiny_llm.model.directory import load_config
from tiny_llm.model.safetensors import FLOATS
from tiny_llm.model.source import ModelSource, open_source
from tiny_llm.quantize.affine import check_format, either
from tiny_llm.quantize.stacks import written_names

Predicate = Literal["all", "body"]
ENDS = ("model.embed_tokens", "lm_head")
# Routers stay dense: a rounded weight there can send a token to another expert, which costs more than a rounded
# product, and routers are less than a hundredth of a model's weights. mlx-lm stores them in 8 bits for the same reason.
ROUTERS = (".mlp.gate", ".mlp.shared_expert_gate")
DENSE = 16  # bits of a weight that is not quantized
BOTH_FLOATS = 32  # bits of a group's scale and bias, 16 each


class Matrix(NamedTuple):
    """The weight of a linear layer or of the embedding, or a stack of one matrix of each expert of a layer.

    `path` is its path in the files that are written.
    """

    path: str
    rows: int
    columns: int
    stack: int = 1  # how many matrices

    @property
    def size(self) -> int:
        return self.stack * self.rows * self.columns

    @property
    def is_router(self) -> bool:
        return self.path.endswith(ROUTERS)


def matrices(model: Path | ModelSource) -> list[Matrix]:
    """Return the matrices that can be quantized. Raises ValueError for a quantized model and for broken files."""
    source = open_source(model)
    config = load_config(source)
    entries = source.entries(config.tie_word_embeddings)
    if config.quantization or any(name.endswith(".scales") for name in entries):
        bits = f"to {config.quantization.bits} bits " if config.quantization else ""
        raise ValueError(f"{source.path}: expected a dense model, found one quantized {bits}already: take its original")
    found = []
    for name, stored in sorted(written_names(source, config).items()):
        entry = entries[stored[0]]
        is_stack = ".switch_mlp." in name
        num_axes = 3 if is_stack and stored == [name] else 2
        is_matrix = len(entry.shape) == num_axes and entry.dtype in FLOATS
        if is_matrix and name.endswith(".weight"):
            path = name.removesuffix(".weight")
            rows, columns = entry.shape[-2:]
            stack = entry.shape[0] if num_axes == 3 else len(stored)
            found.append(Matrix(path, rows, columns, stack))
    require(bool(found), f"{source.path}: expected matrices to quantize, found none")
    return found


def uniform(found: Sequence[Matrix], bits: int, group_size: int, predicate: Predicate = "all") -> QuantizationConfig:
    """Plan the same bits for "all" matrices, or for those of the "body": then embedding and head stay dense.

    Routers stay dense, and so does a matrix whose rows the group size does not divide. Raises ValueError for bits or a
    group size that the format lacks, and for a group size that divides no matrix's rows.
    """
    require(predicate in ("all", "body"), f"predicate: expected all or body, found {predicate!r}")
    check_format(group_size, bits)
    wanted = [matrix for matrix in found if not matrix.is_router and (predicate == "all" or matrix.path not in ENDS)]
    require(bool(wanted), f"predicate: expected matrices to quantize, found none of {predicate!r}; take another model")
    fitting = {matrix.path for matrix in wanted if matrix.columns % group_size == 0}
    require(bool(fitting), _nothing_fits(wanted, group_size))
    layers: dict[str, QuantizationConfig | None] = {}
    for matrix in found:
        if matrix.path not in fitting:
            layers[matrix.path] = None
    return QuantizationConfig(bits, group_size, layers)


def _nothing_fits(wanted: Iterable[Matrix], group_size: int) -> str:
    """Return the error for a group size that divides no matrix's rows."""
    widths = {matrix.columns for matrix in wanted}
    others = [size for size in GROUP_SIZES if any(width % size == 0 for width in widths)]
    remedy = "this format can't hold the model, leave it dense"
    if others:
        remedy = f"take {either(others)}"
    rows = either(sorted(widths))
    return f"group size: expected one that divides a layer's rows of {rows}, found {group_size}: {remedy}"


def unfit(found: Iterable[Matrix], plan: QuantizationConfig) -> list[Matrix]:
    """Return the matrices that stay dense because the group size does not divide their rows."""
    dense = [matrix for matrix in found if settings_of(plan, matrix.path) is None]
    return [matrix for matrix in dense if matrix.columns % plan.group_size != 0 and not matrix.is_router]


def settings_of(plan: QuantizationConfig, path: str) -> QuantizationConfig | None:
    """Return bits and group size of one matrix; None if it stays dense."""
    return plan.layers.get(path, plan)


def bits_per_weight(found: Iterable[Matrix], plan: QuantizationConfig) -> float:
    """Return the stored bits for each weight of the quantized matrices, scales and biases included."""
    quantized = [matrix for matrix in found if settings_of(plan, matrix.path) is not None]
    require(bool(quantized), "plan: expected at least one matrix to quantize, found none")
    return bits_overall(quantized, plan)


def bits_overall(found: Sequence[Matrix], plan: QuantizationConfig) -> float:
    """Return the stored bits for each weight of all matrices: 16 in matrices that stay dense."""
    weights = 0
    total = 0.0
    for matrix in found:
        own = settings_of(plan, matrix.path)
        bits: float = DENSE
        if own is not None:
            bits = stored_bits(own.bits, own.group_size)
        weights += matrix.size
        total += matrix.size * bits
    return total / weights


def stored_bits(bits: int, group_size: int) -> float:
    """Return the bits that a weight takes, its part of scale and bias included."""
    return bits + BOTH_FLOATS / group_size


def as_json(plan: QuantizationConfig) -> Mapping[str, object]:
    """Return config["quantization"] as MLX's programs write it, with `false` for each layer that stays dense."""
    table = _settings(plan)
    for path, own in plan.layers.items():
        table[path] = False if own is None else _settings(own)
    return table


def _settings(own: QuantizationConfig) -> dict[str, object]:
    return {"group_size": own.group_size, "bits": own.bits, "mode": "affine"}

"""The report of `tiny-llm quantize`: what was stored in few bits, and what that costs."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tiny_llm.config import QuantizationConfig
from tiny_llm.model.directory import load_config
from tiny_llm.model.source import open_source
from tiny_llm.quantize.plan import Matrix, as_json, bits_overall, bits_per_weight, unfit


class ModelFigures(NamedTuple):
    """The size of a model's tensors, and its perplexity if that was measured."""

    num_bytes: int
    perplexity: float | None


def stored_bytes(path: Path) -> int:
    """Return the size of all tensors of a model."""
    source = open_source(path)
    entries = source.entries(load_config(source).tie_word_embeddings)
    return sum(entry.end - entry.begin for entry in entries.values())


@dataclass(frozen=True)
class QuantizedReport:
    """A plan by which the matrices `found` in a model were written to the directory `out`."""

    out: Path
    plan: QuantizationConfig
    found: Sequence[Matrix]

    def lines(self) -> list[str]:
        """Return how many matrices got how many bits, and which ones had to stay dense."""
        plan, found = self.plan, self.found
        counts: Counter[int] = Counter()
        for matrix in found:
            own = plan.layers.get(matrix.path, plan)
            counts[0 if own is None else own.bits] += matrix.stack
        named = [f"{count} {f'in {bits} bits' if bits else 'left dense'}" for bits, count in sorted(counts.items())]
        average = f"{bits_per_weight(found, plan):.2f} bits a weight"
        lines = [f"{self.out}: {counts.total()} matrices, {', '.join(named)}; groups of {plan.group_size}, {average}"]
        dense = unfit(found, plan)
        if dense:
            lines.append(
                f"left dense, because groups of {plan.group_size} do not divide their rows: "
                f"{', '.join(kinds_of(dense))}; {bits_overall(found, plan):.2f} bits a weight over all matrices"
            )
        return lines

    def as_data(self, before: ModelFigures, after: ModelFigures) -> dict[str, Any]:
        """Return the report for JSON, with the figures of both models."""
        return {
            "before": {"bytes": before.num_bytes, "perplexity": before.perplexity},
            "after": {"bytes": after.num_bytes, "perplexity": after.perplexity},
            "bits_per_weight": bits_per_weight(self.found, self.plan),
            "bits_per_weight_overall": bits_overall(self.found, self.plan),
            "left_dense": [matrix.path for matrix in unfit(self.found, self.plan)],
            "quantization": as_json(self.plan),
        }


def kinds_of(matrices: Sequence[Matrix]) -> list[str]:
    """Return each layer's matrix of a kind under one name: `model.layers.*.mlp.down_proj (28 times, rows of 144)`."""
    counts: Counter[tuple[str, int]] = Counter()
    for matrix in matrices:
        counts[re.sub(r"\.\d+\.", ".*.", matrix.path), matrix.columns] += matrix.stack
    return [f"{name} ({count} times, rows of {columns})" for (name, columns), count in counts.items()]

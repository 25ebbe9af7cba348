"""Name the tensors that a model is written with: the matrices of a layer's experts become stacks, as in mlx-lm.

model.layers.0.mlp.experts.0.up_proj.weight (I, hidden)
model.layers.0.mlp.experts.1.up_proj.weight (I, hidden)    →    model.layers.0.mlp.switch_mlp.up_proj.weight
…                                                               (E, I, hidden)
"""

import re
from collections.abc import Mapping

from tiny_llm.config import ModelConfig
from tiny_llm.model.safetensors import TensorEntry
from tiny_llm.model.source import ModelSource

EXPERT = re.compile(r"(.+)\.experts\.\d+\.(.+)")  # the path of the layer's MLP, the rest


def written_names(source: ModelSource, config: ModelConfig) -> dict[str, list[str]]:
    """Return for each tensor to write the names of the stored tensors that it consists of.

    These are one tensor of each of a layer's experts, in the experts' order, or the tensor itself. Raises ValueError
    naming file, key, expected and found where a layer's experts are incomplete, differ in shape or are stored twice.
    """
    entries = source.entries(config.tie_word_embeddings)
    written: dict[str, list[str]] = {}
    for name in entries:
        found = EXPERT.fullmatch(name)
        target = name
        if found:
            path, rest = found.groups()
            target = f"{path}.switch_mlp.{rest}"
        written.setdefault(target, []).append(name)
    for target, names in written.items():
        if names != [target]:
            written[target] = _stack_of(source, entries, target, names, config)
    return written


def _stack_of(
    source: ModelSource, entries: Mapping[str, TensorEntry], target: str, names: list[str], config: ModelConfig
) -> list[str]:
    """Return the names in the experts' order. Raises ValueError unless each expert has one, all with one shape."""
    count = config.moe.num_experts if config.moe else 0
    expected = [target.replace(".switch_mlp.", f".experts.{index}.") for index in range(count)]
    for name in expected:
        where = source.where(name)
        if name not in entries:
            raise ValueError(f"{where}: expected a tensor for each of {count} experts, found no such tensor")
    for name in names:
        where = source.where(name)
        if name not in expected:
            raise ValueError(f"{where}: expected no such tensor by config.json, found it")
        shape = entries[name].shape
        first = entries[expected[0]].shape
        if shape != first:
            raise ValueError(f"{where}: expected {list(first)} as in {expected[0]}, found {list(shape)}")
    return expected

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

EXPERT = re.compile(r"(.+)\.experts\.(\d+)\.(.+)")  # the path of the layer's MLP, the expert's number, the rest


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
            layer, _, rest = found.groups()
            target = f"{layer}.switch_mlp.{rest}"
        written.setdefault(target, []).append(name)
    for target, names in written.items():
        single = [name for name in names if name != target]
        if target in names and single:
            where = source.where(single[0])
            raise ValueError(f"{where}: expected no such tensor beside {target}, found both; remove one of them")
        if single:
            names.sort(key=_number)
            _check_stack(source, entries, names, config)
    return written


def _number(name: str) -> int:
    found = EXPERT.fullmatch(name)
    assert found
    return int(found[2])


def _check_stack(
    source: ModelSource, entries: Mapping[str, TensorEntry], names: list[str], config: ModelConfig
) -> None:
    """Check that each expert of a layer has one of the tensors `names`, and that they have one shape."""
    found = EXPERT.fullmatch(names[0])
    assert found
    layer, _, rest = found.groups()
    count = config.moe.num_experts if config.moe else 0
    expected = [f"{layer}.experts.{index}.{rest}" for index in range(count)]
    for name in expected:
        if name not in entries:
            where = source.where(name)
            raise ValueError(f"{where}: expected a tensor for each of {count} experts, found no such tensor")
    for name in names:
        if name not in expected:
            raise ValueError(f"{source.where(name)}: expected no such tensor by config.json, found it")
        shape = entries[name].shape
        first = entries[names[0]].shape
        if shape != first:
            raise ValueError(f"{source.where(name)}: expected {list(first)} as in {names[0]}, found {list(shape)}")

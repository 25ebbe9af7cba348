"""Medusa heads: each guesses one token further ahead from the model's last hidden state. (arXiv:2401.10774)"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from tiny_llm.config.fields import require
from tiny_llm.model.head_files import BASE, HeadFiles, base_fingerprint, write_head
from tiny_llm.model.ops import linear, silu
from tiny_llm.model.qwen3 import Qwen3

SHARED = "medusa_shared_lm_head"  # our own key in config.json: the heads use the model's head


class MedusaHeads:
    """Heads 1 to k: head j guesses the token j places behind the next one.

    blocks[j]: the residual blocks {weight (H, H), bias (H,)} of a head. outputs[j]: its matrix {weight (V, H)}; None
    stands for the model's own.
    """

    def __init__(
        self, model: Qwen3, blocks: list[list[dict[str, mx.array]]], outputs: list[dict[str, mx.array] | None]
    ):
        self.model, self.blocks, self.outputs = model, blocks, outputs

    def __len__(self) -> int:
        return len(self.blocks)

    def logits(self, hidden: mx.array) -> mx.array:
        """Return the logits of each head, (k, R, V). hidden (R, H): the last layer's output behind a token."""
        x = self.model.final_norm(hidden)
        found = []
        for blocks, output in zip(self.blocks, self.outputs, strict=True):
            y = x
            for block in blocks:
                y = y + silu(linear(y, block))
            found.append(self.model.unembed(y) if output is None else linear(y, output))
        return mx.stack(found)

    @classmethod
    def from_dir(cls, directory: Path, model: Qwen3) -> "MedusaHeads":
        """Read heads in Medusa's layout. Raises ValueError for missing or unused tensors and for another model's."""
        files = HeadFiles(directory)
        files.check_base(model)
        config = files.config
        count = config.integer("medusa_num_heads", high=16)
        depth = config.integer("medusa_num_layers", 1, high=8)
        shared = config.flag(SHARED, False)
        hidden, vocab = model.config.hidden_size, model.config.vocab_size
        dtype = model.weights["norm"]["weight"].dtype
        blocks: list[list[dict[str, mx.array]]] = []
        outputs: list[dict[str, mx.array] | None] = []
        for head in range(count):
            layers = []
            for layer in range(depth):
                weight = files.take(f"{head}.{layer}.linear.weight", (hidden, hidden)).astype(dtype)
                bias = files.take(f"{head}.{layer}.linear.bias", (hidden,)).astype(dtype)
                layers.append({"weight": weight, "bias": bias})
            blocks.append(layers)
            output = None if shared else files.take(f"{head}.{depth}.weight", (vocab, hidden)).astype(dtype)
            outputs.append(None if output is None else {"weight": output})
        files.finish()
        return cls(model, blocks, outputs)

    def save(self, directory: Path, about: Mapping[str, Any]) -> None:
        """Write the heads, with `about` in config.json."""
        shared = all(output is None for output in self.outputs)
        require(shared or None not in self.outputs, "heads: expected all with a matrix of their own or none")
        tensors = {}
        for head, (blocks, output) in enumerate(zip(self.blocks, self.outputs, strict=True)):
            for layer, block in enumerate(blocks):
                tensors[f"{head}.{layer}.linear.weight"] = block["weight"]
                tensors[f"{head}.{layer}.linear.bias"] = block["bias"]
            if output is not None:
                tensors[f"{head}.{len(blocks)}.weight"] = output["weight"]
        config = {
            "medusa_num_heads": len(self),
            "medusa_num_layers": len(self.blocks[0]),
            SHARED: shared,
            "hidden_size": self.model.config.hidden_size,
            "vocab_size": self.model.config.vocab_size,
            BASE: base_fingerprint(self.model),
            **about,
        }
        write_head(directory, config, tensors)

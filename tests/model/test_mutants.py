"""The parity test notices each part that could be missing: five broken models, each well outside the tolerance."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from tests.model.parity import ATOL, ours, peer_logits, prompt
from tests.support import make_model
from tiny_llm.cache.contiguous import ContiguousCache
from tiny_llm.model.attention import grouped_attention
from tiny_llm.model.ops import PLAIN
from tiny_llm.model.qwen3 import Qwen3


class NoOffset(ContiguousCache):
    def begin(self, num_tokens: int) -> mx.array:
        super().begin(num_tokens)
        return mx.arange(num_tokens)


def no_mask(q: mx.array, k: mx.array, v: mx.array, scale: float, window: int | None = None) -> mx.array:
    return grouped_attention(q.swapaxes(0, 1), k, v, scale).swapaxes(0, 1)


def no_scale(q: mx.array, k: mx.array, v: mx.array, scale: float, window: int | None = None) -> mx.array:
    return PLAIN.attention(q, k, v, 1.0, window)


def no_head_norm(x: mx.array, weight: mx.array, eps: float) -> mx.array:
    return x if x.ndim == 3 else PLAIN.rms_norm(x, weight, eps)


MUTANTS = {
    "none": (PLAIN, ContiguousCache),
    "no RoPE": (PLAIN._replace(rope=lambda x, rotation: x), ContiguousCache),
    "no scale": (PLAIN._replace(attention=no_scale), ContiguousCache),
    "no mask": (PLAIN._replace(attention=no_mask), ContiguousCache),
    "no q/k norm": (PLAIN._replace(rms_norm=no_head_norm), ContiguousCache),
    "no cache offset": (PLAIN, NoOffset),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_error_of_a_mutant(tmp_path: Path, mutant: str) -> None:
    """Two chunks of 10 tokens: the sound model is within the tolerance, each mutant a hundred times beyond it."""
    path = make_model(tmp_path)
    sound, (ops, cache_type) = ours(path), MUTANTS[mutant]
    model = Qwen3(sound.config, sound.weights, ops)
    cache, tokens = cache_type(model.config, ops), mx.array(prompt(20))
    logits = mx.concatenate([model(tokens[:10], cache), model(tokens[10:], cache)])
    error = np.abs(np.array(logits) - peer_logits(path, prompt(20))).max()
    assert error < ATOL if mutant == "none" else error > 100 * ATOL

"""What few bits for keys and values cost the model that ships inside. Wide bounds: its weights change with training."""

from collections.abc import Callable

import numpy as np
import pytest

from tests.model.parity import ours
from tiny_llm.cache.base import KVCache
from tiny_llm.cache.contiguous import ContiguousCache
from tiny_llm.cache.quantized import QuantizedCache
from tiny_llm.cache.rotating import RotatingCache
from tiny_llm.cache.rotating_quantized import RotatingQuantizedCache
from tiny_llm.engine.llm import POCKET
from tiny_llm.model.tokenizer import Tokenizer
from tiny_llm.pocket.lessons.conversations import conversations
from tiny_llm.quantize.perplexity import Text, perplexity


@pytest.fixture(scope="module")
def cost() -> Callable[[Callable[..., KVCache]], float]:
    """A function: log of the perplexity with a kind of cache, less that with every token and every bit."""
    model = ours(POCKET)
    texts = [Text(*each) for each in conversations("test", 1500, Tokenizer.from_dir(POCKET).encode)]

    def of(make: Callable[..., KVCache]) -> float:
        return float(np.log(perplexity(model, texts, lambda: make(model.config, model.ops), 64)))

    dense = of(ContiguousCache)
    return lambda make: of(make) - dense


def test_eight_bits_cost_nothing_and_four_little(cost: Callable[[Callable[..., KVCache]], float]) -> None:
    """Measured 0.0004 and 0.015 on 3,000 tokens when this was written."""
    assert abs(cost(lambda *a: QuantizedCache(*a, 8))) < 0.01
    for group_size in (32, 64):
        assert abs(cost(lambda *a, g=group_size: QuantizedCache(*a, 4, g))) < 0.15


def test_a_window_costs_nothing_while_the_text_fits(cost: Callable[[Callable[..., KVCache]], float]) -> None:
    assert abs(cost(lambda *a: RotatingCache(*a, window=512))) < 1e-4
    assert abs(cost(lambda *a: RotatingQuantizedCache(*a, 8, window=512))) < 0.01
    assert cost(lambda *a: RotatingCache(*a, window=16)) > 0.05

"""What few bits and short windows of the KV cache cost the model that ships inside: perplexity on unseen text.

    python bench/kv_quality.py [--json] [--tokens 3000]

Lower is better; "dense" is the contiguous cache with every bit. Short conversations first, then all of them joined to
one text of 2,000 tokens, of which a window sees only a part. The last row is the share of attention that goes to the
first token of that text, in the head where it is largest, from position 500 on: the sink of StreamingLLM.
"""

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tiny_llm import load  # noqa: E402  activates the BLAS  # isort: skip

import mlx.core as mx  # noqa: E402

from tiny_llm.cache.contiguous import ContiguousCache  # noqa: E402
from tiny_llm.cache.quantized import QuantizedCache  # noqa: E402
from tiny_llm.cache.rotating import RotatingCache  # noqa: E402
from tiny_llm.model.cached_attention import masked_attention  # noqa: E402
from tiny_llm.pocket.lessons.conversations import conversations  # noqa: E402
from tiny_llm.quantize.perplexity import Text, perplexity  # noqa: E402

LONG, FROM = 2000, 500
PACKED = {
    f"{bits} bits, groups of {group}": partial(QuantizedCache, bits=bits, group_size=group)
    for bits in (8, 4)
    for group in (64, 32)
}
WINDOWS = {
    f"window {window}, {sinks} sinks": partial(RotatingCache, window=window, sinks=sinks)
    for window in (64, 128, 256)
    for sinks in (0, 4)
}


class Watched(ContiguousCache):
    """Notes the largest share that a head gives to the first token."""

    share = 0.0

    def attend(self, layer: int, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        first = mx.zeros(k.shape).swapaxes(0, 1)
        first[:, 0] = 1.0  # with these values attention returns the first token's weight
        seen = mx.tril(mx.ones((q.shape[0], k.shape[0]), mx.bool_))
        weight = masked_attention(q, k.swapaxes(0, 1), first, q.shape[2] ** -0.5, seen)[..., 0]  # (T, Hq)
        self.share = max(self.share, float(weight[FROM:].mean(axis=0).max().item()))
        return super().attend(layer, q, k, v)


def figures(tokens: int) -> dict[str, float]:
    llm = load()
    model = llm.model
    texts = [Text(*each) for each in conversations("test", tokens, llm.encode)]
    joined = [token for each in conversations("test", 2 * LONG, llm.encode) for token in each[0]][:LONG]

    def on(make: Callable[..., Any], read: list[Text]) -> float:
        return perplexity(model, read, lambda: make(model.config, model.ops), 256)

    kinds: dict[str, Callable[..., Any]] = {"dense": ContiguousCache, **PACKED, **WINDOWS}
    found = {f"conversations, {name}": on(make, texts) for name, make in kinds.items()}
    found |= {f"{LONG} tokens, {name}": on(make, [Text(joined)]) for name, make in kinds.items()}
    watched = Watched(model.config, model.ops)
    mx.eval(model(mx.array(joined), watched, slice(-1, None)))
    return found | {"attention on the first token": watched.share}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--tokens", type=int, default=3000, help="of conversations (default: %(default)s)")
    options = parser.parse_args()
    found = figures(options.tokens)
    if options.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:45} {value:8.4f}")


if __name__ == "__main__":
    main()

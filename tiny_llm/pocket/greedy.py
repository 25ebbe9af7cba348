"""Greedy answers to many prompts at once, for the evaluation: prompts of like length share a padded batch."""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from tiny_llm.config import ModelConfig
from tiny_llm.model.qwen3 import Qwen3
from tiny_llm.train.differentiable import HIDDEN, attend_rows

BATCH_TOKENS = 12_288


class PaddedCache:
    """Keys and values of B rows that are padded at their beginning by `pads` tokens, which nobody sees."""

    def __init__(self, config: ModelConfig, pads: Sequence[int]):
        self.config, self.pads = config, mx.array(list(pads))
        self.offset = 0
        self.keys: list[mx.array] = []
        self.values: list[mx.array] = []

    def begin(self, num_tokens: int) -> mx.array:
        """Positions of the step's tokens, all rows one after the other."""
        length = num_tokens // self.pads.size
        slots = mx.arange(self.offset, self.offset + length)
        self.offset += length
        keys = mx.arange(self.offset)
        seen = (keys <= slots[:, None]) & (keys >= self.pads[:, None, None])  # (B, T, S)
        self.hidden = mx.where(seen, 0.0, HIDDEN)
        return mx.maximum(slots - self.pads[:, None], 0).reshape(-1)

    def open_buffers(self, num_tokens: int) -> None:
        """Return None: these steps go through `attend`."""

    def attend(self, layer: int, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        """q (B·T, Hq, D), k and v (B·T, Hkv, D) → (B·T, Hq, D)."""
        k, v = (x.reshape(self.pads.size, -1, *x.shape[1:]) for x in (k, v))  # (B, T, Hkv, D)
        if layer == len(self.keys):
            self.keys.append(k)
            self.values.append(v)
        else:
            self.keys[layer] = mx.concatenate([self.keys[layer], k], axis=1)
            self.values[layer] = mx.concatenate([self.values[layer], v], axis=1)
        return attend_rows(q, self.keys[layer], self.values[layer], self.hidden)

    def keep(self, rows: list[int]) -> None:
        """Drop all other rows, so that a long answer does not compute on with the short ones."""
        chosen = mx.array(rows)
        self.pads = self.pads[chosen]
        self.keys = [keys[chosen] for keys in self.keys]
        self.values = [values[chosen] for values in self.values]


def answers(model: Qwen3, prompts: Sequence[list[int]], longest: int, stop: int) -> list[list[int]]:
    """What the model says to each prompt, up to and without the stop token, at most `longest` tokens."""
    found: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    while order:
        rows = max(1, min(64, BATCH_TOKENS // len(prompts[order[-1]])))
        chosen, order = order[-rows:], order[:-rows]
        batch = _answers(model, [prompts[index] for index in chosen], longest, stop)
        for index, tokens in zip(chosen, batch, strict=True):
            found[index] = tokens
    return found


def _answers(model: Qwen3, prompts: Sequence[list[int]], longest: int, stop: int) -> list[list[int]]:
    width = max(map(len, prompts))
    pads = [width - len(prompt) for prompt in prompts]
    cache = PaddedCache(model.config, pads)
    padded = [[stop] * pad + prompt for pad, prompt in zip(pads, prompts, strict=True)]
    tokens = mx.array(padded).reshape(-1)
    last: mx.array | slice = mx.arange(len(prompts)) * width + width - 1
    texts: list[list[int]] = [[] for _ in prompts]
    open_texts = texts
    for _ in range(longest):
        tokens = mx.argmax(model(tokens, cache, last), axis=-1)
        last = slice(None)
        chosen = np.array(tokens)
        for text, token in zip(open_texts, chosen.tolist(), strict=True):
            text.append(token)
        rows = np.flatnonzero(chosen != stop).tolist()
        if not rows:
            break
        if len(rows) < len(open_texts):
            open_texts = [open_texts[row] for row in rows]
            tokens = tokens[mx.array(rows)]
            cache.keep(rows)
    return [text[:-1] if text[-1] == stop else text for text in texts]


def agreement(model: Qwen3, prompts: Sequence[list[int]], texts: Sequence[list[int]]) -> tuple[int, int]:
    """(tokens of the texts that the model would have chosen too, given all before them, number of tokens)."""
    same = total = 0
    for prompt, text in zip(prompts, texts, strict=True):
        if text:
            cache = PaddedCache(model.config, [0])
            at = mx.arange(len(prompt) - 1, len(prompt) + len(text) - 1)
            chosen = mx.argmax(model(mx.array(prompt + text), cache, at), axis=-1)
            same += int(np.sum(np.array(chosen) == text))
            total += len(text)
    return same, total

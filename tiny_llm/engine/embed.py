"""Turn texts into vectors: the model's hidden states after the final norm, pooled over each text's tokens."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from tiny_llm.config import ModelConfig
from tiny_llm.config.fields import require, shown
from tiny_llm.decode.text import NOT_FINITE
from tiny_llm.model.ops import Ops
from tiny_llm.model.qwen3 import Qwen3
from tiny_llm.model.tokenizer import Tokenizer, TooLongError

Pooling = Literal["last", "mean"]
Vectors = npt.NDArray[np.float32]
TOKEN_BUDGET = 2048  # tokens of a batch


def embed(
    model: Qwen3,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    pooling: Pooling = "last",
    *,
    normalize: bool = False,
    max_context: int | None = None,
    token_budget: int = TOKEN_BUDGET,
) -> Vectors:
    """Return a vector for each text, (N, hidden): the hidden state of its last token, or the mean over its tokens.

    A text is tokenized like a raw prompt, with the special tokens that the tokenizer adds. A vector does not depend on
    the other texts beyond rounding. `normalize` divides each vector by its length. A batch has at most `token_budget`
    tokens, or one longer text. Raises ValueError for a value that is not a text, an empty text, and a text of more
    tokens than `max_context`.
    """
    check_pooling(pooling, normalize)
    rows = encode_texts(tokenizer, texts, model.config.context(max_context))
    parts = list(embed_batches(model, rows, pooling, normalize=normalize, token_budget=token_budget))
    return join_vectors(parts, model.config.hidden_size)


def check_pooling(pooling: Any, normalize: Any) -> None:
    """Raise ValueError for an unknown pooling, or a `normalize` that is not a bool."""
    ok = isinstance(pooling, str) and pooling in ("last", "mean")
    require(ok, f"pooling: expected 'last' or 'mean', found {shown(pooling)}")
    require(isinstance(normalize, bool), f"normalize: expected true or false, found {shown(normalize)}")


def encode_texts(tokenizer: Tokenizer, texts: Any, max_context: int) -> list[list[int]]:
    """Return the tokens of each text. Raises ValueError naming an item that is not a text, is empty or is too long."""
    is_list = isinstance(texts, Sequence) and not isinstance(texts, str | bytes | bytearray)
    require(is_list, f"texts: expected a list of texts, found {shown(texts)}")
    rows = []
    for place, text in enumerate(texts):
        tokens = _encode(tokenizer, text, f"texts[{place}]", max_context)
        rows.append(tokens)
    return rows


def _encode(tokenizer: Tokenizer, text: Any, name: str, max_context: int) -> list[int]:
    require(isinstance(text, str), f"{name}: expected a text, found {shown(text)}")
    require(text != "", f"{name}: expected at least one character, found none; leave out empty texts")
    try:
        tokens = tokenizer.encode(text, add_special_tokens=True, limit=max_context)
    except TooLongError as error:
        words = f"{name}: expected at most {max_context} tokens (the context), found {error.found}; split the text"
        raise ValueError(words) from None
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    require(len(tokens) > 0, f"{name}: expected a text of at least one token, found {shown(text)}, which has none")
    return tokens


def embed_batches(
    model: Qwen3,
    rows: Sequence[Sequence[int]],
    pooling: Pooling,
    *,
    normalize: bool = False,
    token_budget: int = TOKEN_BUDGET,
) -> Iterator[Vectors]:
    """Yield the vectors (R, hidden) of the rows of tokens, a batch at a time.

    Raises ArithmeticError where a hidden state is not a finite number.
    """
    for batch in batches_of(rows, token_budget):
        pooled_states = pooled(model, batch, pooling)
        vectors = np.array(pooled_states.astype(mx.float32))
        if not np.isfinite(vectors).all():
            raise ArithmeticError(NOT_FINITE.replace("logits", "hidden states"))
        if normalize:
            lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
            vectors /= np.maximum(lengths, np.finfo(np.float32).tiny)
        yield vectors


def join_vectors(parts: Sequence[Vectors], width: int) -> Vectors:
    """Concatenate the vectors of all batches, (N, width)."""
    none = np.zeros((0, width), np.float32)
    return np.concatenate([none, *parts])


def batches_of(rows: Sequence[Sequence[int]], token_budget: int) -> Iterator[list[Sequence[int]]]:
    """Group consecutive rows into batches of at most `token_budget` tokens, or of one longer row."""
    batch: list[Sequence[int]] = []
    size = 0
    for row in rows:
        if batch and size + len(row) > token_budget:
            yield batch
            batch = []
            size = 0
        batch.append(row)
        size += len(row)
    if batch:
        yield batch


def pooled(model: Qwen3, rows: Sequence[Sequence[int]], pooling: Pooling) -> mx.array:
    """Return a vector for each row of tokens, (R, hidden), in one forward pass."""
    norm = model.weights["norm"]["weight"]
    eps = model.config.rms_norm_eps
    if pooling == "last":
        return model.ops.rms_norm(last_states(model, rows), norm, eps)
    spans = spans_of(rows)
    x = _hidden_states(model, rows, spans)
    states = model.ops.rms_norm(x, norm, eps).astype(mx.float32)
    means = []
    for begin, end in spans:
        mean = states[begin:end].mean(axis=0)
        means.append(mean)
    return mx.stack(means)


def last_states(model: Qwen3, rows: Sequence[Sequence[int]]) -> mx.array:
    """Return the hidden state of each row's last token before the final norm, (R, hidden), in one forward pass."""
    spans = spans_of(rows)
    last = mx.array([end - 1 for _, end in spans])
    return _hidden_states(model, rows, spans)[last]


def _hidden_states(model: Qwen3, rows: Sequence[Sequence[int]], spans: Sequence[tuple[int, int]]) -> mx.array:
    """Return the hidden states of all rows' tokens before the final norm, (T, hidden)."""
    tokens: list[int] = []
    for row in rows:
        tokens += row
    view = TextsSideBySide(model.config, model.ops, spans)
    return model.hidden_states(mx.array(tokens, mx.int32), view)


def spans_of(rows: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Return the begin and end of each row in the concatenation of all rows: lengths 3, 2 → (0, 3), (3, 5)."""
    spans = []
    begin = 0
    for row in rows:
        end = begin + len(row)
        spans.append((begin, end))
        begin = end
    return spans


class TextsSideBySide:
    """Causal attention within each of the texts that are concatenated in a step. It keeps no K and V."""

    def __init__(self, config: ModelConfig, ops: Ops, spans: Sequence[tuple[int, int]]):
        self.config, self.ops, self.spans = config, ops, spans

    def begin(self, num_tokens: int) -> mx.array:
        """Return the positions of a step of T tokens, each counted from the start of its text: (T,) int32."""
        positions = [mx.arange(end - begin) for begin, end in self.spans]
        return mx.concatenate(positions)

    def open_buffers(self, num_tokens: int) -> None:
        """Return None: these steps go through `attend`."""

    def attend(self, layer: int, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        """Compute each query's attention to its own text. q (T, Hq, D), k and v (T, Hkv, D), result (T, Hq, D)."""
        scale = self.config.head_dim**-0.5
        window = self.config.window_of(layer)
        attended = []
        for begin, end in self.spans:
            keys = k[begin:end].swapaxes(0, 1)  # (Hkv, length, D)
            values = v[begin:end].swapaxes(0, 1)
            attended.append(self.ops.attention(q[begin:end], keys, values, scale, window))
        return mx.concatenate(attended)

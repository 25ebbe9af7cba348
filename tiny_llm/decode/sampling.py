"""Choosing the next token: every technique is one small function on the logits of a batch, (R rows, V tokens).

Parameters are columns (R, 1), one value a row. The stages run in the order of `transformers`: logit bias and penalties
on the logits, temperature, top-k, top-p on what top-k left, min-p; then one draw. Top-k, top-p and min-p each keep a
prefix of the tokens in descending order, so they act on sorted weights by setting the rest to 0.
"""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
import numpy.typing as npt

LOG2_E = 1.4426950408889634
BLOCK = 64
WIDE = 4096


def weights(logits: mx.array, temperature: mx.array) -> mx.array:
    """Softmax(logits / temperature) without its division: the likeliest token weighs exactly 1, a masked one 0.

    logits (R, C) with at least one finite value a row, temperature (R, 1) above 0 → (R, C).
    """
    # TASK w1.7.1: softmax with a temperature, but for its division
    # exp(x) as 2^(x log2 e): the CPU back end's power takes 40 % of the time of its exp
    return mx.power(2.0, (logits - mx.max(logits, axis=-1, keepdims=True)) * (LOG2_E / temperature))
    # END TASK


def log_softmax_total(logits: mx.array) -> mx.array:
    """log(sum(exp(logits))), what a row's logits exceed its log-probabilities by. (R, V) → (R, 1)."""
    total = mx.sum(weights(logits, mx.array(1.0)), axis=-1, keepdims=True)
    return mx.max(logits, axis=-1, keepdims=True) + mx.log(total)


def bias(logits: mx.array, tokens: mx.array, values: mx.array) -> mx.array:
    """Add values (R, B) to the logits (R, V) of tokens (R, B); fill short rows with token 0, value 0."""
    return logits.at[mx.arange(len(logits))[:, None], tokens].add(values)


def penalize(
    logits: mx.array,
    counts: mx.array,
    in_prompt: mx.array,
    repetition: mx.array,
    presence: mx.array,
    frequency: mx.array,
) -> mx.array:
    """Make tokens that were seen less likely.

    Repetition (CTRL, arXiv:1909.05858, as in transformers) moves the logit of every token of prompt and output away
    from likely: a positive one is divided, a negative one multiplied. Presence and frequency (OpenAI) are subtracted
    once, and once per occurrence, for tokens of the output only.

    logits, counts (in the output), in_prompt (0 or 1): (R, C); the three parameters (R, 1) → (R, C).
    """
    # TASK w1.7.5: three penalties on what was seen
    seen = (counts + in_prompt) > 0
    logits = mx.where(seen, mx.where(logits > 0, logits / repetition, logits * repetition), logits)
    return logits - counts * frequency - (counts > 0) * presence
    # END TASK


def largest(logits: mx.array, k: int) -> tuple[mx.array, mx.array]:
    """The k largest logits of each row in descending order and their tokens: (R, V) → (R, k), (R, k).

    A large vocabulary is cut into blocks first. The k largest lie in the k blocks with the largest maxima, so
    the search is over k blocks only (nine times as fast as a partition of 151,936 logits).
    """
    rows, vocab = logits.shape
    tokens = None
    if vocab % BLOCK == 0 and 2 * k * BLOCK < vocab:
        maxima = mx.max(logits.reshape(rows, -1, BLOCK), axis=-1)
        blocks = mx.argpartition(maxima, -k, axis=-1)[:, -k:, None]
        tokens = (blocks * BLOCK + mx.arange(BLOCK, dtype=mx.uint32)).reshape(rows, -1)  # (R, k * BLOCK)
        logits = mx.take_along_axis(logits, tokens, axis=-1)
    if k < vocab:
        best = mx.argpartition(logits, -k, axis=-1)[:, -k:]
        tokens = best if tokens is None else mx.take_along_axis(tokens, best, axis=-1)
        logits = mx.take_along_axis(logits, best, axis=-1)
    order = mx.argsort(-logits, axis=-1)
    tokens = order if tokens is None else mx.take_along_axis(tokens, order, axis=-1)
    return mx.take_along_axis(logits, order, axis=-1), tokens


def top_k(weights: mx.array, k: mx.array) -> mx.array:
    """Keep the k largest. weights (R, C) in descending order, k (R, 1) → (R, C)."""
    # TASK w1.7.2: the k largest, the rest 0
    return weights * (mx.arange(weights.shape[-1]) < k)
    # END TASK


def top_p(weights: mx.array, p: mx.array) -> mx.array:
    """Keep the fewest tokens that hold the share p, the one that crosses it included (arXiv:1904.09751).

    weights (R, C) in descending order, p (R, 1) → (R, C). A p of infinity keeps everything.
    """
    # TASK w1.7.3: the fewest tokens that hold the share p
    before = mass_before(weights)
    return weights * (before < p * (before[:, -1:] + weights[:, -1:]))
    # END TASK


def min_p(weights: mx.array, p: mx.array) -> mx.array:
    """Keep tokens at least p times as likely as the likeliest, which weighs 1 (arXiv:2407.01082). Any order."""
    # TASK w1.7.4: at least p times as likely as the likeliest
    return weights * (weights >= p)
    # END TASK


def mass_before(weights: mx.array) -> mx.array:
    """The sum of all weights to the left of each. (R, C) → (R, C).

    A wide row is summed in blocks: in one float32 sum tokens of 1e-8 vanish beside the 1 that came before them.
    """
    rows, columns = weights.shape
    if columns <= WIDE:
        return mx.cumsum(weights, axis=-1, inclusive=False)
    blocks = _in_blocks(weights)
    inside = mx.cumsum(blocks, axis=-1, inclusive=False)
    outside = mx.cumsum(mx.sum(blocks, axis=-1, keepdims=True), axis=1, inclusive=False)
    return (outside + inside).reshape(rows, -1)[:, :columns]


def draw(weights: mx.array, uniforms: mx.array) -> mx.array:
    """One column per row, with a probability in proportion to its weight. (R, C), (R, 2) → (R,) uint32.

    A wide row draws a block with one uniform and a token inside it with the other: less to compare, and finer than
    one float32 uniform, whose steps of 6e-8 are larger than many tokens' probabilities.
    """
    if weights.shape[-1] <= WIDE:
        return inverse_cdf(weights, uniforms[:, :1])
    blocks = _in_blocks(weights)
    block = inverse_cdf(mx.sum(blocks, axis=-1), uniforms[:, :1])
    inside = mx.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    return block * BLOCK + inverse_cdf(inside, uniforms[:, 1:])


def inverse_cdf(weights: mx.array, uniform: mx.array) -> mx.array:
    """The last column of positive weight whose share of the row begins at or before uniform (R, 1) in [0, 1).

    The first positive column begins at exactly 0 and qualifies always: whatever a sum's rounding, no column of
    weight 0 is ever drawn. (R, C) → (R,) uint32.
    """
    # TASK w1.7.6: one draw from a row of weights
    begin = mx.cumsum(weights, axis=-1, inclusive=False)
    possible = (begin <= uniform * mx.sum(weights, axis=-1, keepdims=True)) & (weights > 0)
    return mx.max(mx.arange(weights.shape[-1], dtype=mx.uint32) * possible, axis=-1)
    # END TASK


def _in_blocks(weights: mx.array) -> mx.array:
    """(R, C) → (R, C / BLOCK, BLOCK), filled up with zeros."""
    fill = -weights.shape[-1] % BLOCK
    padded = mx.pad(weights, [(0, 0), (0, fill)]) if fill else weights
    return padded.reshape(len(weights), -1, BLOCK)


Words = npt.NDArray[np.uint64]
_STRIDE = np.uint64(0x9E3779B97F4A7C15)


def _mix(words: Words) -> Words:
    """SplitMix64's finalizer (Steele, Lea and Flood 2014; Stafford's variant 13): a bijection without pattern."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def stream_keys(seeds: Sequence[int], samples: Sequence[int]) -> Words:
    """One key per row from its seed (64 bits) and the number of its sample among n. → (R,) uint64."""
    return _mix(_mix(np.array(seeds, np.uint64) + _STRIDE) + np.array(samples, np.uint64) * _STRIDE)


def uniforms(keys: Words, positions: Sequence[int] | npt.NDArray[np.int64]) -> mx.array:
    """Two numbers in [0, 1) per row, a function of its key and position alone. (R,), (R,) → (R, 2) float32.

    This is SplitMix64 read at an index: the same on every back end, and nothing to keep between steps.
    """
    words = _mix(keys + (np.asarray(positions).astype(np.uint64) + np.uint64(1)) * _STRIDE)
    halves = words[:, None].view(np.uint32) >> 8  # (R, 2) of 24 bits, what a float32 holds
    return mx.array(halves.astype(np.float32) * np.float32(2.0**-24))

"""Turn logits into the weights of the next token: each technique is one small function on a batch (R rows, V tokens).

A parameter is a column (R, 1), one value for each row. The stages run in the order of `transformers`: logit bias and
penalties change the logits; then temperature, top-k, top-p on what top-k left, and min-p. Top-k, top-p and min-p each
keep a prefix of the tokens in descending order, so they act on sorted weights and set the rest to 0.
"""

from collections.abc import Sequence

import mlx.core as mx

from tiny_llm.course import NotDone

LOG2_E = 1.4426950408889634
BLOCK = 64
WIDE = 4096  # a row with more columns is summed in blocks of BLOCK columns


def weights(logits: mx.array, temperature: mx.array) -> mx.array:
    """Compute softmax(logits / temperature) without its division: the likeliest token weighs 1, a masked one 0.

    logits (R, C) with at least one finite value in each row, temperature (R, 1) above 0 → (R, C).
    """
    # YOUR CODE (w1.7.1): softmax with a temperature, without its division
    raise NotDone("w1.7.1")


def log_softmax_total(logits: mx.array) -> mx.array:
    """Compute log(sum(exp(logits))): a logit minus this total is the token's log-probability. (R, V) → (R, 1)."""
    highest = logits.max(axis=1, keepdims=True)
    likely = weights(logits, mx.array(1.0))
    total = likely.sum(axis=1, keepdims=True)
    return highest + mx.log(total)


def bias(logits: mx.array, tokens: mx.array, values: mx.array) -> mx.array:
    """Add values (R, B) to the logits (R, V) of tokens (R, B). Pad short rows with token 0 and value 0."""
    rows = mx.arange(len(logits))[:, None]
    return logits.at[rows, tokens].add(values)


def penalize(
    logits: mx.array,
    counts: mx.array,
    in_prompt: mx.array,
    repetition: mx.array,
    presence: mx.array,
    frequency: mx.array,
) -> mx.array:
    """Make tokens that the text has already less likely.

    Repetition above 1 (CTRL, arXiv:1909.05858, as in transformers) lowers the logit of every token of the prompt and
    the output: a positive logit is divided, a negative one multiplied. Presence and frequency (OpenAI) look at the
    output only: presence is subtracted once from each of its tokens, frequency once per occurrence.

    logits, counts (in the output), in_prompt (0 or 1): (R, C); the three parameters (R, 1) → (R, C).
    """
    # YOUR CODE (w1.7.5): three penalties on seen tokens
    raise NotDone("w1.7.5")


def largest(logits: mx.array, k: int) -> tuple[mx.array, mx.array]:
    """Find the k largest logits of each row, in descending order, and their tokens: (R, V) → (R, k), (R, k).

    A large vocabulary is cut into blocks first. The k largest logits lie in the k blocks with the largest maxima, so
    only k blocks are searched (nine times as fast as a partition of 151,936 logits).
    """
    vocab = logits.shape[1]
    if vocab % BLOCK or 2 * k * BLOCK >= vocab:
        return _partition(logits, k)
    tokens = _tokens_of_best_blocks(logits, k)
    values, columns = _partition(pick(logits, tokens), k)
    return values, pick(tokens, columns)


def column(values: Sequence[float]) -> mx.array:
    """Make a parameter of one value per row. → (R, 1)."""
    row = mx.array(list(values), mx.float32)
    return row[:, None]


def pick(values: mx.array, columns: mx.array) -> mx.array:
    """Read some columns of each row, each row its own. values (R, C), columns (R, K) → (R, K)."""
    return mx.take_along_axis(values, columns, axis=1)


def top_k(weights: mx.array, k: mx.array) -> mx.array:
    """Keep the k largest weights. weights (R, C) in descending order, k (R, 1) → (R, C)."""
    # YOUR CODE (w1.7.2): the k largest, the rest 0
    raise NotDone("w1.7.2")


def top_p(weights: mx.array, p: mx.array) -> mx.array:
    """Keep the fewest tokens that hold the share p, the one that crosses p included (arXiv:1904.09751).

    weights (R, C) in descending order, p (R, 1) → (R, C). A p of infinity keeps everything.
    """
    # YOUR CODE (w1.7.3): the fewest tokens that hold the share p
    raise NotDone("w1.7.3")


def min_p(weights: mx.array, p: mx.array) -> mx.array:
    """Keep tokens at least p times as likely as the likeliest, which weighs 1 (arXiv:2407.01082). Any order."""
    # YOUR CODE (w1.7.4): at least p times as likely as the likeliest
    raise NotDone("w1.7.4")


def mass_before(weights: mx.array) -> mx.array:
    """Sum all weights to the left of each. (R, C) → (R, C).

    A wide row is summed in blocks: in one float32 sum tokens of 1e-8 vanish beside the 1 that came before them.
    """
    rows, columns = weights.shape
    if columns <= WIDE:
        return mx.cumsum(weights, axis=1, inclusive=False)
    blocks = in_blocks(weights)
    totals = blocks.sum(axis=2, keepdims=True)
    before = mx.cumsum(totals, axis=1, inclusive=False)
    inside = mx.cumsum(blocks, axis=2, inclusive=False)
    sums = (before + inside).reshape(rows, -1)
    return sums[:, :columns]


def in_blocks(weights: mx.array) -> mx.array:
    """Cut rows into blocks of BLOCK columns, padded with zeros. (R, C) → (R, ceil(C / BLOCK), BLOCK)."""
    rows, columns = weights.shape
    padding = -columns % BLOCK
    if padding:
        weights = mx.pad(weights, [(0, 0), (0, padding)])
    return weights.reshape(rows, -1, BLOCK)


def _partition(logits: mx.array, k: int) -> tuple[mx.array, mx.array]:
    """Find the k largest of each row, in descending order, and their columns. (R, C) → (R, k), (R, k)."""
    if k == logits.shape[1]:
        return _descending(logits)
    parted = mx.argpartition(logits, -k, axis=1)
    kept = parted[:, -k:]
    values, order = _descending(pick(logits, kept))
    return values, pick(kept, order)


def _descending(logits: mx.array) -> tuple[mx.array, mx.array]:
    """Sort each row in descending order; also return the column where each value stood. (R, C) → (R, C), (R, C)."""
    order = mx.argsort(-logits, axis=1)
    return pick(logits, order), order


def _tokens_of_best_blocks(logits: mx.array, k: int) -> mx.array:
    """List the tokens of the k blocks with the largest maxima. (R, V) → (R, k * BLOCK) uint32."""
    rows = len(logits)
    maxima = logits.reshape(rows, -1, BLOCK).max(axis=2)  # (R, V / BLOCK)
    parted = mx.argpartition(maxima, -k, axis=1)
    blocks = parted[:, -k:]
    firsts = blocks[:, :, None] * BLOCK
    tokens = firsts + mx.arange(BLOCK, dtype=mx.uint32)  # (R, k, BLOCK)
    return tokens.reshape(rows, -1)

"""A trained embedding under another tokenizer."""

import mlx.core as mx
from tokenizers import Tokenizer


def translated(embedding: mx.array, old: Tokenizer, new: Tokenizer) -> mx.array:
    """Rows for the tokens of `new`: the row of the same token in `old`, or the mean over the tokens that `old` spells
    it with. embedding (V, H) → (V', H)."""
    known, found = old.get_vocab(), new.get_vocab()
    rows = []
    for token in sorted(found, key=lambda token: found[token]):
        spelled = [known[token]] if token in known else old.encode(new.decode([found[token]])).ids
        rows.append(embedding[mx.array(spelled)].mean(axis=0))
    return mx.stack(rows)

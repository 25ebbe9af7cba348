"""How many tokens a text has at least, without tokenizing it."""

import json
from typing import Any

import tokenizers

KEEPING = {"ByteLevel", "Digits", "Metaspace", "Punctuation", "Sequence", "Split", "UnicodeScripts"}


class LeastTokens:
    """Counts the tokens that a text needs at least: its bytes over those of the longest token.

    That holds for vocabularies that have all bytes, and where no step before drops any. For others the answer is 0.
    """

    def __init__(self, backend: tokenizers.Tokenizer):
        self.backend = backend
        added = backend.get_added_tokens_decoder().values()
        self.trims = any(token.lstrip or token.rstrip for token in added)  # a token may swallow white space
        self.longest = max((len(piece.encode()) for piece in backend.get_vocab()), default=1)
        self.holds = _keeps_all(backend)

    def __call__(self, text: str) -> int:
        if not self.holds or self._tokens(text) == 0:
            return 0
        normalized = text if self.backend.normalizer is None else self.backend.normalizer.normalize_str(text)
        return min(self._tokens(text), self._tokens(normalized))

    def _tokens(self, text: str) -> int:
        kept = "".join(text.split()) if self.trims else text
        return -(-len(kept.encode()) // max(1, self.longest))


def _keeps_all(backend: tokenizers.Tokenizer) -> bool:
    """Whether each byte of a text is in one of its tokens."""
    splits = _parts(backend.pre_tokenizer)
    if any(part["type"] not in KEEPING or part.get("behavior") == "Removed" for part in splits):
        return False
    vocab = backend.get_vocab(with_added_tokens=False)
    if any(part["type"] == "ByteLevel" for part in splits):
        alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
        return all(character in vocab for character in alphabet)
    return getattr(backend.model, "byte_fallback", False) and all(f"<0x{byte:02X}>" in vocab for byte in range(256))


def _parts(pre_tokenizer: Any) -> list[dict[str, Any]]:
    """Return the parts of a pre-tokenizer as tokenizer.json has them."""
    if pre_tokenizer is None:
        return []
    waiting = [json.loads(pre_tokenizer.__getstate__())]
    parts = []
    while waiting:
        part = waiting.pop()
        parts.append(part)
        waiting += part.get("pretokenizers", [])
    return parts

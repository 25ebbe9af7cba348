"""Find the smallest number of tokens that a text can have, without tokenizing it."""

import json
from typing import Any

import tokenizers

PART = 65_536  # characters that are normalized at once
BORDER = 64  # bytes by which a part's normal form may be longer than its share of the whole text's
KEEPING = {"ByteLevel", "Digits", "Metaspace", "Punctuation", "Sequence", "Split", "UnicodeScripts"}


class LeastTokens:
    """Counts the tokens that a text needs at least: its bytes, divided by the bytes of the longest token.

    The count is valid if the vocabulary has all bytes and no earlier step drops any. Otherwise it is 0.
    """

    def __init__(self, backend: tokenizers.Tokenizer):
        self.backend = backend
        added = backend.get_added_tokens_decoder().values()
        self.trims = any(token.lstrip or token.rstrip for token in added)  # a token may swallow white space
        self.longest = max((len(piece.encode()) for piece in backend.get_vocab()), default=1) or 1
        self.holds = _keeps_all(backend)

    def __call__(self, text: str, limit: int) -> int:
        """Return how many tokens the text has at least; stop counting once there are more than `limit`.

        The normalizer may shorten a text, so normalize it in parts of PART characters.
        """
        if not self.holds:
            return 0
        size = 0
        for begin in range(0, len(text), PART):
            size += max(0, self._size(text[begin : begin + PART]) - BORDER)
            if size > limit * self.longest:
                break
        return -(-size // self.longest)

    def _size(self, part: str) -> int:
        """Return the bytes of a part of the text that have to be in tokens."""
        if self.backend.normalizer is not None:
            part = self.backend.normalizer.normalize_str(part)
        if self.trims:
            part = "".join(part.split())
        return len(part.encode())


def _keeps_all(backend: tokenizers.Tokenizer) -> bool:
    """Return whether each byte of a text is in one of its tokens."""
    types = set()
    for part in _parts(backend.pre_tokenizer):
        if part["type"] not in KEEPING or part.get("behavior") == "Removed":
            return False
        types.add(part["type"])
    vocab = backend.get_vocab(with_added_tokens=False)
    if "ByteLevel" in types:
        alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
        return all(character in vocab for character in alphabet)
    if not getattr(backend.model, "byte_fallback", False):
        return False
    return all(f"<0x{byte:02X}>" in vocab for byte in range(256))


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

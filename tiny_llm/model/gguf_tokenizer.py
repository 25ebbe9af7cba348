"""The tokenizer of a GGUF file: the vocabulary of its metadata as Hugging Face's library takes it.

Two kinds of vocabulary are read: byte-level BPE (tokenizer.ggml.model gpt2), whose rule to split a text into words is
named by tokenizer.ggml.pre, and SentencePiece's BPE (llama), whose merges follow from the tokens' scores.
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import Any, NamedTuple

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from tiny_llm.config.fields import JsonFields, expect

GGML = "tokenizer.ggml"
SPECIAL = {  # the names of tokenizer_config.json, and those of the file
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")
ENDING = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>")  # llama.cpp ends there, too
SPACE = "▁"  # SentencePiece's for a space

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


class Splitting(NamedTuple):
    """How a text becomes words: by each of the patterns in turn, of which every match is a word.

    `whole`: a word that is a token is taken as it is, without merges. `begins`: a text begins with bos_token where the
    file does not say. `nfc`: the text is normalized first, as Qwen's own tokenizer does, but llama.cpp does not.
    """

    patterns: tuple[str, ...]
    whole: bool = False
    begins: bool = False
    nfc: bool = False


SPLITTINGS = {
    "default": Splitting((r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "gpt-2": Splitting((GPT2,)),
    "smollm": Splitting((r"\p{N}", GPT2)),
    "qwen2": Splitting((QWEN2,), nfc=True),
    "deepseek-r1-qwen": Splitting((QWEN2,)),
    **dict.fromkeys(("llama-bpe", "llama-v3", "llama3"), Splitting((LLAMA3,), whole=True, begins=True)),
}


class TokenType(IntEnum):
    """The numbers in tokenizer.ggml.token_type."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class Vocabulary:
    """The tokens of a file by their ids, and their types. Raises ValueError naming file, key, expected and found."""

    def __init__(self, fields: JsonFields):
        self.fields = fields
        self.tokens = self.values("tokens", str)
        count = len(self.tokens)
        self.check(len(set(self.tokens)) == count, "tokens", "each token once", _twice(self.tokens))
        self.types: Sequence[int] = [TokenType.NORMAL] * count
        if f"{GGML}.token_type" in fields.data:
            self.types = self.values("token_type", int)
            self.check(len(self.types) == count, "token_type", f"{count} types", len(self.types))

    def check(self, ok: bool, name: str, expected: str, found: Any) -> None:
        expect(ok, f"{self.fields.source}: {GGML}.{name}", expected, found)

    def values(self, name: str, kind: type) -> Any:
        """Return the list of a key, all of whose values are of one type."""
        values: Any = self.fields.data.get(f"{GGML}.{name}")
        ok = isinstance(values, list) and len(values) > 0
        ok = ok and all(type(value) is kind for value in values)
        self.check(ok, name, f"a list of {kind.__name__}", values)
        return values

    def ids(self, *left_out: TokenType) -> dict[str, int]:
        """Return the ids of all tokens but those of the types that are left out."""
        return {token: i for i, token in enumerate(self.tokens) if self.types[i] not in left_out}

    def special(self, name: str) -> int | None:
        """Return the id that a key such as bos_token_id gives, None without it."""
        key = f"{GGML}.{name}"
        if self.fields.data.get(key) is None:
            return None
        return self.fields.integer(key, low=0, high=len(self.tokens) - 1)


def _twice(tokens: Sequence[str]) -> str:
    """Return the first token that was there before, "" if there is none."""
    seen: set[str] = set()
    for token in tokens:
        if token in seen:
            return token
        seen.add(token)
    return ""


def build_tokenizer(vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    """Return the tokenizer. Raises ValueError for kinds of vocabulary and splitting rules that are not known."""
    fields = vocabulary.fields
    kind = fields.choice(f"{GGML}.model", ("gpt2", "llama"))
    try:
        backend, begins = _byte_level(vocabulary) if kind == "gpt2" else _sentencepiece(vocabulary)
    except ValueError:
        raise
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{fields.source}: {GGML}.merges: expected merges of the tokens, found: {error}") from error
    special = []
    spelled = []
    for token, of in zip(vocabulary.tokens, vocabulary.types, strict=True):
        if token and of in (TokenType.CONTROL, TokenType.UNKNOWN):
            special.append(AddedToken(token, normalized=False, special=True))
        elif token and of == TokenType.USER_DEFINED:
            spelled.append(AddedToken(token, normalized=False))
    backend.add_special_tokens(special)
    backend.add_tokens(spelled)
    _add_ends(backend, vocabulary, begins)
    return backend


def _byte_level(vocabulary: Vocabulary) -> tuple[tokenizers.Tokenizer, bool]:
    """Return a byte-level BPE, and whether a text begins with bos_token where the file does not say."""
    splitting = SPLITTINGS[vocabulary.fields.choice(f"{GGML}.pre", tuple(SPLITTINGS), "default")]
    merges = []
    for merge in vocabulary.values("merges", str):
        left, _, right = merge.partition(" ")
        if not (left and right):
            vocabulary.check(False, "merges", "two tokens with a space between them", merge)
        merges.append((left, right))
    ids = vocabulary.ids(TokenType.UNUSED)
    backend = tokenizers.Tokenizer(models.BPE(ids, merges, ignore_merges=splitting.whole))
    if splitting.nfc:
        backend.normalizer = normalizers.NFC()
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in splitting.patterns]
    backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    return backend, splitting.begins


def _sentencepiece(vocabulary: Vocabulary) -> tuple[tokenizers.Tokenizer, bool]:
    """Return SentencePiece's BPE with bytes for unknown characters. Its texts begin with bos_token."""
    for name in ("remove_extra_whitespaces", "precompiled_charsmap"):
        found = vocabulary.fields.data.get(f"{GGML}.{name}")
        vocabulary.check(found in (None, False), name, "no such normalization, as in Llama's files", found)
    merges = _merges(vocabulary)
    ids = vocabulary.ids(TokenType.UNUSED)
    missing = [f"<0x{byte:02X}>" for byte in range(256) if f"<0x{byte:02X}>" not in ids]
    vocabulary.check(not missing, "tokens", "a token for each byte", f"none for {missing[:3]}")
    backend = tokenizers.Tokenizer(models.BPE(ids, merges, fuse_unk=True, byte_fallback=True))
    prefix = vocabulary.fields.flag(f"{GGML}.add_space_prefix", True)
    steps: list[Any] = [normalizers.Replace(" ", SPACE)]
    back: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        steps.insert(0, normalizers.Prepend(SPACE))
        back.append(decoders.Strip(" ", 1, 0))
    backend.normalizer = normalizers.Sequence(steps)
    backend.decoder = decoders.Sequence(back)
    return backend, True


def _merges(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Return all pairs of tokens that are a token together, those of the best score first.

    SentencePiece merges the two neighbours whose token has the best score; a BPE those that are listed first.
    """
    scores = vocabulary.values("scores", float)
    count = len(vocabulary.tokens)
    vocabulary.check(len(scores) == count, "scores", f"{count} scores", len(scores))
    others = [each for each in TokenType if each is not TokenType.NORMAL]
    ids = vocabulary.ids(*others)
    merges = []
    for token, number in ids.items():
        for end in range(1, len(token)):
            left, right = token[:end], token[end:]
            if left in ids and right in ids:
                merges.append((-scores[number], number, left, right))
    merges.sort()
    return [(left, right) for _, _, left, right in merges]


def _add_ends(backend: tokenizers.Tokenizer, vocabulary: Vocabulary, begins: bool) -> None:
    """Let the tokenizer put bos_token before a plain text and eos_token behind it, where the file wants that."""
    parts = ["$A"]
    used = []
    for name, default in (("bos", begins), ("eos", False)):
        key = f"{GGML}.add_{name}_token"
        number = vocabulary.special(f"{name}_token_id")
        if not vocabulary.fields.flag(key, default and number is not None):
            continue
        if number is None:
            vocabulary.check(False, f"{name}_token_id", f"an id, because add_{name}_token is true", "nothing")
            continue
        token = vocabulary.tokens[number]
        used.append((token, number))
        parts.insert(0 if name == "bos" else len(parts), token)
    if used:
        backend.post_processor = processors.TemplateProcessing(single=parts, special_tokens=used)


def tokenizer_config(vocabulary: Vocabulary) -> dict[str, Any]:
    """Return the tokenizer_config.json of the model."""
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for name, own in SPECIAL.items():
        number = vocabulary.special(own)
        if number is not None:
            config[name] = vocabulary.tokens[number]
    return config


def end_ids(vocabulary: Vocabulary) -> list[int]:
    """Return the ids of the tokens that end an answer: those that the file names, and control tokens known to end."""
    named = [vocabulary.special(name) for name in ENDS]
    ids = [number for number in named if number is not None]
    for number, token in enumerate(vocabulary.tokens):
        if token in ENDING and vocabulary.types[number] == TokenType.CONTROL:
            ids.append(number)
    return sorted(set(ids))


def chat_templates(fields: JsonFields) -> dict[str, str]:
    """Return the chat templates by name; the one without a name is "default"."""
    key = "tokenizer.chat_template"
    templates = {}
    for name, text in fields.data.items():
        if name == key or name.startswith(f"{key}."):
            expect(isinstance(text, str), f"{fields.source}: {name}", "a text", text)
            templates[name.removeprefix(key).removeprefix(".") or "default"] = text
    return templates

"""Compare the keys of tokenizer_config.json with tokenizer.json, by which this engine splits texts.

transformers changes the tokenizer where the two files disagree. Here they must agree: a token that only one of them
has would have no row in the model's embedding table, or the row of another token.
"""

from collections.abc import Mapping
from typing import Any

import tokenizers

from tiny_llm.config.check import check_keys
from tiny_llm.config.fields import JsonFields, as_json
from tiny_llm.config.keys import TOKENIZER

SPACES = ("Ġ", "▁", " ")  # how tokenizers write a space


def check_tokenizer_config(fields: JsonFields, backend: tokenizers.Tokenizer) -> None:
    """Check that the two files agree. Raises ValueError naming the key of tokenizer_config.json and its value."""
    check_keys(fields, TOKENIZER)
    added = {token.content: (number, token.special) for number, token in backend.get_added_tokens_decoder().items()}
    _check_added_tokens(fields, added)
    for key in ("additional_special_tokens", "extra_special_tokens"):
        _check_special_tokens(fields, key, added)
    if _is_rebuilt(fields):
        _check_prefix_space(fields, backend)


def _is_rebuilt(fields: JsonFields) -> bool:
    """Return whether transformers makes a Qwen2Tokenizer, which obeys tokenizer_config.json if the files differ."""
    name = fields.data.get("tokenizer_class")
    return name is None or str(name).startswith("Qwen2Tokenizer")


def _check_added_tokens(fields: JsonFields, added: Mapping[str, tuple[int, bool]]) -> None:
    """Check that each entry of added_tokens_decoder, {"id": {"content", "special"}}, is in tokenizer.json."""
    table = fields.table("added_tokens_decoder")
    if table is None:
        return
    for number, token in table.data.items():
        content = token
        special = False
        if isinstance(token, Mapping):
            content = token.get("content")
            special = token.get("special", False)
        found = None
        if isinstance(content, str):
            found = added.get(content)
        if found is None or str(found[0]) != number or found[1] != special:
            raise _disagreement(fields, f"added_tokens_decoder: {number!r:.20}", _describe_token(found), token)


def _check_special_tokens(fields: JsonFields, key: str, added: Mapping[str, tuple[int, bool]]) -> None:
    """Check that each token of a list is a special token of tokenizer.json."""
    listed = fields.data.get(key)
    if listed is None or listed == {}:
        return
    if not isinstance(listed, list):
        raise ValueError(
            f"{fields.source}: {key}: expected a list of tokens, found {as_json(listed)}; "
            "write a token with a name under a key of its own, such as image_token"
        )
    for token in listed:
        content = token.get("content") if isinstance(token, Mapping) else token
        found = added.get(content) if isinstance(content, str) else None
        plain = found is not None and not found[1] and _is_rebuilt(fields)
        if found is None or plain:
            raise _disagreement(fields, key, "special tokens only", token)


def _check_prefix_space(fields: JsonFields, backend: tokenizers.Tokenizer) -> None:
    """Check that `add_prefix_space` agrees with what tokenizer.json does to a text's first word."""
    wanted = fields.data.get("add_prefix_space")
    if wanted is None:
        return
    pieces = backend.encode("a", add_special_tokens=False).tokens
    adds = bool(pieces) and pieces[0].startswith(SPACES)
    if wanted is not adds:
        raise _disagreement(fields, "add_prefix_space", str(adds).lower(), wanted)


def _describe_token(found: tuple[int, bool] | None) -> str:
    if found is None:
        return "a token of tokenizer.json"
    return f"number {found[0]} and special {str(found[1]).lower()}"


def _disagreement(fields: JsonFields, key: str, expected: str, found: Any) -> ValueError:
    return ValueError(
        f"{fields.source}: {key}: expected {expected}, as in tokenizer.json, found {as_json(found)}; "
        "correct the file that is wrong"
    )

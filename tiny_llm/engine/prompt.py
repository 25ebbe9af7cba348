"""What callers give as a prompt, and the tokens that it becomes."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

from tiny_llm.config.fields import is_integer, require, shown
from tiny_llm.decode.text import no_room
from tiny_llm.model.tokenizer import Tokenizer, TooLongError

Messages = Sequence[Mapping[str, Any]]
Prompt = str | Messages | Sequence[int]
Template = Mapping[str, Any] | None


class Prepared(NamedTuple):
    """A prompt as the model takes it. `in_thought`: the chat template has opened a thought at its end."""

    tokens: list[int]
    in_thought: bool = False


def many(prompt: Any) -> bool:
    """Whether this is a list of prompts: of texts, of lists of token ids, or of lists of messages."""
    is_list = isinstance(prompt, (list, tuple)) and len(prompt) > 0
    return is_list and all(isinstance(p, (str, list, tuple)) for p in prompt)


def prepare(tokenizer: Tokenizer, prompt: Prompt, template: Template = None, limit: int | None = None) -> Prepared:
    """The tokens of a text, of chat messages under the model's chat template, or of token ids as they are.

    A raw text gets what the tokenizer adds to texts, such as a beginning-of-text token. `template` holds what
    `Tokenizer.render` takes beside messages. Raises ValueError for what is no prompt, and for a text of more tokens
    than the context `limit`, before it is tokenized where its length alone says so.
    """
    try:
        return _prepare(tokenizer, prompt, template, limit)
    except TooLongError as error:
        assert limit is not None
        raise ValueError(no_room(error.found, limit)) from None


def _prepare(tokenizer: Tokenizer, prompt: Prompt, template: Template, limit: int | None) -> Prepared:
    ok = template is None or isinstance(template, Mapping)
    ok = ok and all(isinstance(name, str) for name in template or ())
    require(ok, f"template: expected the chat template's settings by name, found {shown(template)}")
    is_list = isinstance(prompt, Sequence) and not isinstance(prompt, str | bytes | bytearray)
    is_chat = is_list and bool(prompt) and isinstance(prompt[0], Mapping)
    require(
        is_chat or not template, f"template: only chat messages have a template, found {shown(template)}; leave it out"
    )
    if isinstance(prompt, str):
        return Prepared(tokenizer.encode(prompt, add_special_tokens=True, limit=limit))
    if is_chat:
        if limit is not None and len(prompt) > limit:  # each message is a token at least
            raise TooLongError(f"at least {len(prompt)}", limit)
        text = tokenizer.render(cast(Messages, prompt), **(template or {}))
        return Prepared(tokenizer.encode(text, limit=limit), text.opens_thought)
    if not is_list or not all(map(is_integer, prompt)):
        raise ValueError(f"prompt: expected a text, chat messages or token ids, found {shown(prompt)}")
    return Prepared(cast(list[int], list(prompt)))


def head_of(tokenizer: Tokenizer, prompt: Prompt, template: Template) -> int:
    """How many tokens of chat messages come before the user's first words; 0 for another prompt."""
    is_chat = bool(prompt) and isinstance(prompt[0], Mapping)
    return tokenizer.head(cast(Messages, prompt), **(template or {})) if is_chat else 0

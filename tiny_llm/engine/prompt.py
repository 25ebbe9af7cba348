"""What callers give as a prompt, and the tokens that it becomes."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

from tiny_llm.config.fields import is_integer, require, shown
from tiny_llm.model.tokenizer import Tokenizer

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


def prepare(tokenizer: Tokenizer, prompt: Prompt, template: Template = None) -> Prepared:
    """A text as it is, chat messages under the model's chat template, or token ids.

    `template` holds the template's own settings, such as tools and enable_thinking. Raises ValueError for what is none
    of these.
    """
    ok = template is None or isinstance(template, Mapping)
    require(ok, f"template: expected the chat template's settings by name, found {shown(template)}")
    if isinstance(prompt, str):
        return Prepared(tokenizer.encode(prompt))
    is_list = isinstance(prompt, Sequence) and not isinstance(prompt, bytes | bytearray)
    if is_list and prompt and isinstance(prompt[0], Mapping):
        text = tokenizer.render(cast(Messages, prompt), **(template or {}))
        return Prepared(tokenizer.encode(text), bool(getattr(text, "opens_thought", False)))
    if not is_list or not all(map(is_integer, prompt)):
        raise ValueError(f"prompt: expected a text, chat messages or token ids, found {shown(prompt)}")
    return Prepared(cast(list[int], list(prompt)))


def head_of(tokenizer: Tokenizer, prompt: Prompt, template: Template) -> int:
    """How many tokens of chat messages come before the user's first words; 0 for another prompt."""
    is_chat = bool(prompt) and isinstance(prompt[0], Mapping)
    return tokenizer.head(cast(Messages, prompt), **(template or {})) if is_chat else 0

"""Turn a prompt and its settings into a checked request."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

from tiny_llm.config import SamplingParams
from tiny_llm.config.fields import is_integer, require, shown
from tiny_llm.config.sampling import check_token_ids
from tiny_llm.decode.text import check_prompt, no_room, stop_tokens
from tiny_llm.engine.request import Request, check_priority, check_salt, check_seconds, check_tenant
from tiny_llm.model.tokenizer import Tokenizer, TooLongError

Messages = Sequence[Mapping[str, Any]]
Prompt = str | Messages | Sequence[int]
Template = Mapping[str, Any] | None


class EncodedPrompt(NamedTuple):
    """The tokens of a prompt. `in_thought`: the chat template has opened a thought at its end."""

    tokens: list[int]
    in_thought: bool = False


class Terms(NamedTuple):
    """The checked settings of a served request, all but its prompt. Times are seconds on the monotonic clock."""

    params: SamplingParams
    template: Template
    arrival: float
    priority: int
    tenant: str
    deadline: float | None
    salt: str


@dataclass(frozen=True)
class RequestBuilder:
    """Makes checked requests for one model. Any thread may call it.

    `defaults` are the sampling settings of the model's generation_config.json. A prompt and its answer have at most
    `max_context` tokens together, each of them below `vocab_size`. `pool_tokens`: as many as fit into the pool of
    blocks, None for no pool.
    """

    tokenizer: Tokenizer
    defaults: Mapping[str, Any]
    max_context: int
    vocab_size: int
    pool_tokens: int | None = None

    def resolve(self, params: SamplingParams | None, overrides: Mapping[str, Any]) -> SamplingParams:
        """Return `params` or, without them, the overrides over the model's defaults.

        Raises ValueError for an unknown name, and where `params` and overrides are given together.
        """
        if params is None:
            return SamplingParams.resolve(overrides, self.defaults)
        require(isinstance(params, SamplingParams), f"params: expected SamplingParams, found {shown(params)}")
        if overrides:
            names = ", ".join(overrides)
            raise ValueError(f"{names}: expected either a SamplingParams or single settings, found both")
        return params

    def encode(self, prompt: Prompt, params: SamplingParams, template: Template = None) -> EncodedPrompt:
        """Return the prompt's tokens. Raises ValueError for a prompt, or token ids in `params`, that can never run."""
        encoded = encode_prompt(self.tokenizer, prompt, template, self.max_context)
        check_prompt(encoded.tokens, self.max_context, self.vocab_size)
        check_token_ids(params, self.vocab_size)
        return encoded

    def request(self, name: str, prompt: Prompt, params: SamplingParams, template: Template = None) -> Request:
        """Make the request with the id `name`. Raises ValueError as `encode` does.

        `max_tokens` is lowered to the room that the prompt leaves in the context: the answer then ends with "length".
        With `max_tokens` of a whole context or more it is lowered to the room in the pool, too.
        """
        encoded = self.encode(prompt, params, template)
        room = self.max_context - len(encoded.tokens)
        if self.pool_tokens is not None and params.max_tokens >= self.max_context:
            room = max(1, min(room, self.pool_tokens - len(encoded.tokens)))
        params = replace(params, max_tokens=min(params.max_tokens, room))
        return Request(
            name,
            tuple(encoded.tokens),
            params,
            stop_tokens=stop_tokens(self.tokenizer, params),
            head=head_of(self.tokenizer, prompt, template),
            in_thought=encoded.in_thought,
        )

    def requests(self, prompts: Sequence[Prompt], params: SamplingParams, template: Template) -> list[Request]:
        """Return a request for each prompt, named by its number. Raises ValueError naming the prompt."""
        made = []
        number = 0
        try:
            for number, prompt in enumerate(prompts):
                made.append(self.request(str(number), prompt, params, template))
        except ValueError as error:
            raise ValueError(f"prompts[{number}]: {error}") from error
        return made

    def terms(self, params: SamplingParams | None, options: Mapping[str, Any], now: float) -> Terms:
        """Check a call's settings. Options that are not fields of a request are sampling settings, as in `resolve`.

        This is fast, because it reads neither the prompt nor the template. Raises ValueError for a value of the wrong
        kind.
        """
        rest = dict(options)
        template = rest.pop("template", None)
        check_template(template)
        priority = check_priority(rest.pop("priority", Request.priority))
        tenant = check_tenant(rest.pop("tenant", Request.tenant))
        salt = check_salt(rest.pop("salt", Request.salt))
        deadline = rest.pop("deadline", None)
        if deadline is not None:
            deadline = now + check_seconds("deadline", deadline)
        settings = self.resolve(params, rest)
        check_token_ids(settings, self.vocab_size)
        return Terms(settings, template, now, priority, tenant, deadline, salt)

    def served(self, name: str, prompt: Prompt, terms: Terms) -> Request:
        """Make the request with the id `name` on these terms. Raises ValueError as `encode` does."""
        request = self.request(name, prompt, terms.params, terms.template)
        return replace(
            request,
            arrival=terms.arrival,
            priority=terms.priority,
            tenant=terms.tenant,
            deadline=terms.deadline,
            salt=terms.salt,
        )


def many(prompt: Any) -> bool:
    """Return whether `prompt` is a list of prompts: texts, lists of token ids, or lists of messages."""
    is_list = isinstance(prompt, (list, tuple)) and len(prompt) > 0
    return is_list and all(isinstance(p, (str, list, tuple)) for p in prompt)


def encode_prompt(
    tokenizer: Tokenizer, prompt: Prompt, template: Template = None, limit: int | None = None
) -> EncodedPrompt:
    """Return the tokens of a text, of chat messages under the model's chat template, or of token ids as they are.

    A raw text gets the special tokens that the tokenizer adds, such as a beginning-of-text token. `template` holds the
    other arguments of `Tokenizer.render`. Raises ValueError for a value that is not a prompt, and for a text of more
    than `limit` tokens, even before it is tokenized where its length alone proves it.
    """
    try:
        return _encode(tokenizer, prompt, template, limit)
    except TooLongError as error:
        assert limit is not None
        raise no_room(error.found, limit) from None


def check_template(template: Any) -> None:
    """Raise ValueError for a template that is neither None nor a mapping with texts as keys."""
    is_mapping = isinstance(template, Mapping) and all(isinstance(name, str) for name in template)
    ok = template is None or is_mapping
    require(ok, f"template: expected the chat template's settings by name, found {shown(template)}")


def _encode(tokenizer: Tokenizer, prompt: Prompt, template: Template, limit: int | None) -> EncodedPrompt:
    check_template(template)
    is_list = isinstance(prompt, Sequence) and not isinstance(prompt, str | bytes | bytearray)
    is_chat = is_list and bool(prompt) and isinstance(prompt[0], Mapping)
    require(
        is_chat or not template, f"template: only chat messages have a template, found {shown(template)}; leave it out"
    )
    if isinstance(prompt, str):
        return EncodedPrompt(tokenizer.encode(prompt, add_special_tokens=True, limit=limit))
    if is_chat:
        if limit is not None and len(prompt) > limit:  # each message has at least one token
            raise TooLongError(f"at least {len(prompt)}", limit)
        text = tokenizer.render(cast(Messages, prompt), **(template or {}))
        return EncodedPrompt(tokenizer.encode(text, limit=limit), text.opens_thought)
    if not is_list or not all(map(is_integer, prompt)):
        raise ValueError(f"prompt: expected a text, chat messages or token ids, found {shown(prompt)}")
    return EncodedPrompt(cast(list[int], list(prompt)))


def head_of(tokenizer: Tokenizer, prompt: Prompt, template: Template) -> int:
    """Return the number of tokens before the user's first words in chat messages; 0 for another kind of prompt."""
    is_chat = bool(prompt) and isinstance(prompt[0], Mapping)
    return tokenizer.head(cast(Messages, prompt), **(template or {})) if is_chat else 0

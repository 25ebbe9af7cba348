"""The requests of the OpenAI API as pydantic models, and what each of them asks for.

A field that this server does not know is refused by name, as the API does it. A field that it knows but can't honour is
refused by name, too, unless its value is the one that changes nothing.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, field_validator

from tiny_llm.config import Structured
from tiny_llm.config.sampling import MAX_STOP_LENGTH, MAX_STOPS
from tiny_llm.engine.request import MAX_TENANT, PRIORITIES
from tiny_llm.server.ask import Ask, WantedCall
from tiny_llm.server.errors import unsupported

LONGEST_NAME = 64
FunctionName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
StopText = Annotated[str, StringConstraints(min_length=1, max_length=MAX_STOP_LENGTH)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
EFFORTS: Mapping[str, int | None] = {"low": 1024, "medium": 4096, "high": None, "xhigh": None}  # tokens of thought
SAME = (  # fields that are settings of decoding under the same name
    *("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"),
    *("seed", "n", "beam_width", "length_penalty", "ignore_eos", "skip_special_tokens", "thinking_budget"),
)
TEMPLATE_ARGUMENTS = ("messages", "tools", "add_generation_prompt", "special_tokens_in_messages")
OutputKind = Literal["json", "regex", "grammar"]
JSON_OBJECT = json.dumps({"type": "object"})


def check_template_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a chat template. Raises ValueError for names that are arguments of `Tokenizer.render`."""
    for name in TEMPLATE_ARGUMENTS:
        if name in settings:
            raise ValueError(f"expected settings of the chat template, and {name} is a field of its own")
    return settings


TemplateSettings = Annotated[dict[str, Any], AfterValidator(check_template_settings)]


class ApiModel(BaseModel):
    """An object of the API: unknown fields are refused, and so are numbers in quotes."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


class TextPart(ApiModel):
    """A part of a message's content. The models here read text alone."""

    type: Literal["text"]
    text: str


class CalledFunction(ApiModel):
    name: str = Field(min_length=1)
    arguments: str = "{}"


class CallOfMessage(ApiModel):
    """A tool call in an assistant's message of the conversation."""

    id: str | None = None
    type: Literal["function"] = "function"
    index: int | None = None
    function: CalledFunction


class Message(ApiModel):
    """A message of the conversation. `reasoning` and `reasoning_content` are the same; clients differ in the name."""

    role: Literal["developer", "system", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[CallOfMessage] | None = None
    tool_call_id: str | None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None

    def for_template(self) -> dict[str, Any]:
        """Return the message as chat templates expect it."""
        unread = {"refusal", "annotations", "audio", "function_call"}
        message = self.model_dump(exclude_none=True, exclude=unread)
        if self.role == "developer":
            message["role"] = "system"
        return message


class FunctionOfTool(ApiModel):
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolObject(ApiModel):
    type: Literal["function"]
    function: FunctionOfTool

    def for_template(self) -> dict[str, Any]:
        return self.model_dump(exclude_none=True, exclude={"function": {"strict"}})


class NamedFunction(ApiModel):
    name: FunctionName


class NamedTool(ApiModel):
    type: Literal["function"] = "function"
    function: NamedFunction


class JsonSchema(ApiModel):
    name: FunctionName
    description: str | None = None
    json_schema: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(ApiModel):
    """The form of the answer. A schema is enforced, strict or not."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    def structured(self) -> Structured | None:
        """Return the grammar of the answer; None for free text."""
        if self.type == "text":
            return None
        if self.type == "json_object":
            return Structured("json_schema", JSON_OBJECT)
        if self.json_schema is None:
            raise ValueError("response_format.json_schema: expected a schema beside the type json_schema, found none")
        schema = self.json_schema.json_schema
        return Structured("json_schema", JSON_OBJECT if schema is None else json.dumps(schema))


class StreamOptions(ApiModel):
    include_usage: bool = False
    include_obfuscation: bool = False
    continuous_usage_stats: bool = False


class SamplingFields(ApiModel):
    """The settings of decoding that chat and completions share, and those of the request's way through the engine.

    `priority` is from -10 to 10, higher first. `deadline`: seconds from now within which the answer should begin.
    `cache_salt`: requests with different salts share nothing of the prefix cache.
    """

    model: str = Field(min_length=1, max_length=4096)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, lt=2**31)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=1e-6, le=1e6)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[str, float] | None = None
    seed: int | None = Field(None, ge=0, lt=2**64)
    stop: StopText | Annotated[list[StopText], Field(max_length=MAX_STOPS)] | None = None
    stop_token_ids: list[TokenId] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    n: int | None = Field(None, ge=1, le=128)
    beam_width: int | None = Field(None, ge=1, le=64)
    length_penalty: float | None = Field(None, ge=-10, le=10)
    max_tokens: int | None = Field(None, ge=1, le=2**31)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    priority: int | None = Field(None, ge=-PRIORITIES, le=PRIORITIES)
    deadline: float | None = Field(None, gt=0, le=1e9)
    cache_salt: str | None = Field(None, min_length=1, max_length=MAX_TENANT)
    return_metrics: bool | None = None
    structured_outputs: dict[OutputKind, Any] | None = None
    user: str | None = None

    @field_validator("logit_bias")
    @classmethod
    def _ids(cls, biases: dict[str, float] | None) -> dict[str, float] | None:
        for token, bias in (biases or {}).items():
            if not token.isdecimal() or len(token) > 10 or not -100 <= bias <= 100:
                raise ValueError("expected token ids with values from -100 to 100")
        return biases

    def settings(self) -> dict[str, Any]:
        """Return the settings of decoding that the request gives, under the engine's names."""
        given: dict[str, Any] = {}
        for name in SAME:
            value = getattr(self, name, None)
            if value is not None:
                given[name] = value
        if given.get("top_k") == -1:  # vLLM's word for "off"
            given["top_k"] = 0
        if self.max_tokens is not None:
            given["max_tokens"] = self.max_tokens
        if self.stop is not None:
            given["stop"] = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if self.stop_token_ids is not None:
            given["stop_token_ids"] = tuple(self.stop_token_ids)
        if self.logit_bias is not None:
            given["logit_bias"] = {int(token): bias for token, bias in self.logit_bias.items()}
        structured = outputs_form(self.structured_outputs)
        if structured is not None:
            given["structured"] = structured
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: expected stream to be true, too; set it or leave this out")
        return given

    def options(self) -> dict[str, Any]:
        """Return the request's way through the engine."""
        given = {"priority": self.priority, "deadline": self.deadline, "salt": self.cache_salt}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


def add_form(settings: dict[str, Any], form: Structured | None, field: str) -> None:
    """Set the answer's grammar, which the request's `field` gives. Raises ValueError where there is one already."""
    if form is None:
        return
    if "structured" in settings:
        raise ValueError(f"{field}: expected either this or structured_outputs, found both; leave one out")
    settings["structured"] = form


def outputs_form(wanted: Mapping[OutputKind, Any] | None) -> Structured | None:
    """Return the grammar of vLLM's `structured_outputs`: {"json": schema}, {"regex": text} or {"grammar": text}."""
    if wanted is None:
        return None
    if len(wanted) != 1:
        raise ValueError(f"structured_outputs: expected one of json, regex and grammar, found {len(wanted)}")
    ((kind, form),) = wanted.items()
    if kind == "json":
        return Structured("json_schema", form if isinstance(form, str) else json.dumps(form))
    return Structured("regex" if kind == "regex" else "lark", form)


class ChatRequest(SamplingFields):
    """A request to /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, le=2**31)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[ToolObject] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: Effort | None = None
    thinking_budget: int | None = Field(None, ge=0, lt=2**31)
    chat_template_kwargs: TemplateSettings | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: Literal[False] | None = None
    modalities: list[Literal["text"]] | None = None
    verbosity: Literal["medium"] | None = None

    def ask(self) -> Ask:
        """Return what the request asks for. Raises ApiError and ValueError for fields that do not fit together."""
        settings = self.settings()
        if self.max_completion_tokens is not None:
            if self.max_tokens not in (None, self.max_completion_tokens):
                raise ValueError("max_tokens: expected either this or max_completion_tokens, found both; leave one out")
            settings["max_tokens"] = self.max_completion_tokens
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: expected logprobs to be true, too; set it or leave this out")
        if self.logprobs:
            settings["logprobs"] = self.top_logprobs or 0
        add_form(settings, self.response_format.structured() if self.response_format else None, "response_format")
        template = dict(self.chat_template_kwargs or {})
        if self.reasoning_effort is not None:
            budget = EFFORTS.get(self.reasoning_effort)
            template.setdefault("enable_thinking", self.reasoning_effort in EFFORTS)
            if budget is not None:
                settings.setdefault("thinking_budget", budget)
        return Ask(
            model=self.model,
            prompt=[message.for_template() for message in self.messages],
            settings=settings,
            options=self.options(),
            template=template,
            tools=tuple(tool.for_template() for tool in self.tools or ()),
            tool_choice=self._choice(),
            parallel_calls=self.parallel_tool_calls is not False,
            strict_tools=any(tool.function.strict for tool in self.tools or ()),
        )

    def _choice(self) -> WantedCall:
        """Return the tool choice. Raises ValueError for an unknown tool, and for a choice where there are no tools."""
        names = [tool.function.name for tool in self.tools or ()]
        choice = self.tool_choice
        if isinstance(choice, NamedTool):
            if choice.function.name not in names:
                raise ValueError(f"tool_choice: expected one of the tools, found {choice.function.name!r}")
            return WantedCall("named", choice.function.name)
        if choice in ("auto", "required") and not names:
            raise ValueError("tool_choice: expected tools to choose from, found none; set tools or leave this out")
        return WantedCall(choice or "auto")


class CompletionRequest(SamplingFields):
    """A request to /v1/completions, with one prompt or several."""

    prompt: str | list[str] | list[TokenId] | list[list[TokenId]] = Field(min_length=1)
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool | None = None
    best_of: int | None = Field(None, ge=1, le=128)
    suffix: None = None

    def prompts(self) -> list[str | list[int]]:
        """Return the prompts as a list."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)

    def asks(self) -> list[Ask]:
        """Return an Ask for each prompt. Raises ApiError for what can't be honoured."""
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise unsupported("best_of", f"best_of: expected n ({self.n or 1}), found {self.best_of}; leave it out.")
        if self.echo and self.logprobs is not None:
            raise unsupported("echo", "echo: this server has no log-probabilities of a prompt; leave out logprobs.")
        settings = self.settings()
        if self.logprobs is not None:
            settings["logprobs"] = self.logprobs
        settings.setdefault("max_tokens", 16)  # the API's default
        options = self.options()
        return [Ask(self.model, prompt, settings, options) for prompt in self.prompts()]


class EmbeddingsRequest(ApiModel):
    """A request to /v1/embeddings. Lists of token ids are refused: a client counts them by another vocabulary."""

    model: str = Field(min_length=1, max_length=4096)
    input: str | list[str] = Field(min_length=1)
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1)
    user: str | None = None

    def texts(self) -> Sequence[str]:
        return [self.input] if isinstance(self.input, str) else self.input


class TextDocument(ApiModel):
    text: str


class RerankRequest(ApiModel):
    """A request to /v1/rerank, in the form that Jina and Cohere have in common."""

    model: str = Field(min_length=1, max_length=4096)
    query: str = Field(min_length=1)
    documents: list[str | TextDocument] = Field(min_length=1, max_length=2048)
    top_n: int | None = Field(None, ge=1)
    return_documents: bool = True
    instruction: str | None = None
    user: str | None = None

    def texts(self) -> list[str]:
        return [each if isinstance(each, str) else each.text for each in self.documents]


class TokenizeRequest(ApiModel):
    """A request to /tokenize: a text in `prompt`, or chat `messages`. Without `model` the server's first one counts."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = Field(None, min_length=1)
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    return_token_strs: bool | None = None
    tools: list[ToolObject] | None = None
    chat_template_kwargs: TemplateSettings | None = None


class DetokenizeRequest(ApiModel):
    """A request to /detokenize."""

    model: str | None = None
    tokens: list[TokenId]

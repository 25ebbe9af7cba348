"""The requests of the Anthropic API as pydantic models, and what each of them asks for."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field, Tag

from tiny_llm.config import Structured
from tiny_llm.config.sampling import MAX_STOPS
from tiny_llm.server.ask import Ask, CallChoice, WantedCall
from tiny_llm.server.one_of import one_of
from tiny_llm.server.types import EFFORTS, ApiModel, FunctionName, SamplingFields, StopText, TemplateSettings, add_form

BILLING = "x-anthropic-billing-header:"  # the begin of a line that a coding client changes with every request
CHOICES: Mapping[str, CallChoice] = {"auto": "auto", "any": "required", "tool": "named", "none": "none"}


class CacheControl(ApiModel):
    """Marks the end of a prefix. All prefixes are cached here, so it changes nothing."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class TextBlock(ApiModel):
    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = None
    citations: None = None


class ThinkingBlock(ApiModel):
    """A thought that the client sends back. Its signature is not checked: the text alone counts."""

    type: Literal["thinking"]
    thinking: str
    signature: str = ""


class ToolUseBlock(ApiModel):
    type: Literal["tool_use"]
    id: str
    name: str = Field(min_length=1)
    input: dict[str, Any]
    cache_control: CacheControl | None = None
    caller: None = None


class ToolResultBlock(ApiModel):
    type: Literal["tool_result"]
    tool_use_id: str
    content: str | list[TextBlock] | None = None
    is_error: bool | None = None
    cache_control: CacheControl | None = None

    def for_template(self) -> dict[str, Any]:
        """Return the result as a message. An error says so at its beginning."""
        text = text_of(self.content or "")
        content = f"Error: {text}" if self.is_error else text
        return {"role": "tool", "tool_call_id": self.tool_use_id, "content": content}


Block = Annotated[
    Annotated[TextBlock, Tag("TextBlock")]
    | Annotated[ThinkingBlock, Tag("ThinkingBlock")]
    | Annotated[ToolUseBlock, Tag("ToolUseBlock")]
    | Annotated[ToolResultBlock, Tag("ToolResultBlock")],
    one_of(TextBlock, ThinkingBlock, ToolUseBlock, ToolResultBlock),
]


class MessageOfBlocks(ApiModel):
    """A message of the conversation. One of the role system stays where it is: moving it would change the prefix."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]

    def for_template(self) -> list[dict[str, Any]]:
        """Return the message as chat templates expect it: results of tools are messages of their own."""
        if isinstance(self.content, str):
            return [{"role": self.role, "content": self.content}]
        if self.role == "assistant":
            return [self._turn(self.content)]
        messages: list[dict[str, Any]] = []
        for block in self.content:
            if isinstance(block, ToolResultBlock) and self.role == "user":
                messages.append(block.for_template())
            elif not isinstance(block, TextBlock):
                raise ValueError(f"messages: expected no block of type {block.type} in a message of the {self.role}")
            elif messages and messages[-1]["role"] == self.role:
                messages[-1]["content"] += f"\n{block.text}"
            else:
                messages.append({"role": self.role, "content": block.text})
        return messages or [{"role": self.role, "content": ""}]

    def _turn(self, blocks: Sequence[Block]) -> dict[str, Any]:
        """Return the assistant's message: thought, text and calls."""
        message: dict[str, Any] = {"role": "assistant"}
        thoughts, texts, calls = [], [], []
        for block in blocks:
            if isinstance(block, ThinkingBlock):
                thoughts.append(block.thinking)
            elif isinstance(block, TextBlock):
                texts.append(block.text)
            elif isinstance(block, ToolUseBlock):
                function = {"name": block.name, "arguments": block.input}
                calls.append({"id": block.id, "type": "function", "function": function})
            else:
                raise ValueError("messages: expected no block of type tool_result in a message of the assistant")
        message["content"] = "\n".join(texts)
        if thoughts:
            message["reasoning_content"] = "\n".join(thoughts)
        if calls:
            message["tool_calls"] = calls
        return message


class ToolOfBlocks(ApiModel):
    type: Literal["custom"] | None = None
    name: FunctionName
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None
    cache_control: CacheControl | None = None
    eager_input_streaming: bool | None = None  # arguments stream as they come, asked for or not
    defer_loading: Literal[False] | None = None
    allowed_callers: list[Literal["direct"]] | None = None

    def for_template(self) -> dict[str, Any]:
        function: dict[str, Any] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        function["parameters"] = self.input_schema
        return {"type": "function", "function": function}


class ChoiceOfTool(ApiModel):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(ApiModel):
    """Whether the model thinks before it answers, and for at most how many tokens."""

    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: int | None = Field(None, ge=1, lt=2**31)
    display: Literal["summarized"] | None = None


class OutputFormat(ApiModel):
    type: Literal["json_schema"]
    output_schema: dict[str, Any] = Field(alias="schema")


class OutputConfig(ApiModel):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class ClearedThoughts(ApiModel):
    """Names thoughts to drop from the conversation: none."""

    type: Literal["clear_thinking_20251015"]
    keep: Literal["all"]


class ContextManagement(ApiModel):
    edits: list[ClearedThoughts] = Field(default_factory=list)


class BlockPrompt(ApiModel):
    """What both requests of the API have: all that the prompt is made of."""

    model: str = Field(min_length=1, max_length=4096)
    messages: list[MessageOfBlocks] = Field(min_length=1)
    system: str | list[TextBlock] | None = None
    tools: list[ToolOfBlocks] | None = None
    tool_choice: ChoiceOfTool | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    cache_control: CacheControl | None = None
    context_management: ContextManagement | None = None
    chat_template_kwargs: TemplateSettings | None = None

    def prompt(self) -> list[dict[str, Any]]:
        """Return the conversation as chat templates expect it."""
        if self.messages[-1].role == "assistant":
            raise ValueError("messages: this server does not continue the assistant's message; end with the user's")
        system = without_billing(text_of(self.system or ""))
        messages = [{"role": "system", "content": system}] if system else []
        for message in self.messages:
            messages += message.for_template()
        return messages

    def ask(self) -> Ask:
        """Return what the request asks for. Raises ValueError for fields that do not fit together."""
        thinks = self.thinking is not None and self.thinking.type != "disabled"
        template = {"enable_thinking": thinks, **(self.chat_template_kwargs or {})}
        tools = self.tools or ()
        return Ask(
            model=self.model,
            prompt=self.prompt(),
            template=template,
            settings=self._output(thinks),
            tools=tuple(tool.for_template() for tool in tools),
            tool_choice=self._choice(),
            parallel_calls=self.tool_choice is None or not self.tool_choice.disable_parallel_tool_use,
            strict_tools=any(tool.strict for tool in tools),
        )

    def _output(self, thinks: bool) -> dict[str, Any]:
        """Return the settings that bound the thought and give the answer its form."""
        config = self.output_config or OutputConfig()
        settings: dict[str, Any] = {}
        budget = self.thinking.budget_tokens if self.thinking else None
        if self.thinking is not None and (budget is None) == (self.thinking.type == "enabled"):
            raise ValueError("thinking.budget_tokens: expected it with the type enabled, and with no other")
        if budget is None and config.effort is not None:
            budget = EFFORTS.get(config.effort)
        if thinks and budget is not None:
            settings["thinking_budget"] = budget
        if config.format is not None:
            settings["structured"] = Structured("json_schema", json.dumps(config.format.output_schema))
        return settings

    def _choice(self) -> WantedCall:
        """Return the tool choice. Raises ValueError for an unknown tool, and for a choice where there are no tools."""
        choice = self.tool_choice
        if choice is None:
            return WantedCall()
        names = [tool.name for tool in self.tools or ()]
        if choice.type == "tool" and choice.name not in names:
            raise ValueError(f"tool_choice.name: expected one of the tools, found {choice.name!r}")
        if choice.type == "any" and not names:
            raise ValueError("tool_choice: expected tools to choose from, found none; set tools or leave this out")
        return WantedCall(CHOICES[choice.type], choice.name)


class CountRequest(BlockPrompt):
    """A request to /v1/messages/count_tokens."""


class UserMetadata(ApiModel):
    user_id: str | None = None


class MessagesRequest(BlockPrompt, SamplingFields):
    """A request to /v1/messages. Fields of the other APIs are accepted where no field here says the same."""

    max_tokens: int = Field(ge=1, le=2**31)
    stop_sequences: Annotated[list[StopText], Field(max_length=MAX_STOPS)] | None = None
    metadata: UserMetadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    speed: Literal["standard"] | None = None
    container: None = None
    inference_geo: None = None
    stop: None = None
    stream_options: None = None
    n: Literal[1] | None = None
    beam_width: Literal[1] | None = None

    def ask(self) -> Ask:
        """Return what the request asks for. Raises ValueError for fields that do not fit together."""
        asked = super().ask()
        settings = self.settings()
        given = dict(asked.settings)
        add_form(settings, given.pop("structured", None), "output_config.format")
        settings |= given
        if self.stop_sequences:
            settings["stop"] = tuple(self.stop_sequences)
        if self.max_tokens <= settings.get("thinking_budget", 0) and self.thinking and self.thinking.budget_tokens:
            raise ValueError("max_tokens: expected more than thinking.budget_tokens")
        return replace(asked, settings=settings, options=self.options())


def text_of(content: str | Sequence[TextBlock]) -> str:
    """Return the text of a content, its blocks on lines of their own."""
    if isinstance(content, str):
        return content
    return "\n".join(block.text for block in content)


def without_billing(system: str) -> str:
    """Drop the line at the head of a system prompt that a coding client changes with every request."""
    head, _, rest = system.partition("\n")
    return rest if head.lstrip().startswith(BILLING) else system

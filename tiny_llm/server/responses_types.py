"""The request of the Responses API as pydantic models, and what it asks for."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, Tag

from tiny_llm.apps.agent.hosted import ON_FILES, SEARCH
from tiny_llm.config import Structured
from tiny_llm.config.prompts import builtin_tools
from tiny_llm.server.ask import Ask, WantedCall
from tiny_llm.server.errors import unsupported
from tiny_llm.server.one_of import one_of
from tiny_llm.server.responses_items import INPUT, InputItem, MessageItem, conversation
from tiny_llm.server.types import EFFORTS, ApiModel, Effort, FunctionName, ResponseFormat, SamplingFields

LOGPROBS = "message.output_text.logprobs"
ENCRYPTED = "reasoning.encrypted_content"
RESULTS = "file_search_call.results"
LABEL = "tiny-llm"  # of the built-in tools, as an MCP server
Included = Literal["reasoning.encrypted_content", "message.output_text.logprobs", "file_search_call.results"]
MetadataText = Annotated[str, StringConstraints(max_length=512)]


class FunctionTool(ApiModel):
    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    defer_loading: Literal[False] | None = None

    def for_template(self) -> dict[str, Any]:
        function = self.model_dump(exclude_none=True, include={"name", "description", "parameters"})
        return {"type": "function", "function": function}


class CustomFormat(ApiModel):
    """The form of a custom tool's input: any text, or one that a regular expression matches."""

    type: Literal["text", "grammar"]
    syntax: Literal["regex", "lark"] | None = None
    definition: str | None = None


class CustomTool(ApiModel):
    """A tool whose input is a text. The model sees a function with this text as its one parameter."""

    type: Literal["custom"]
    name: FunctionName
    description: str | None = None
    format: CustomFormat | None = None
    defer_loading: Literal[False] | None = None

    @property
    def strict(self) -> bool:
        """Whether only calls that fit may be generated."""
        return self.format is not None and self.format.type == "grammar"

    def for_template(self) -> dict[str, Any]:
        """Return the tool as a function. Raises ApiError for a grammar that JSON can't hold."""
        text: dict[str, Any] = {"type": "string"}
        if self.format is not None and self.format.type == "grammar":
            if self.format.syntax != "regex" or self.format.definition is None:
                words = f"tools: {self.name}: this server enforces formats of the syntax regex alone; leave format out."
                raise unsupported("tools", words)
            text["pattern"] = f"^(?:{self.format.definition})$"
        parameters = {"type": "object", "properties": {INPUT: text}, "required": [INPUT]}
        function: dict[str, Any] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        return {"type": "function", "function": function | {"parameters": parameters}}


class RankingOptions(ApiModel):
    """How hits are sorted: only the server's own way, without a threshold, as its scores have no fixed scale."""

    ranker: Literal["auto"] | None = None
    score_threshold: float | None = Field(None, ge=0, le=0)


class FileSearchTool(ApiModel):
    """Lets the model search the documents of `tiny-llm serve --documents`. They are the one vector store there is."""

    type: Literal["file_search"]
    vector_store_ids: list[Literal["documents"]] | None = None
    max_num_results: int | None = Field(None, ge=1, le=50)
    ranking_options: RankingOptions | None = None
    filters: None = None

    @property
    def names(self) -> list[str]:
        """The functions that the model sees."""
        return [SEARCH]


class McpTool(ApiModel):
    """Lets the model use the built-in tools of `tiny-llm serve --agent`, as those of an MCP server of this name."""

    type: Literal["mcp"]
    server_label: Literal["tiny-llm"]
    server_description: str | None = None
    server_url: None = None
    allowed_tools: list[str] | None = None
    require_approval: Literal["never"] | None = None  # the server's own rules decide

    @property
    def names(self) -> list[str]:
        """The allowed tools. Raises ValueError for an unknown name."""
        chosen = ON_FILES if self.allowed_tools is None else self.allowed_tools
        for name in chosen:
            if name not in ON_FILES:
                raise ValueError(f"tools: expected allowed_tools of {', '.join(ON_FILES)}, found {name!r}")
        return list(dict.fromkeys(chosen))


HOSTED = (FileSearchTool, McpTool)
OfferedTool = Annotated[
    Annotated[FunctionTool, Tag("FunctionTool")]
    | Annotated[CustomTool, Tag("CustomTool")]
    | Annotated[FileSearchTool, Tag("FileSearchTool")]
    | Annotated[McpTool, Tag("McpTool")],
    one_of(FunctionTool, CustomTool, FileSearchTool, McpTool),
]


class ChosenTool(ApiModel):
    """The tool to call. file_search needs no name, mcp the name of one of its tools."""

    type: Literal["function", "custom", "file_search", "mcp"]
    name: FunctionName | None = None
    server_label: Literal["tiny-llm"] | None = None


class TextFormat(ApiModel):
    """The form of the answer. A schema is enforced, strict or not."""

    type: Literal["text", "json_object", "json_schema"]
    name: FunctionName | None = None
    description: str | None = None
    json_schema: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None

    def structured(self) -> Structured | None:
        """Return the grammar of the answer; None for free text. Raises ValueError where the schema is missing."""
        if self.type == "json_schema" and (self.json_schema is None or self.name is None):
            raise ValueError("text.format: expected a name and a schema with the type json_schema")
        schema = {"name": self.name, "schema": self.json_schema} if self.json_schema is not None else None
        return ResponseFormat.model_validate({"type": self.type, "json_schema": schema}).structured()


class TextSettings(ApiModel):
    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class ReasoningSettings(ApiModel):
    """How much the model thinks. `max_tokens`: of the thought. No summary is made: the thought itself comes."""

    effort: Effort | None = None
    summary: Literal["auto"] | None = None
    generate_summary: Literal["auto"] | None = None
    max_tokens: int | None = Field(None, ge=0, lt=2**31)


class ResponsesRequest(SamplingFields):
    """A request to /v1/responses. The settings of decoding that only the other APIs have are accepted, too."""

    input: str | list[InputItem]
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1, le=2**31)
    previous_response_id: str | None = None
    store: bool | None = None
    include: list[Included] | None = None
    text: TextSettings | None = None
    tools: list[OfferedTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ChosenTool | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: int | None = Field(None, ge=1)  # of tools that the server itself runs
    reasoning: ReasoningSettings | None = None
    thinking_budget: int | None = Field(None, ge=0, lt=2**31)
    chat_template_kwargs: dict[str, Any] | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    metadata: Annotated[dict[str, MetadataText], Field(max_length=16)] | None = None
    truncation: Literal["disabled"] | None = None
    background: Literal[False] | None = None
    conversation: None = None
    prompt: None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    client_metadata: dict[str, str] | None = None
    service_tier: Literal["auto", "default"] | None = None
    n: Literal[1] | None = None
    beam_width: Literal[1] | None = None

    def ask(self, items: Sequence[InputItem]) -> Ask:
        """Return what the request asks for, with the conversation's items up to now.

        Raises ApiError and ValueError for fields that do not fit together.
        """
        tools = self.tools or ()
        kinds = self.kinds()
        counts_calls = bool(self.hosted) and self.max_tool_calls is not None  # one at a time
        return Ask(
            model=self.model,
            prompt=conversation(items, self.instructions),
            settings=self._settings(),
            options=self.options(),
            template=self._template(),
            tools=tuple(self._functions()),
            tool_choice=self._choice(kinds),
            parallel_calls=self.parallel_tool_calls is not False and not counts_calls,
            strict_tools=any(isinstance(tool, HOSTED) or tool.strict for tool in tools),
        )

    def _settings(self) -> dict[str, Any]:
        """Return the settings of decoding."""
        settings = self.settings()
        if self.max_output_tokens is not None:
            settings["max_tokens"] = self.max_output_tokens
        if self.top_logprobs is not None or self.wants(LOGPROBS):
            settings["logprobs"] = self.top_logprobs or 0
        structured = self.text.format.structured() if self.text and self.text.format else None
        if structured is not None:
            settings["structured"] = structured
        if self.reasoning is not None and "thinking_budget" not in settings:
            budget = self.reasoning.max_tokens
            if budget is None and self.reasoning.effort is not None:
                budget = EFFORTS.get(self.reasoning.effort)
            if budget is not None:
                settings["thinking_budget"] = budget
        return settings

    def _template(self) -> dict[str, Any]:
        """Return the settings of the chat template."""
        template: dict[str, Any] = {}
        if self.reasoning is not None and self.reasoning.effort is not None:
            template["enable_thinking"] = self.reasoning.effort in EFFORTS
        return {**template, **(self.chat_template_kwargs or {})}

    def _functions(self) -> Iterator[dict[str, Any]]:
        """Yield the functions of all tools in the form of chat templates."""
        for tool in self.tools or ():
            if isinstance(tool, HOSTED):
                yield from (builtin_tools().tools[name].schema for name in tool.names)
            else:
                yield tool.for_template()

    def kinds(self) -> dict[str, str]:
        """Return the type of each function's tool. Raises ValueError for two functions of one name."""
        found: dict[str, str] = {}
        for tool in self.tools or ():
            for name in tool.names if isinstance(tool, HOSTED) else [tool.name]:
                if name in found and self.hosted:
                    raise ValueError(f"tools: expected different names, found {name!r} twice; rename one")
                found[name] = tool.type
        return found

    @property
    def hosted(self) -> dict[str, FileSearchTool | McpTool]:
        """The tools that the server runs, by type."""
        return {tool.type: tool for tool in self.tools or () if isinstance(tool, HOSTED)}

    def _choice(self, kinds: Mapping[str, str]) -> WantedCall:
        """Return the tool choice. Raises ValueError for an unknown tool, and for a choice where there are no tools."""
        choice = self.tool_choice
        if isinstance(choice, ChosenTool):
            name = SEARCH if choice.type == "file_search" else choice.name
            if name is None or kinds.get(name) != choice.type:
                raise ValueError(f"tool_choice: expected one of the tools, found {choice.type} {choice.name!r}")
            return WantedCall("named", name)
        if choice == "required" and not kinds:
            raise ValueError("tool_choice: expected tools to choose from, found none; set tools or leave this out")
        return WantedCall(choice or "auto")

    def wants(self, field: str) -> bool:
        """Return whether the request asks for an optional field of the response."""
        return field in (self.include or ())

    def given_input(self) -> Sequence[InputItem]:
        """Return the request's own items."""
        if isinstance(self.input, str):
            return [MessageItem(role="user", content=self.input)]
        return self.input

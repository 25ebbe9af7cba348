"""What any API asks, and how it becomes a prompt and the options of the engine."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from tiny_llm.config import Structured
from tiny_llm.decode.reply import Reply
from tiny_llm.decode.tool_calls import CallForm, ToolCallParser, call_form
from tiny_llm.decode.tool_grammar import ToolChoice as GrammarChoice
from tiny_llm.decode.tool_grammar import call_grammar
from tiny_llm.decode.tool_values import tool_schemas
from tiny_llm.engine.prompt import Prompt
from tiny_llm.engine.serving import Engine
from tiny_llm.server.errors import unfit_model, unsupported

CallChoice = Literal["auto", "none", "required", "named"]


class WantedCall(NamedTuple):
    """Whether the model may call tools, must call one, or must call the tool `name`."""

    kind: CallChoice = "auto"
    name: str | None = None


@dataclass(frozen=True)
class Ask:
    """What a request of any API asks for.

    `settings`: settings of decoding by the names of SamplingParams, only those that the request gives. `options`: its
    priority, deadline and salt. `template`: the chat template's settings. `tools`: in the form of chat templates, in
    the client's order, because the prefix cache depends on it.
    """

    model: str
    prompt: Prompt
    settings: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    template: Mapping[str, Any] = field(default_factory=dict)
    tools: Sequence[Mapping[str, Any]] = ()
    tool_choice: WantedCall = WantedCall()  # noqa: RUF009 (a tuple)
    parallel_calls: bool = True
    strict_tools: bool = False


class EngineCall(NamedTuple):
    """The arguments of `Engine.astream` for an Ask, and a function that makes a Reply for each of its answers."""

    prompt: Prompt
    options: dict[str, Any]
    make_reply: Callable[[bool], Reply]


class Tenant(NamedTuple):
    """The client whose share of the engine a request uses. `has_own_cache`: it shares no cached prefix with others."""

    name: str = "default"
    has_own_cache: bool = False

    def options(self, ask: Ask) -> dict[str, Any]:
        """Return a request's way through the engine for this tenant."""
        options = {**ask.options, "tenant": self.name}
        if self.has_own_cache:
            options["salt"] = f"{self.name} {ask.options.get('salt', '')}"  # names have no spaces
        return options


def engine_call(ask: Ask, engine: Engine, tenant: Tenant) -> EngineCall:
    """Turn an Ask into a call of the engine. Raises ApiError for tools that can't be called."""
    options = {**ask.settings, **tenant.options(ask)}
    if "max_tokens" not in ask.settings and "max_tokens" not in engine.llm.defaults:
        options["max_tokens"] = engine.llm.max_context  # the engine lowers it to the room that the prompt leaves
    template = dict(ask.template)
    if ask.tools:
        template["tools"] = list(ask.tools)
    if template:
        options["template"] = template
    if not ask.tools:
        return EngineCall(ask.prompt, options, Reply)
    form = call_form(engine.llm.tokenizer.templates)
    if form is None:
        raise unfit_model("tools: the chat template of this model has no form for tool calls; leave them out.", "tools")
    grammar = tool_grammar(ask, engine, form)
    if grammar is not None:
        options["structured"] = grammar
    options["skip_special_tokens"] = False  # some models spell the tags of calls by special tokens
    if ask.tool_choice.kind == "none":
        return EngineCall(ask.prompt, options, Reply)
    schemas = tool_schemas(ask.tools)

    def make_reply(in_thought: bool) -> Reply:
        return Reply(in_thought, ToolCallParser(form, schemas, constrained=grammar is not None))

    return EngineCall(ask.prompt, options, make_reply)


def tool_grammar(ask: Ask, engine: Engine, form: CallForm) -> Structured | None:
    """Return the grammar that makes the answer's calls what the request asks for; None where any text may come.

    A free choice among tools needs a grammar only where the tools are strict, or a single call is allowed. Raises
    ApiError where the answer shall have a form of its own beside calls.
    """
    kind, name = ask.tool_choice
    if "structured" in ask.settings:
        if kind == "none":
            return None
        words = "response_format: expected free text beside tools; set tool_choice to none, or leave out one of them."
        raise unsupported("response_format", words)
    if kind == "auto" and ask.parallel_calls and not ask.strict_tools:
        return None
    choice: GrammarChoice = "required" if kind == "named" else kind
    tokenizer = engine.llm.tokenizer
    return call_grammar(tokenizer, form, ask.tools, choice, only=name, parallel=ask.parallel_calls)

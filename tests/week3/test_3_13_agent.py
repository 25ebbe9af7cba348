"""3.13 An agent: a tool's schema, the calls of a reply, the loop and its ends, and the guard."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any, Literal

from tiny_llm.apps.agent.nouns import AgentCall, AgentLimits, Approval, ApprovalRules, ReplyEnd
from tiny_llm.apps.agent.session import AgentSession
from tiny_llm.apps.agent.tools import AgentTool
from tiny_llm.course.check import Checker, task
from tiny_llm.decode.reply import CallArguments, CallBegin, Content, Reasoning


def weather(city: str, days: int = 3, unit: Literal["C", "F"] = "C") -> str:
    """Tell the weather
    of a city.

    The model need not know that it comes from a table.
    """
    return city


def bare(items: list[int]) -> None:
    pass


def several(*numbers: int) -> None:
    """Add."""


def untyped(x) -> None:  # type: ignore[no-untyped-def]
    """Add."""


def of_schema(m: Any, function: Any) -> Any:
    """What a schema says, without pydantic's titles; or that the function is refused."""
    try:
        made = m.tool_schema(function)
    except ValueError:
        return "refused"
    properties = {name: {k: v for k, v in each.items() if k != "title"} for name, each in properties_of(made).items()}
    return [made["name"], made["description"], properties, made["parameters"].get("required", [])]


def properties_of(made: Any) -> Any:
    return made["parameters"].get("properties", {})


@task("w3.13.1")
def test_schemas_of_functions(check: Checker) -> None:
    want = [
        [
            "weather",
            "Tell the weather of a city.",
            {
                "city": {"type": "string"},
                "days": {"type": "integer", "default": 3},
                "unit": {"enum": ["C", "F"], "type": "string", "default": "C"},
            },
            ["city"],
        ],
        ["bare", "", {"items": {"type": "array", "items": {"type": "integer"}}}, ["items"]],
        "refused",
        "refused",
    ]
    check(
        lambda m: [of_schema(m, function) for function in (weather, bare, several, untyped)],
        want,
        what="schemas of weather, bare, several(*numbers) and untyped(x)",
    )


PARTS = [
    [Reasoning("A sum. "), Reasoning("Easy."), Content("Let me "), Content("see.")],
    [CallBegin(0, "a"), CallArguments(0, '{"x": '), CallArguments(0, "1}")],
    [CallBegin(0, "a"), CallBegin(1, "b"), CallArguments(1, '{"y"'), CallArguments(0, "{}"), CallArguments(1, ": 2}")],
    [CallBegin(0, "a"), CallArguments(0, '{"x"'), CallBegin(1, "b"), CallArguments(1, "{}")],
    [CallBegin(0, "a"), CallArguments(0, "[1]"), CallBegin(1, "b"), CallArguments(1, "null")],
    [CallBegin(0, "a")],
    [CallBegin(0, "a"), CallArguments(0, "[" * 100_000)],
]


def told(reply: Any) -> list[Any]:
    return [reply.reasoning, reply.content, [[call.id, call.name, call.arguments] for call in reply.calls]]


@task("w3.13.2")
def test_replies_of_parts(check: Checker) -> None:
    want = [
        ["A sum. Easy.", "Let me see.", []],
        ["", "", [["call_7", "a", {"x": 1}]]],
        ["", "", [["call_7", "a", {}], ["call_8", "b", {"y": 2}]]],
        ["", "", [["call_7", "a", None], ["call_8", "b", {}]]],
        ["", "", [["call_7", "a", None], ["call_8", "b", None]]],
        ["", "", [["call_7", "a", None]]],
        ["", "", [["call_7", "a", None]]],
    ]
    check(lambda m: [told(m.joined_reply(parts, 7)) for parts in PARTS], want, what="replies, ids from call_7 on")


class Script:
    """Gives its replies in order, each a text, numbers to double, or both; "cancel" cancels the run."""

    context = 10_000

    def __init__(self, *replies: tuple[str, list[int]]):
        self.replies = list(replies)
        self.agent: Any = None

    def count(self, messages: Any, tools: Any) -> int:
        return 0

    async def reply(self, messages: Any, tools: Any, most: int) -> AsyncGenerator[Any, None]:
        text, numbers = self.replies.pop(0)  # a run that goes on too long finds no reply
        if text == "cancel":
            self.agent.cancel()
        if text:
            yield Content(text)
        for index, number in enumerate(numbers):
            yield CallBegin(index, "double")
            yield CallArguments(index, json.dumps({"x": number}))
        yield ReplyEnd("stop", generated_tokens=10)


DOUBLE = AgentTool(
    "double",
    "",
    {"type": "object", "properties": {"x": {"type": "integer"}}},
    lambda arguments: str(2 * arguments["x"]),
)


def ran(m: Any, *replies: tuple[str, list[int]], steps: int = 9, tokens: int = 1_000) -> list[str]:
    """What a run tells, in short."""
    model = Script(*replies)
    limits = AgentLimits(steps=steps, tokens=tokens)
    agent = m.Agent(model, [DOUBLE], AgentSession(), limits=limits)
    model.agent = agent

    async def collect() -> list[str]:
        found = []
        async for event in agent.run("Double."):
            found.append(event.kind)
            if event.kind in ("result", "end"):
                found[-1] += f" {event.data.get('text', event.data.get('reason'))}"
        return found

    events = asyncio.run(collect())
    roles = [message["role"] for message in agent.session.messages]
    return [*events, f"{roles.count('tool')} results shown"]


@task("w3.13.3")
def test_runs_of_a_script(check: Checker) -> None:
    call, last = ["assistant", "begin"], ["text", "assistant", "end answered"]
    want = [
        ["user", "text", "assistant", "end answered", "0 results shown"],
        ["user", *call, "result 2", *last, "1 results shown"],
        ["user", *call, "begin", "result 2", "result 4", *call, "result 6", *last, "3 results shown"],
        ["user", "text", *call, "result 2", *last, "1 results shown"],
        ["user", *call, "result 2", *last, "1 results shown"],
        ["user", *call, "result 2", *call, "result 4", "end steps", "2 results shown"],
        ["user", *call, "result 2", *call, "result 4", "end tokens", "2 results shown"],
        ["user", "text", "assistant", "end cancelled", "0 results shown"],
    ]

    def call_all(m: Any) -> list[list[str]]:
        one, two, three = [("", [number]) for number in (1, 2, 3)]
        return [
            ran(m, ("Hi.", [])),
            ran(m, one, ("It is 2.", [])),
            ran(m, ("", [1, 2]), three, ("Done.", [])),
            ran(m, ("I look.", [1]), ("It is 2.", [])),
            ran(m, one, ("It is 2.", []), steps=2),
            ran(m, one, two, three, steps=2),
            ran(m, one, two, three, tokens=20),
            ran(m, ("cancel", [1])),
        ]

    check(call_all, want, what="events of eight runs")


def asked(m: Any, rules: ApprovalRules) -> list[str]:
    """The approvals of a read and a write in notes/ and in secret/, each before and after text from outside."""
    found = []
    for name in ("read", "write"):
        tool = AgentTool(name, "", {}, lambda _: "", effects=name == "write")
        for path in ("notes/a.md", "secret/b.md"):
            call = AgentCall("call_1", name, {"path": path}, "")
            both = [m.approval_of(tool, call, rules, tainted) for tainted in (False, True)]
            found.append(" ".join(one.value if isinstance(one, Approval) else str(one) for one in both))
    return found


@task("w3.13.4")
def test_approvals(check: Checker) -> None:
    """Of a read in notes/ and in secret/, and of a write there; before text from outside, and after it."""
    secret = ("*:secret/*",)
    for rules, what, want in (
        (ApprovalRules(), "without rules", ["run run", "run run", "ask ask", "ask ask"]),
        (ApprovalRules(everything=True), "with --yes", ["run run", "run run", "run ask", "run ask"]),
        (
            ApprovalRules(allow=("write:notes/*",)),
            "writes in notes/ allowed",
            ["run run", "run run", "run ask", "ask ask"],
        ),
        (ApprovalRules(deny=secret), "secret/ denied", ["run run", "refuse refuse", "ask ask", "refuse refuse"]),
        (
            ApprovalRules(everything=True, deny=secret),
            "with --yes, secret/ denied",
            ["run run", "refuse refuse", "run ask", "refuse refuse"],
        ),
    ):
        check(lambda m, rules=rules: asked(m, rules), want, what=f"approvals {what}")

"""Tools that are made up: a schema with random names, and requests that fit it.

Families come from tables/tools_*.toml and, without end, from kinds and attributes: "get_invoice_total(invoice)". An
eighth of them is held out, so the skill to learn is reading the schema.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from tiny_llm.pocket.dialogue import Message, to_json
from tiny_llm.pocket.words import Words, held_out, read_table


@dataclass(frozen=True)
class Request:
    """What a user asks of a tool, the call that it needs, what the tool gives back and what to tell the user then."""

    question: str
    arguments: Message
    result: str
    answer: str


@dataclass(frozen=True)
class Tool:
    """One instance of a family: its schema, and requests that it can serve."""

    family: str
    schema: Message
    request: Callable[[Words], Request]

    @property
    def name(self) -> str:
        return str(self.schema["function"]["name"])

    @property
    def properties(self) -> dict[str, Message]:
        """The schemas of the parameters by name."""
        return dict(self.schema["function"]["parameters"]["properties"])


def say(result: Mapping[str, Any]) -> str:
    """The one way to report a result, whatever its keys: "The gate is B12 and the time is 12:30."."""
    parts = [f"the {key.replace('_', ' ')} is {value}" for key, value in result.items()]
    text = ", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else parts[0]
    return text[0].upper() + text[1:] + "."


def requests(
    parameters: list[str], kinds: Sequence[str], asks: Sequence[str], results: Mapping[str, str]
) -> Callable[[Words], Request]:
    """Requests in one of the phrasings, with values of the given kinds."""

    def request(words: Words) -> Request:
        values = [words.value(kind) for kind in kinds]
        result = {key: words.value(kind) for key, kind in results.items()}
        question = words.opened(words.choice(asks).format(*values))
        return Request(question, dict(zip(parameters, values, strict=True)), to_json(result), say(result))

    return request


def schema(name: str, about: str, properties: Mapping[str, Message], required: list[str] | None = None) -> Message:
    """A function in the form of the OpenAI API."""
    parameters: Message = {"type": "object", "properties": dict(properties)}
    parameters["required"] = list(properties) if required is None else required
    return {"type": "function", "function": {"name": name, "description": about, "parameters": parameters}}


def parameter(words: Words, name: str, kind: str) -> Message:
    """The schema of one parameter, with a description now and then."""
    about: Message = {"type": "string"}
    if kind == "decimal":
        about = {"type": "number"}
    elif kind == "number" or kind.startswith("int:"):
        about = {"type": words.choice(("integer", "integer", "number"))}
    elif kind.startswith("of:") and words.chance(0.5):
        about = {"type": "string", "enum": kind[3:].split(",")}
    if words.chance(0.2):
        about["description"] = words.choice(("The {}.", "{} to use.", "Which {}.")).format(name.replace("_", " "))
    return about


@cache
def families(split: str) -> tuple[dict[str, Any], ...]:
    """The listed families that this split may use."""
    listed = read_table("tables/tools_lookup.toml")["family"] + read_table("tables/tools_action.toml")["family"]
    return tuple(family for family in listed if held_out(family["id"]) == (split == "test"))


@cache
def attributes() -> dict[str, str]:
    """Attributes that anything can have, and the kind of their value."""
    values = read_table("tables/attributes.toml")["values"]
    return {name: kind for kind, names in values.items() for name in names.split()}


@cache
def kinds_of_things(table: str = "kinds") -> tuple[str, ...]:
    return tuple(read_table("tables/attributes.toml")[table].split())


def listed_tool(words: Words, family: Mapping[str, Any]) -> Tool:
    """An instance of a family from the tables."""
    names = [words.choice(choices.split("|")) for choices in family["parameters"]]
    kinds = tuple(family["parameters"].values())
    properties = {name: parameter(words, name, kind) for name, kind in zip(names, kinds, strict=True)}
    made = schema(words.phrasing(family["names"]), words.phrasing(family["about"]), properties)
    asks = words.phrasings(family["asks"], family.get("more_asks", ()))
    return Tool(family["id"], made, requests(names, kinds, asks, family["result"]))


ATTRIBUTE_NAMES = ["get_{k}_{a}", "{k}_{a}", "find_{a}", "lookup_{k}_{a}", "{a}_of_{k}", "read_{a}", "fetch_{k}_{a}"]
ATTRIBUTE_ABOUT = [
    "The {a} of a {k}.",
    "Get the {a} of a {k}.",
    "Look up the {a}.",
    "Find the {a} of a {k}.",
    "Tell which {a} a {k} has.",
    "Read the {a} of one {k}.",
]
ATTRIBUTE_ASKS = (
    "What is the {a} of the {k} {{0}}?",
    "Get me the {a} of {{0}}.",
    "Find the {a} for the {k} {{0}}.",
    "I need the {a} of the {k} {{0}}.",
    "Tell me the {a} of {{0}}, please.",
    "Which {a} does the {k} {{0}} have?",
    "{{0}} is a {k}. What is its {a}?",
    "Do you know the {a} of {{0}}?",
    "Look up the {a} of the {k} {{0}}.",
    "Give me the {a} of the {k} {{0}}.",
    "Can you check the {a} of {{0}}?",
    "For the {k} {{0}}, what is the {a}?",
    "Show me the {a} of {{0}}.",
    "{k} {{0}}: which {a}?",
    "I would like the {a} of {{0}}.",
    "What {a} has the {k} {{0}}?",
)
MORE_ATTRIBUTE_ASKS = (  # in training only
    "Tell me which {a} {{0}} has.",
    "I want to know the {a} of the {k} {{0}}.",
    "The {a} of {{0}}, please.",
    "About the {k} {{0}}: what is the {a}?",
    "Could you find the {a} of the {k} {{0}}?",
    "Which {a} belongs to {{0}}?",
    "Name the {a} of the {k} {{0}}.",
    "Please look for the {a} of {{0}}.",
    "What {a} was given to the {k} {{0}}?",
    "We have a {k} named {{0}}. What is its {a}?",
    "{a} of {{0}}?",
    "Read me the {a} of the {k} {{0}}.",
)


def attribute_tool(words: Words, kind: str | None = None) -> Tool:
    """A tool that looks up one attribute of one kind of thing; both held-out words in the evaluation."""
    kind = kind or words.or_unknown(words.from_split(kinds_of_things()), 0.25)
    known = words.from_split(list(attributes()))
    attribute = words.or_unknown(known, 0.35)
    label = words.choice((kind, "name", f"{kind}_name", f"{kind}_id", "item", "key"))
    value = words.choice(("name", "name", "code")) if not label.endswith("_id") else "code"
    fill = {"k": kind, "a": attribute}
    made = schema(
        words.choice(ATTRIBUTE_NAMES).format(**fill),
        words.choice(ATTRIBUTE_ABOUT).format(**fill),
        {label: parameter(words, label, value)},
    )
    asks = [ask.format(**fill) for ask in words.phrasings(ATTRIBUTE_ASKS, MORE_ATTRIBUTE_ASKS)]
    results = {attribute: attributes()[known]}
    return Tool(f"attribute:{attribute}", made, requests([label], [value], asks, results))


SETTER_NAMES = ["set_{k}_{a}", "change_{a}", "update_{k}_{a}", "put_{a}", "write_{k}_{a}", "{k}_set_{a}"]
SETTER_ABOUT = [
    "Set the {a} of a {k}.",
    "Change the {a} of a {k}.",
    "Give a {k} a new {a}.",
    "Write the {a} of one {k}.",
    "Update the {a}.",
]
SETTER_ASKS = (
    "Set the {a} of the {k} {{0}} to {{1}}.",
    "Change the {a} of {{0}} to {{1}}.",
    "The {k} {{0}} gets the {a} {{1}}.",
    "Make {{1}} the {a} of {{0}}.",
    "Please put the {a} of the {k} {{0}} at {{1}}.",
    "{{1}} is the new {a} of the {k} {{0}}. Change it.",
    "Give the {k} {{0}} the {a} {{1}}.",
    "Update the {a} of {{0}}: {{1}}.",
    "For {{0}}, write {{1}} as {a}.",
    "I want {{1}} as {a} of the {k} {{0}}.",
    "New {a} for {{0}}: {{1}}.",
    "Let the {a} of the {k} {{0}} be {{1}}.",
    "Can you change the {a} of {{0}} to {{1}}?",
    "{k} {{0}}, {a} {{1}}, please.",
)


def setter_tool(words: Words, kind: str | None = None) -> Tool:
    """A tool that changes one attribute of one kind of thing: two parameters, the second of any type."""
    kind = kind or words.or_unknown(words.from_split(kinds_of_things()), 0.25)
    known = words.from_split(list(attributes()))
    attribute = words.or_unknown(known, 0.35)
    fill = {"k": kind, "a": attribute}
    labels = [
        words.choice((kind, "name", f"{kind}_name", "item")),
        words.choice((attribute, f"new_{attribute}", "value", "to")),
    ]
    kinds = ["name", attributes()[known]]
    properties = {label: parameter(words, label, value) for label, value in zip(labels, kinds, strict=True)}
    made = schema(words.choice(SETTER_NAMES).format(**fill), words.choice(SETTER_ABOUT).format(**fill), properties)
    asks = [ask.format(**fill) for ask in words.phrasings(SETTER_ASKS)]
    return Tool(f"set:{attribute}", made, requests(labels, kinds, asks, {"status": "of:done,ok,saved,changed"}))


def any_tool(words: Words) -> Tool:
    """A listed family or a composed one."""
    if words.chance(0.5):
        return listed_tool(words, words.choice(families(words.split)))
    return attribute_tool(words) if words.chance(0.7) else setter_tool(words)


def toolbox(words: Words, count: int) -> list[Tool]:
    """Tools with different names; sometimes two that nearly are the same."""
    found: dict[str, Tool] = {}
    near = words.or_unknown(words.from_split(kinds_of_things()), 0.25) if words.chance(0.3) else None
    while len(found) < count:
        tool = attribute_tool(words, near) if near and words.chance(0.7) else any_tool(words)
        if all(tool.family != other.family for other in found.values()):
            found.setdefault(tool.name, tool)
    return list(found.values())

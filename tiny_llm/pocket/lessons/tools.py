"""Tools that are made up: a schema with random names, and requests that fit it.

Families come from tables/tools_*.toml and, without end, from `toolbox`: "get_invoice_total(invoice)". An eighth of them
is held out, so the skill to learn is reading the schema.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from tiny_llm.pocket.lessons.dialogue import JsonObject, to_json
from tiny_llm.pocket.lessons.words import LISTS, Words, held_out, read_table


@dataclass(frozen=True)
class ToolRequest:
    """What a user asks of a tool, the call that it needs, what the tool gives back and what to tell the user then."""

    question: str
    arguments: JsonObject
    result: str
    answer: str


@dataclass(frozen=True)
class Tool:
    """One instance of a family: its schema, and requests that it can serve.

    `thing` is the kind of thing that it is about, where it is composed; `like` holds the attributes that its questions
    may be taken for.
    """

    family: str
    schema: JsonObject
    request: Callable[[Words], ToolRequest]
    thing: str = ""
    like: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        return str(self.schema["function"]["name"])

    @property
    def properties(self) -> dict[str, JsonObject]:
        """The schemas of the parameters by name."""
        return dict(self.schema["function"]["parameters"]["properties"])


def say(result: Mapping[str, Any]) -> str:
    """The one way to report a result, whatever its keys: "The gate is B12 and the time is 12:30."."""
    parts = [f"the {key.replace('_', ' ')} is {value}" for key, value in result.items()]
    text = ", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else parts[0]
    return text[0].upper() + text[1:] + "."


def requests(
    parameters: list[str], kinds: Sequence[str], asks: Sequence[str], results: Mapping[str, str]
) -> Callable[[Words], ToolRequest]:
    """Requests in one of the phrasings, with values of the given kinds."""

    def request(words: Words) -> ToolRequest:
        values = [words.value(kind) for kind in kinds]
        result = {key: words.value(kind) for key, kind in results.items()}
        question = words.opened(words.choice(asks).format(*values))
        return ToolRequest(question, dict(zip(parameters, values, strict=True)), to_json(result), say(result))

    return request


def schema(
    name: str, about: str, properties: Mapping[str, JsonObject], required: list[str] | None = None
) -> JsonObject:
    """A function in the form of the OpenAI API."""
    parameters: JsonObject = {"type": "object", "properties": dict(properties)}
    parameters["required"] = list(properties) if required is None else required
    return {"type": "function", "function": {"name": name, "description": about, "parameters": parameters}}


def parameter(words: Words, name: str, kind: str) -> JsonObject:
    """The schema of one parameter, with a description now and then."""
    about: JsonObject = {"type": "string"}
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


@dataclass(frozen=True)
class OtherWords:
    """Questions for an attribute without its name, {e} the entity; `like` holds all attributes that they may mean."""

    asks: Sequence[str]
    like: frozenset[str]


@cache
def other_words() -> dict[str, OtherWords]:
    """The questions of tables/other_words.toml by attribute."""
    found = {}
    for row in read_table("tables/other_words.toml")["attribute"]:
        names = row["names"].split()
        words = OtherWords(row["asks"], frozenset([*names, *row["like"].split()]))
        found.update(dict.fromkeys(names, words))
    return found


def in_other_words(words: Words, attribute: str, share: float) -> OtherWords | None:
    """Questions without the attribute's name, this often; in training only."""
    if words.split == "test" or not words.chance(share):
        return None
    return other_words().get(attribute)


@cache
def kinds_of_things(table: str = "kinds") -> tuple[str, ...]:
    return tuple(read_table("tables/attributes.toml")[table].split())


@cache
def schema_words() -> frozenset[str]:
    """The words of three letters and more in names of tools, parameters and results, of training and evaluation."""
    listed = [*families("train"), *families("test")]
    names = [name for family in listed for name in (*family["names"], *family["parameters"], *family["result"])]
    known = (*attributes(), *kinds_of_things(), *kinds_of_things("engines"), *LISTS["fields"])
    return frozenset(word for name in (*names, *known) for word in re.split(r"[_|]", name) if len(word) > 2)


def listed_tool(words: Words, family: Mapping[str, Any]) -> Tool:
    """An instance of a family from the tables."""
    names = [words.choice(choices.split("|")) for choices in family["parameters"]]
    kinds = tuple(family["parameters"].values())
    properties = {name: parameter(words, name, kind) for name, kind in zip(names, kinds, strict=True)}
    made = schema(words.phrasing(family["names"]), words.phrasing(family["about"]), properties)
    asks = words.phrasings(family["asks"], family.get("more_asks", ()))
    return Tool(family["id"], made, requests(names, kinds, asks, family["result"]))

"""Tools that are composed: an attribute of a kind of thing to look up or to change, something to do with a thing."""

from collections.abc import Mapping

from tiny_llm.pocket.lessons.dialogue import to_json
from tiny_llm.pocket.lessons.tools import (
    Tool,
    ToolRequest,
    attributes,
    families,
    in_other_words,
    kinds_of_things,
    listed_tool,
    parameter,
    requests,
    say,
    schema,
)
from tiny_llm.pocket.lessons.words import Words

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


def attribute_asks(words: Words, kind: str, attribute: str) -> tuple[list[str], frozenset[str]]:
    """The questions for an attribute, by its name or in other words, and the attributes that they may mean."""
    other = in_other_words(words, attribute, 0.3)
    if other:
        entity = words.choice(("{0}", f"the {kind} {{0}}"))
        return [ask.format(e=entity) for ask in other.asks], other.like
    templates = [words.blurred(ask) for ask in words.phrasings(ATTRIBUTE_ASKS, MORE_ATTRIBUTE_ASKS)]
    asks = [template.format(k=kind, a=attribute) for template in templates]
    return asks, frozenset([attribute])


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
    if words.split == "train" and words.chance(0.08):
        made["function"]["name"] = words.any_word()  # only the description tells
    asks, like = attribute_asks(words, kind, attribute)
    results = {attribute: attributes()[known]}
    return Tool(f"attribute:{attribute}", made, requests([label], [value], asks, results), kind, like)


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
MORE_SETTER_ASKS = (
    "The {a} of {{0}} is now {{1}}.",
    "From now on {{0}} has the {a} {{1}}.",
    "Write down {{1}} for the {a} of the {k} {{0}}.",
    "{{0}} needs the {a} {{1}}.",
    "Fix the {a} of the {k} {{0}} at {{1}}.",
    "Move the {a} of {{0}} to {{1}}.",
    "Take {{1}} as {a} of {{0}}.",
    "Put {{1}} down as the {a} of the {k} {{0}}.",
    "Keep the {a} of {{0}} at {{1}}.",
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
    asks = [words.blurred(ask).format(**fill) for ask in words.phrasings(SETTER_ASKS, MORE_SETTER_ASKS)]
    request = requests(labels, kinds, asks, {"status": "of:done,ok,saved,changed"})
    return Tool(f"set:{attribute}", made, request, kind)


ACTS = """make add start plan send book mark print pack cut wash open close move paint rent fix ship order sort clean
build stop check count draw keep lock test turn weigh"""
ACTION_NAMES = ["{v}_{n}", "{n}_{v}", "{v}", "do_{v}", "{v}_the_{n}", "new_{n}"]
ACTION_ABOUT = ["{v} a {n}.", "{v} one {n}.", "Asks to {v} a {n}.", "{n}: {v}.", "A tool to {v} the {n}."]
ACTION_HEADS = (
    "{v} the {n}",
    "{v} a {n}",
    "please {v} the {n}",
    "I want to {v} a {n}",
    "can you {v} this {n}",
    "new {n}",
    "{n}",
    "{v}",
    "let us {v} the {n}",
    "it is time to {v} the {n}",
    "a {n} to {v}",
)
ACTION_PARTS = (
    "{l} {x}",
    "{l}: {x}",
    "with the {l} {x}",
    "{x} as {l}",
    "the {l} is {x}",
    "{x} is the {l}",
    "{l} = {x}",
)
PARAMETER_KINDS = ("name", "code", "int:1:900", "date", "time", "decimal", "text")


def action_request(words: Words, act: str, thing: str, kinds: Mapping[str, str]) -> ToolRequest:
    """The values with their parameters' names, in any order, or without, where type or order tells them apart."""
    values = {label: words.value(kind) for label, kind in kinds.items()}
    part = words.choice((*ACTION_PARTS, "{x}", "{x}", "{x}"))
    texts = [kind for kind in kinds.values() if kind.partition(":")[0] not in ("of", "int", "decimal")]
    shuffled = words.sample(list(values), len(values)) if len(texts) < 2 or part != "{x}" else list(values)
    said = words.choice((", ", " and ", " ", ", then ")).join(part.format(l=key, x=values[key]) for key in shuffled)
    asked = words.choice(ACTION_HEADS).format(v=act, n=thing)
    both = (asked[0].upper() + asked[1:], said) if words.chance(0.7) else (said, asked)
    question = words.choice((" ", ": ", ", ")).join(both) + words.choice((".", "", "!"))
    key, kind = words.choice(("status", "number", words.any_word())), words.choice(("code", "number", "word"))
    result = {key: words.value(kind)}
    return ToolRequest(question, values, to_json(result), say(result))


def action_tool(words: Words) -> Tool:
    """A tool that does something with a thing, with parameters of different kinds: only its schema tells which."""
    act = words.or_unknown(words.choice(ACTS.split()), 0.3)
    thing = words.or_unknown(words.from_split(kinds_of_things()), 0.4)
    options = "of:" + ",".join(words.any_word() for _ in range(words.integer(2, 4)))
    chosen = words.sample([*PARAMETER_KINDS, options, options], words.integer(1, 3))
    names = (words.or_unknown(words.from_split(list(attributes())), 0.4) for _ in chosen)
    kinds = dict(zip(names, dict.fromkeys(chosen), strict=False))
    properties = {label: parameter(words, label, kind) for label, kind in kinds.items()}
    name, about = (words.choice(options).format(v=act, n=thing) for options in (ACTION_NAMES, ACTION_ABOUT))
    made = schema(name, about[0].upper() + about[1:], properties)
    return Tool(f"do:{act}_{thing}", made, lambda words: action_request(words, act, thing, kinds))


def any_tool(words: Words) -> Tool:
    """A listed family or a composed one; actions in training only."""
    if words.split == "train" and words.chance(0.25):
        return action_tool(words)
    if words.chance(0.5):
        return listed_tool(words, words.choice(families(words.split)))
    return attribute_tool(words) if words.chance(0.7) else setter_tool(words)


def toolbox(words: Words, count: int) -> list[Tool]:
    """Tools with different names; sometimes two that nearly are the same."""
    found: dict[str, Tool] = {}
    near = words.or_unknown(words.from_split(kinds_of_things()), 0.25) if words.chance(0.3) else None
    while len(found) < count:
        tool = attribute_tool(words, near) if near and words.chance(0.7) else any_tool(words)
        taken = [other for other in found.values() if tool.family == other.family or tool.like & other.like]
        if not taken:
            found.setdefault(tool.name, tool)
    return list(found.values())

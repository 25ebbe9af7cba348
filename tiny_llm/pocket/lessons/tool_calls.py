"""Lessons on tools: the right call, the answer from its result, a second call, an error, and no call when none fits."""

import re
from collections.abc import Callable

from tiny_llm.pocket.lessons.builtin import BUILTIN
from tiny_llm.pocket.lessons.dialogue import Dialogue, JsonObject, assistant, call, to_json, tool_result, user
from tiny_llm.pocket.lessons.faq import question_and_answer
from tiny_llm.pocket.lessons.toolbox import any_tool, attribute_tool, setter_tool, toolbox
from tiny_llm.pocket.lessons.tools import Tool, ToolRequest
from tiny_llm.pocket.lessons.words import Words

NO_TOOL = "None of my tools can do that."
SYSTEMS = (
    "You are a helpful assistant.",
    "You are a helpful assistant with tools.",
    "Answer briefly.",
    "Use the tools when they help.",
    "You are Pocket, a small assistant.",
)
NEAR = (  # families that may serve each other's wishes
    {"weather", "forecast"},
    {"clock", "city_time"},
    {"calculator", "python", "convert_units", "exchange"},
    {"stock", "attribute:price", "attribute:cost"},
    {"warehouse", "attribute:count"},
    {"write_file", "create_file"},
    {"address", "attribute:address", "attribute:location", "attribute:home"},
)
CORRECTIONS = ("unknown {}: {}. Did you mean {}?", "no {} named {}. Use {}.", "{} {} not found, try {}")
MORE_CORRECTIONS = (  # in training only
    "there is no {} {}, but there is {}",
    "{} {} does not exist. The nearest is {}.",
    "{}: {} is wrong, {} is right",
    "invalid {} {}; similar: {}",
    "{} {} was renamed to {}",
)
AGAIN = (
    "And {0}?",
    "And for {0}?",
    "What about {0}?",
    "The same for {0}, please.",
    "Now {0}.",
    "And with {0}?",
    "{0}?",
)
ERRORS = ("not found", "no such entry", "permission denied", "service unavailable", "invalid argument", "timeout")
BUSY = ("busy, try again", "temporary failure, retry", "timeout, please try again", "rate limit, try once more")


def exchange(tool: Tool, request: ToolRequest) -> list[JsonObject]:
    return [call(tool.name, request.arguments), tool_result(request.result)]


def single(words: Words, tools: list[Tool]) -> list[JsonObject]:
    tool = words.choice(tools)
    request = tool.request(words)
    return [user(request.question), *exchange(tool, request), assistant(request.answer)]


def second_call(words: Words, tools: list[Tool]) -> list[JsonObject]:
    """Two wishes in one turn: both calls, one after the other, then both answers."""
    first, second = words.choice(tools), words.choice(tools)
    one, two = first.request(words), second.request(words)
    question = one.question + words.choice((" ", " And then: ", " Also: ", "\n")) + two.question
    answer = assistant(f"{one.answer} {two.answer}")
    return [user(question), *exchange(first, one), *exchange(second, two), answer]


def failure(words: Words, tools: list[Tool]) -> list[JsonObject]:
    """The tool reports an error that can't be mended: say so."""
    tool = words.choice(tools)
    request = tool.request(words)
    error = words.choice(ERRORS)
    values = [str(value) for value in request.arguments.values()]
    if values and words.chance(0.5):
        error += f": {words.choice(values)[:40]}"
    shown = to_json({"error": error}) if words.chance(0.7) else f"Error: {error}"
    talk = [user(request.question), call(tool.name, request.arguments), tool_result(shown)]
    return [*talk, assistant(f"The tool failed: {error}.")]


def retry(words: Words, tools: list[Tool]) -> list[JsonObject]:
    """A passing error: the same call again."""
    tool = words.choice(tools)
    request = tool.request(words)
    error = words.choice(BUSY)
    shown = to_json({"error": error}) if words.chance(0.7) else f"Error: {error}"
    talk = [user(request.question), call(tool.name, request.arguments), tool_result(shown)]
    return [*talk, *exchange(tool, request), assistant(request.answer)]


def correction(words: Words, tools: list[Tool]) -> list[JsonObject]:
    """The tool knows a better name: call again with that."""
    tool = words.choice(tools)
    request = tool.request(words)
    free = [key for key in request.arguments if "enum" not in tool.properties[key]]
    named = [key for key in free if re.fullmatch("[A-Z][a-z]{3,}", str(request.arguments[key]))]
    if not named:
        return failure(words, tools)
    key, better = words.choice(named), words.name()
    wrong = request.arguments[key]
    error = words.choice(CORRECTIONS if words.split == "test" else CORRECTIONS + MORE_CORRECTIONS)
    shown = to_json({"error": error.format(key, wrong, better)})
    mended = call(tool.name, {**request.arguments, key: better})
    talk = [user(request.question), call(tool.name, request.arguments), tool_result(shown)]
    return [*talk, mended, tool_result(request.result), assistant(request.answer)]


def chain(words: Words, tools: list[Tool]) -> list[JsonObject]:
    """A number that one tool gives goes into the calculator."""
    by_family = {tool.family: tool for tool in tools}
    lookup = words.choice(tools)
    request = lookup.request(words)
    found = re.fullmatch(r'\{"\w+": (\d+)\}', request.result)
    if "calculator" not in by_family or lookup.family == "calculator" or not found:
        return second_call(words, tools)
    counter, factor = by_family["calculator"], words.integer(2, 20)
    said, operation = words.phrasing((("Multiply it by", "*"), ("Add", "+"), ("Take it times", "*"), ("Subtract", "-")))
    value = int(found[1])
    result = {"*": value * factor, "+": value + factor, "-": value - factor}[operation]
    expression = f"{value} {operation} {factor}"
    sum_call = [call(counter.name, {next(iter(counter.properties)): expression}), tool_result(str(result))]
    question = user(f"{request.question} {said} {factor}.")
    return [question, *exchange(lookup, request), *sum_call, assistant(f"{expression} = {result}.")]


def alike(other: Tool, tools: list[Tool]) -> bool:
    """Whether a question for the other tool may be taken for one that these tools serve."""
    return any(other.like & tool.like for tool in tools)


def none_fits(words: Words, tools: list[Tool]) -> list[JsonObject]:
    """A wish that no tool here serves."""
    taken = {tool.family for tool in tools}
    make = [any_tool, any_tool, *(build for name, build in BUILTIN.items() if name not in taken)]
    other = words.choice(make)(words)
    near = {family for group in NEAR if other.family in group for family in group}
    searches = "search" in taken or other.family == "search"
    served = taken & {other.family, *near}
    if searches or served or alike(other, tools):
        return single(words, tools)
    return [user(other.request(words).question), assistant(NO_TOOL)]


def nearly_fits(words: Words, tools: list[Tool]) -> list[JsonObject]:
    """A wish on a kind of thing that a tool here is about, for another attribute or another use."""
    near = [tool for tool in tools if tool.thing]
    if not near or "search" in {tool.family for tool in tools}:
        return none_fits(words, tools)
    make = words.choice((attribute_tool, attribute_tool, setter_tool))
    other = make(words, words.choice(near).thing)
    if alike(other, tools) or other.family in {tool.family for tool in tools}:
        return single(words, tools)
    return [user(other.request(words).question), assistant(NO_TOOL)]


def plain(words: Words, tools: list[Tool]) -> list[JsonObject]:
    """A question that needs no tool."""
    if "search" in {tool.family for tool in tools}:
        return single(words, tools)
    question, answer = question_and_answer(words)
    return [user(question), assistant(answer)]


def follow_up(words: Words, tools: list[Tool]) -> list[JsonObject]:
    """A second question after the first is answered."""
    return single(words, tools) + single(words, tools)


def again(words: Words, tools: list[Tool]) -> list[JsonObject]:
    """A second question that names only what is different: "And Brakor?"."""
    tool = words.choice(tools)
    first, second = tool.request(words), tool.request(words)
    short = len(second.arguments) == 1 and tool.family not in BUILTIN
    if not short or first.arguments == second.arguments:
        return follow_up(words, tools)
    (value,) = second.arguments.values()
    question = words.choice(AGAIN).format(value)
    asked = [user(first.question), *exchange(tool, first)]
    talk = [*asked, assistant(first.answer)]
    return [*talk, user(question), *exchange(tool, second), assistant(second.answer)]


Branch = Callable[[Words, list[Tool]], list[JsonObject]]
BRANCHES: dict[Branch, float] = {
    single: 0.5,
    second_call: 0.06,
    chain: 0.04,
    failure: 0.06,
    retry: 0.05,
    correction: 0.07,
    none_fits: 0.16,
    plain: 0.04,
    follow_up: 0.08,
}
TRAINED: dict[Branch, float] = {  # in training: more of what the evaluation shows to be hard
    single: 0.36,
    second_call: 0.06,
    chain: 0.04,
    failure: 0.04,
    retry: 0.04,
    correction: 0.10,
    none_fits: 0.10,
    nearly_fits: 0.09,
    plain: 0.03,
    follow_up: 0.14,
    again: 0.05,
}


def tool_box(words: Words) -> list[Tool]:
    """One to four tools; the agent's own are among them half of the time."""
    builtin = [BUILTIN[name](words) for name in words.sample(list(BUILTIN), words.choice((0, 0, 1, 1, 2, 3)))]
    made = toolbox(words, max(0 if builtin else 1, words.integer(1, 4) - len(builtin)))
    tools = {tool.name: tool for tool in [*builtin, *made]}
    box = list(tools.values())
    words.random.shuffle(box)
    return box


def tool_lesson(words: Words, branches: int) -> list[Dialogue]:
    """Conversations that share their tools."""
    box = tool_box(words)
    schemas = tuple(tool.schema for tool in box)
    system = words.choice(SYSTEMS) if words.chance(0.25) else ""
    ways = BRANCHES if words.split == "test" else TRAINED
    lesson = []
    for _ in range(branches):
        branch = words.random.choices(list(ways), list(ways.values()))[0]
        talk = branch(words, box)
        head = [{"role": "system", "content": system}] if system else []
        lesson.append(Dialogue(f"tool:{branch.__name__}", (*head, *talk), schemas))
    return lesson

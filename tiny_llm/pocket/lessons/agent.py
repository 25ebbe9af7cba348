"""Lessons with the agent's built-in tools: chains of calls, failures, and wishes that no tool serves."""

from collections.abc import Callable
from dataclasses import dataclass
from string import Formatter

from tiny_llm.config.prompts import builtin_tools
from tiny_llm.pocket.lessons.agent_chains import (
    LOOKUPS,
    Offer,
    ToolTalk,
    both,
    chain,
    change_and_read,
    find_and_edit,
    find_and_read,
    find_edit_read,
    follow_up,
    look_and_write,
    read_add_write,
    read_and_add,
    read_and_run,
    search_and_multiply,
    search_multiply_write,
    single,
)
from tiny_llm.pocket.lessons.agent_files import EDITED, NO_MATCHES, edit_call, file_path, file_text, read_wish
from tiny_llm.pocket.lessons.agent_tools import WISHES
from tiny_llm.pocket.lessons.dialogue import Dialogue, assistant, user
from tiny_llm.pocket.lessons.faq import faq_entries
from tiny_llm.pocket.lessons.tool_calls import NEAR, NO_TOOL, SYSTEMS
from tiny_llm.pocket.lessons.toolbox import any_tool, setter_tool, toolbox
from tiny_llm.pocket.lessons.tools import Tool, families, listed_tool
from tiny_llm.pocket.lessons.wishes import Wish
from tiny_llm.pocket.lessons.words import Words, read_table

MOST_TOOLS = 8
NOTHING = {"read_file": "The file is empty.", "run_python": "The code prints nothing."}  # told of an empty result
OTHER_FAMILY = {"search_documents": "search", "run_python": "python"}  # as builtin.py names these families
FILE_FAMILIES = {"read_file", "search_files", "edit_file", "write_file", "python", "create_file", "delete_file", "note"}


def failed(wish: Wish, message: str) -> Wish:
    """The wish's call with an error as its result."""
    return Wish(
        wish.question, wish.tool, wish.arguments, builtin_tools().failure(message), f"The tool failed: {message}."
    )


def failure(words: Words, offer: Offer) -> ToolTalk:
    """An error that the model can only report."""
    wish = WISHES[words.choice(offer.builtin)](words)
    told = []
    for text in builtin_tools().tools[wish.tool].failures:
        fields = {name for _, name, _, _ in Formatter().parse(text) if name}
        if fields <= wish.arguments.keys() and "not found" not in text:  # what is not found is searched for
            told.append(text.format(**wish.arguments))
    message = words.choice(told or ["timeout"])
    broken = failed(wish, message)
    return chain(broken.question, broken.answer, broken)


def empty(words: Words, offer: Offer) -> ToolTalk:
    """A call that works and gives nothing."""
    name = words.choice([tool for tool in offer.builtin if tool in NOTHING])
    wish = WISHES[name](words)
    nothing = Wish(wish.question, name, wish.arguments, builtin_tools().tools[name].empty, NOTHING[name])
    return chain(nothing.question, nothing.answer, nothing)


def missing_file(words: Words, offer: Offer) -> ToolTalk:
    """A path that is wrong: search for the file's name, then read it; say so where it is nowhere."""
    path = file_path(words)
    name = path.rpartition("/")[2]
    right = f"{words.any_word()}/{name}"
    wish = read_wish(words, path, file_text(words))
    message = f"file not found: {path}"
    broken = failed(wish, message)
    if "search_files" not in offer.builtin:
        return chain(broken.question, broken.answer, broken)
    if words.chance(0.25):
        searched = Wish("", "search_files", {"pattern": name}, NO_MATCHES, "")
        return chain(broken.question, broken.answer, broken, searched)
    searched = Wish("", "search_files", {"pattern": name}, right, "")
    second = read_wish(words, right, wish.result)
    return chain(broken.question, second.answer, broken, searched, second)


def missing_text(words: Words, offer: Offer) -> ToolTalk:
    """A text that is written otherwise in the file: read the file, then edit with its own words."""
    path = file_path(words)
    old, new = words.name(), words.name()
    wish = edit_call(words, "edit_replace", path, old.lower(), new)
    broken = failed(wish, f"text not found in {path}")
    if "read_file" not in offer.builtin:
        return chain(broken.question, broken.answer, broken)
    there = words.chance(0.7)
    text = f"{words.sentence()} {words.choice(('Ask', 'See', 'Call'))} {old if there else words.name()}."
    seen = Wish("", "read_file", {"path": path}, text, "")
    if not there:
        return chain(broken.question, broken.answer, broken, seen)
    mended = edit_call(words, "edit_replace", path, old, new)
    return chain(broken.question, EDITED.format(path=path), broken, seen, mended)


def other_tool(words: Words, offer: Offer) -> Tool:
    """A tool whose wishes the offer may not serve: with a search in it, no tool that looks something up."""
    if "search_documents" not in offer.builtin:
        return any_tool(words)
    listed = read_table("tables/tools_action.toml")["family"]
    actions = [family for family in listed if family in families(words.split)]
    if not actions or words.chance(0.4):
        return setter_tool(words)
    return listed_tool(words, words.choice(actions))


def none_fits(words: Words, offer: Offer) -> ToolTalk:
    """A wish that no tool in the offer serves: for a tool that is not there, or a built-in one that is not offered."""
    taken = {OTHER_FAMILY.get(name, name) for name in offer.builtin} | {tool.family for tool in offer.others}
    absent = [name for name in WISHES if name not in offer.builtin and name != "search_documents"]
    if absent and words.chance(0.4):
        name = words.choice(absent)
        family, question = OTHER_FAMILY.get(name, name), WISHES[name](words).question
    else:
        tool = other_tool(words, offer)
        family, question = tool.family, tool.request(words).question
    near = {other for group in NEAR if family in group for other in group}
    if family in FILE_FAMILIES:
        near |= FILE_FAMILIES
    if taken & {family, *near}:
        return single(words, offer)
    return [user(question), assistant(NO_TOOL)]


def plain(words: Words, offer: Offer) -> ToolTalk:
    """A question or a greeting that needs no tool."""
    known = [entry for entry in faq_entries() if not entry.topics or "search_documents" not in offer.builtin]
    entry = words.choice(known)
    return [user(entry.question(words)), assistant(entry.answer)]


@dataclass(frozen=True)
class Scenario:
    """A kind of conversation, its weight, and the built-in tools that it needs: all of `needs`, one of `any_of`."""

    make: Callable[[Words, Offer], ToolTalk]
    weight: float
    needs: frozenset[str] = frozenset()
    any_of: frozenset[str] = frozenset()

    def fits(self, offer: Offer) -> bool:
        offered = set(offer.builtin)
        return self.needs <= offered and (not self.any_of or bool(self.any_of & offered))


def scenario(make: Callable[[Words, Offer], ToolTalk], weight: float, needs: str = "", any_of: str = "") -> Scenario:
    return Scenario(make, weight, frozenset(needs.split()), frozenset(any_of.split()))


SCENARIOS = (
    scenario(single, 0.34),
    scenario(both, 0.05),
    scenario(follow_up, 0.10),
    scenario(none_fits, 0.12),
    scenario(plain, 0.05),
    scenario(look_and_write, 0.05, "write_file", " ".join(LOOKUPS)),
    scenario(read_and_add, 0.03, "read_file calculator"),
    scenario(read_add_write, 0.03, "read_file calculator write_file"),
    scenario(search_and_multiply, 0.03, "search_documents calculator"),
    scenario(search_multiply_write, 0.03, "search_documents calculator write_file"),
    scenario(find_and_read, 0.04, "search_files read_file"),
    scenario(find_and_edit, 0.04, "search_files edit_file"),
    scenario(find_edit_read, 0.03, "search_files edit_file read_file"),
    scenario(change_and_read, 0.03, "read_file", "edit_file write_file"),
    scenario(read_and_run, 0.03, "read_file run_python"),
    scenario(failure, 0.04),
    scenario(empty, 0.02, any_of=" ".join(NOTHING)),
    scenario(missing_file, 0.05, "read_file"),
    scenario(missing_text, 0.03, "edit_file"),
)


def agent_offer(words: Words) -> Offer:
    """Two to eight tools: often all built-in ones, else some, with others among them."""
    names = list(WISHES)
    if words.chance(0.35):
        return Offer(tuple(words.sample(names, len(names))), ())
    builtin = words.sample(names, words.integer(1, 7))
    fewest = 1 if len(builtin) < 2 else 0
    others = toolbox(words, words.integer(fewest, min(3, MOST_TOOLS - len(builtin))))
    return Offer(tuple(builtin), tuple(tool for tool in others if tool.name not in names))


def agent_lesson(words: Words, branches: int) -> list[Dialogue]:
    """Conversations that share their tools, offered in any order."""
    offer = agent_offer(words)
    schemas = [builtin_tools().tools[name].schema for name in offer.builtin]
    schemas += [tool.schema for tool in offer.others]
    offered = tuple(words.sample(schemas, len(schemas)))
    head: ToolTalk = []
    if words.chance(0.5):
        head = [{"role": "system", "content": builtin_tools().system}]
    elif words.chance(0.3):
        head = [{"role": "system", "content": words.choice(SYSTEMS)}]
    fitting = [each for each in SCENARIOS if each.fits(offer)]
    lesson = []
    for _ in range(branches):
        chosen = words.random.choices(fitting, [each.weight for each in fitting])[0]
        talk = chosen.make(words, offer)
        lesson.append(Dialogue(f"builtin:{chosen.make.__name__}", (*head, *talk), offered))
    return lesson

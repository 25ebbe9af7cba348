"""Lessons with the agent's built-in tools: single calls, chains of two and three, failures, and wishes none serves."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tiny_llm.config.prompts import builtin_tools
from tiny_llm.pocket.lessons.agent_tools import (
    EDITED,
    NO_MATCHES,
    TEXT_ENDINGS,
    WISHES,
    WROTE,
    Wish,
    asked,
    edit_call,
    file_path,
    file_text,
    python_task,
    quoted,
    read_wish,
    replacement,
    write_arguments,
)
from tiny_llm.pocket.lessons.dialogue import Dialogue, JsonObject, assistant, call, tool_result, user
from tiny_llm.pocket.lessons.faq import faq_entries
from tiny_llm.pocket.lessons.tool_calls import NEAR, NO_TOOL, SYSTEMS
from tiny_llm.pocket.lessons.toolbox import any_tool, setter_tool, toolbox
from tiny_llm.pocket.lessons.tools import Tool, families, listed_tool
from tiny_llm.pocket.lessons.words import Words, read_table

MOST_TOOLS = 8
OTHER_FAMILY = {"search_documents": "search", "run_python": "python"}  # as builtin.py names these families
LOOKUPS = ("calculator", "clock", "run_python", "search_documents")  # their result may be written to a file
FILE_FAMILIES = {"read_file", "search_files", "edit_file", "write_file", "python", "create_file", "delete_file", "note"}
Talk = list[JsonObject]


@dataclass(frozen=True)
class Box:
    """The tools of a lesson: names of built-in ones, and others beside them."""

    builtin: tuple[str, ...]
    others: tuple[Tool, ...]

    def wish(self, words: Words) -> Wish:
        """A wish for any of the tools."""
        if self.others and words.chance(0.15):
            tool = words.choice(self.others)
            request = tool.request(words)
            return Wish(request.question, tool.name, request.arguments, request.result, request.answer)
        return WISHES[words.choice(self.builtin)](words)


def steps(*wishes: Wish) -> Talk:
    """The calls of the wishes with their results."""
    talk: Talk = []
    for wish in wishes:
        talk += [call(wish.tool, wish.arguments), tool_result(wish.result)]
    return talk


def chain(question: str, answer: str, *wishes: Wish) -> Talk:
    return [user(question), *steps(*wishes), assistant(answer)]


def single(words: Words, box: Box) -> Talk:
    wish = box.wish(words)
    return chain(wish.question, wish.answer, wish)


def both(words: Words, box: Box) -> Talk:
    """Two wishes at once."""
    first, second = box.wish(words), box.wish(words)
    question = asked(words, "both", first=first.question, second=second.question)
    return chain(question, f"{first.answer} {second.answer}", first, second)


def follow_up(words: Words, box: Box) -> Talk:
    """A wish after one or two others are served."""
    talk = single(words, box)
    for _ in range(words.choice((1, 1, 2))):
        wish = box.wish(words)
        talk += chain(asked(words, "open_again", first=wish.question), wish.answer, wish)
    return talk


def written(words: Words, first: Wish) -> tuple[str, Wish]:
    """The question of a wish whose value is written to a file, and the wish to write it."""
    path = file_path(words)
    arguments, result = write_arguments(path, first.value)
    second = Wish("", "write_file", arguments, result, WROTE.format(path=path))
    return asked(words, "and_write", first=first.question, p=path), second


def with_value(words: Words, names: Sequence[str]) -> Wish:
    """A wish for one of the tools that has a value to go on with."""
    while True:
        wish = WISHES[words.choice(names)](words)
        if wish.value and "\n" not in wish.value:
            return wish


def look_and_write(words: Words, box: Box) -> Talk:
    first = with_value(words, [name for name in box.builtin if name in LOOKUPS])
    question, second = written(words, first)
    return chain(question, f"{first.answer} {second.answer}", first, second)


def sum_wish(expression: str) -> Wish:
    """The call that evaluates an expression of small numbers."""
    value = str(eval(expression))  # numbers, + and * of our own
    return Wish("", "calculator", {"expression": expression}, value, f"{expression} = {value}.", value)


def numbers_of_file(words: Words) -> tuple[Wish, Wish]:
    """A file of numbers, and their sum."""
    numbers = [words.integer(1, 999) for _ in range(words.integer(2, 4))]
    if words.chance(0.5):
        lines = [f"{words.word()}: {number}" for number in numbers]
        text = "\n".join(lines)
    else:
        text = words.choice((", ", "\n", " ")).join(map(str, numbers))
    path = file_path(words)
    question = asked(words, "add_numbers", p=path)
    first = Wish(question, "read_file", {"path": path}, text, "")
    return first, sum_wish(" + ".join(map(str, numbers)))


def read_and_add(words: Words, box: Box) -> Talk:
    first, second = numbers_of_file(words)
    return chain(first.question, second.answer, first, second)


def read_add_write(words: Words, box: Box) -> Talk:
    first, second = numbers_of_file(words)
    asking = Wish(first.question, "", {}, "", "", second.value)
    question, third = written(words, asking)
    return chain(question, f"{second.answer} {third.answer}", first, second, third)


def found_number(words: Words) -> tuple[str, Wish, Wish]:
    """A question on a number of the documents times another; the search and the sum."""
    while True:
        first = WISHES["search_documents"](words)
        if first.value.isdigit():
            break
    factor = words.integer(2, 20)
    question = asked(words, "and_multiply", first=first.question, n=factor)
    return question, first, sum_wish(f"{first.value} * {factor}")


def search_and_multiply(words: Words, box: Box) -> Talk:
    question, first, second = found_number(words)
    return chain(question, second.answer, first, second)


def search_multiply_write(words: Words, box: Box) -> Talk:
    asking, first, second = found_number(words)
    question, third = written(words, Wish(asking, "", {}, "", "", second.value))
    return chain(question, f"{second.answer} {third.answer}", first, second, third)


def not_found(question: str, pattern: str) -> Talk:
    """A search without a result, which ends the chain."""
    return chain(question, "Nothing was found.", Wish("", "search_files", {"pattern": pattern}, NO_MATCHES, ""))


def find_and_read(words: Words, box: Box) -> Talk:
    path = file_path(words)
    name = path.rpartition("/")[2]
    question = asked(words, "find_and_read", x=name)
    if words.chance(0.12):
        return not_found(question, name)
    second = read_wish(words, path, file_text(words))
    return chain(question, second.answer, Wish("", "search_files", {"pattern": name}, path, ""), second)


def found_and_edited(words: Words) -> tuple[str, Wish, Wish]:
    """A text to find and to change: the question, the search and the edit, whose value is the new text."""
    path = file_path(words, (*TEXT_ENDINGS, "py", "toml"))
    old, new = replacement(words)
    question = asked(words, "find_and_edit", o=quoted(words, old), n=quoted(words, new))
    place = f"{path}:{words.integer(1, 300)}: {old}"
    search = Wish("", "search_files", {"pattern": old}, place, "")
    return question, search, edit_call(words, "edit_replace", path, old, new)


def find_and_edit(words: Words, box: Box) -> Talk:
    question, first, second = found_and_edited(words)
    if words.chance(0.12):
        return not_found(question, str(first.arguments["pattern"]))
    return chain(question, second.answer, first, second)


def find_edit_read(words: Words, box: Box) -> Talk:
    wish, first, second = found_and_edited(words)
    question = asked(words, "and_read_again", first=wish)
    third = read_wish(words, str(second.arguments["path"]), second.value)
    return chain(question, f"{second.answer} {third.answer}", first, second, third)


def change_and_read(words: Words, box: Box) -> Talk:
    """A file that is edited or written, and read again."""
    first = WISHES[words.choice([name for name in box.builtin if name in ("edit_file", "write_file")])](words)
    text = str(first.arguments.get("new_string", first.value)) or words.sentence()
    third = read_wish(words, str(first.arguments["path"]), text)
    question = asked(words, "and_read_again", first=first.question)
    return chain(question, f"{first.answer} {third.answer}", first, third)


def read_and_run(words: Words, box: Box) -> Talk:
    _, code, printed = python_task(words)
    path = file_path(words, ("py",))
    first = Wish(asked(words, "read_and_run", p=path), "read_file", {"path": path}, code, "")
    second = Wish("", "run_python", {"code": code}, printed, f"The output is {printed}.")
    return chain(first.question, second.answer, first, second)


def failed(wish: Wish, message: str) -> Wish:
    """The wish's call with an error as its result."""
    return Wish(
        wish.question, wish.tool, wish.arguments, builtin_tools().failure(message), f"The tool failed: {message}."
    )


def failure(words: Words, box: Box) -> Talk:
    """An error that the model can only report."""
    wish = WISHES[words.choice(box.builtin)](words)
    told = []
    for text in builtin_tools().tools[wish.tool].failures:
        known = "{" not in text or ("{path}" in text and "path" in wish.arguments)
        if known and "not found" not in text:  # files and texts that are not found are searched for
            told.append(text.format(**wish.arguments))
    message = words.choice(told or ["timeout"])
    broken = failed(wish, message)
    return chain(broken.question, broken.answer, broken)


def missing_file(words: Words, box: Box) -> Talk:
    """A path that is wrong: search for the file's name, then read it; say so where it is nowhere."""
    path = file_path(words)
    name = path.rpartition("/")[2]
    right = f"{words.any_word()}/{name}"
    wish = read_wish(words, path, file_text(words))
    message = f"file not found: {path}"
    broken = failed(wish, message)
    if "search_files" not in box.builtin:
        return chain(broken.question, broken.answer, broken)
    if words.chance(0.25):
        searched = Wish("", "search_files", {"pattern": name}, NO_MATCHES, "")
        return chain(broken.question, broken.answer, broken, searched)
    searched = Wish("", "search_files", {"pattern": name}, right, "")
    second = read_wish(words, right, wish.result)
    return chain(broken.question, second.answer, broken, searched, second)


def missing_text(words: Words, box: Box) -> Talk:
    """A text that is written otherwise in the file: read the file, then edit with its own words."""
    path = file_path(words)
    old, new = words.name(), words.name()
    wish = edit_call(words, "edit_replace", path, old.lower(), new)
    broken = failed(wish, f"text not found in {path}")
    if "read_file" not in box.builtin:
        return chain(broken.question, broken.answer, broken)
    there = words.chance(0.7)
    text = f"{words.sentence()} {words.choice(('Ask', 'See', 'Call'))} {old if there else words.name()}."
    seen = Wish("", "read_file", {"path": path}, text, "")
    if not there:
        return chain(broken.question, broken.answer, broken, seen)
    mended = edit_call(words, "edit_replace", path, old, new)
    return chain(broken.question, EDITED.format(path=path), broken, seen, mended)


def other_tool(words: Words, box: Box) -> Tool:
    """A tool whose wishes the box may not serve: with a search in it, no tool that looks something up."""
    if "search_documents" not in box.builtin:
        return any_tool(words)
    listed = read_table("tables/tools_action.toml")["family"]
    actions = [family for family in listed if family in families(words.split)]
    if not actions or words.chance(0.4):
        return setter_tool(words)
    return listed_tool(words, words.choice(actions))


def none_fits(words: Words, box: Box) -> Talk:
    """A wish that no tool in the box serves: for a tool that is not there, or a built-in one that is not offered."""
    taken = {OTHER_FAMILY.get(name, name) for name in box.builtin} | {tool.family for tool in box.others}
    absent = [name for name in WISHES if name not in box.builtin and name != "search_documents"]
    if absent and words.chance(0.4):
        name = words.choice(absent)
        family, question = OTHER_FAMILY.get(name, name), WISHES[name](words).question
    else:
        tool = other_tool(words, box)
        family, question = tool.family, tool.request(words).question
    near = {other for group in NEAR if family in group for other in group}
    if family in FILE_FAMILIES:
        near |= FILE_FAMILIES
    if taken & {family, *near}:
        return single(words, box)
    return [user(question), assistant(NO_TOOL)]


def plain(words: Words, box: Box) -> Talk:
    """A question or a greeting that needs no tool."""
    known = [entry for entry in faq_entries() if not entry.topics or "search_documents" not in box.builtin]
    entry = words.choice(known)
    return [user(entry.question(words)), assistant(entry.answer)]


@dataclass(frozen=True)
class Scenario:
    """A kind of conversation, its weight, and the built-in tools that it needs: all of `needs`, one of `any_of`."""

    make: Callable[[Words, Box], Talk]
    weight: float
    needs: frozenset[str] = frozenset()
    any_of: frozenset[str] = frozenset()

    def fits(self, box: Box) -> bool:
        offered = set(box.builtin)
        return self.needs <= offered and (not self.any_of or bool(self.any_of & offered))


def scenario(make: Callable[[Words, Box], Talk], weight: float, needs: str = "", any_of: str = "") -> Scenario:
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
    scenario(missing_file, 0.05, "read_file"),
    scenario(missing_text, 0.03, "edit_file"),
)


def agent_box(words: Words) -> Box:
    """Two to eight tools: often all built-in ones, else some, with others among them."""
    names = list(WISHES)
    if words.chance(0.35):
        return Box(tuple(words.sample(names, len(names))), ())
    builtin = words.sample(names, words.integer(1, 7))
    fewest = 1 if len(builtin) < 2 else 0
    others = toolbox(words, words.integer(fewest, min(3, MOST_TOOLS - len(builtin))))
    return Box(tuple(builtin), tuple(tool for tool in others if tool.name not in names))


def agent_lesson(words: Words, branches: int) -> list[Dialogue]:
    """Conversations that share their tools, offered in any order."""
    box = agent_box(words)
    schemas = [builtin_tools().tools[name].schema for name in box.builtin]
    schemas += [tool.schema for tool in box.others]
    offered = tuple(words.sample(schemas, len(schemas)))
    head: Talk = []
    if words.chance(0.5):
        head = [{"role": "system", "content": builtin_tools().system}]
    elif words.chance(0.3):
        head = [{"role": "system", "content": words.choice(SYSTEMS)}]
    fitting = [each for each in SCENARIOS if each.fits(box)]
    lesson = []
    for _ in range(branches):
        chosen = words.random.choices(fitting, [each.weight for each in fitting])[0]
        talk = chosen.make(words, box)
        lesson.append(Dialogue(f"builtin:{chosen.make.__name__}", (*head, *talk), offered))
    return lesson

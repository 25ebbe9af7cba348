"""Wishes for the built-in tools that read, search, edit and write files."""

from collections.abc import Callable

from tiny_llm.config.prompts import builtin_tools
from tiny_llm.pocket.lessons.builtin import MORE_READ_ASKS, READ_ASKS
from tiny_llm.pocket.lessons.dialogue import JsonObject
from tiny_llm.pocket.lessons.passages import facts
from tiny_llm.pocket.lessons.wishes import Wish, asked
from tiny_llm.pocket.lessons.words import Words

FOLDERS = ("src", "docs", "notes", "data", "tests", "config", "src/core", "docs/old")
TEXT_ENDINGS = ("txt", "md", "log", "csv")
SETTING_ENDINGS = ("toml", "ini", "cfg", "conf", "env")
NO_MATCHES = builtin_tools().tools["search_files"].empty
EDITED = "I changed {path}."
WROTE = "I wrote {path}."


def file_path(words: Words, endings: tuple[str, ...] = TEXT_ENDINGS) -> str:
    """A path such as notes/brakor_plan.md."""
    stem = words.any_word()
    if words.chance(0.3):
        stem += words.choice("_-") + words.word()
    folder = words.choice(FOLDERS) if words.chance(0.5) else ""
    if folder and words.chance(0.3):
        folder = words.any_word()
    name = f"{stem}.{words.choice(endings)}"
    return f"{folder}/{name}" if folder else name


def setting(words: Words) -> str:
    """A line of a configuration file."""
    value = words.choice((str(words.number()), words.any_word(), words.choice(("true", "false"))))
    return f"{words.any_word()}{words.choice((' = ', '=', ': '))}{value}"


def code_line(words: Words) -> str:
    """A short line of Python."""
    name, other = words.names(2)
    name, other = name.lower(), other.lower()
    return words.choice(
        (
            f"def {name}({other}):",
            f"{name} = {words.number()}",
            f"return {name} + {other}",
            f"import {name}",
            f"{name}({other})",
            f"class {name.capitalize()}:",
            f'{name} = "{other}"',
        )
    )


def file_text(words: Words) -> str:
    """The text of a small file."""
    kind = words.choice(("sentence", "facts", "words", "lines", "settings"))
    if kind == "sentence":
        return words.sentence()
    if kind == "facts":
        return facts(words, 1).passages[0]
    if kind == "words":
        return str(words.value("text"))
    make = words.sentence if kind == "lines" else lambda: setting(words)
    return "\n".join(make() for _ in range(words.integer(2, 3)))


def quoted(words: Words, text: str) -> str:
    """The text as a user points to it: in quotes or, where it is short and plain, without."""
    if text.replace("_", "").isalnum() and words.chance(0.5):
        return text
    marks = [mark for mark in ('"', "'", "`") if mark not in text]
    mark = words.choice(marks)
    return f"{mark}{text}{mark}"


def read_wish(words: Words, path: str, text: str) -> Wish:
    """A wish to see a file."""
    question = words.phrasing(READ_ASKS, MORE_READ_ASKS).format(path)
    return Wish(question, "read_file", {"path": path}, text, f"{path} says: {text}", text)


def read_file(words: Words) -> Wish:
    """A whole file, some of its lines, or a question that a file answers."""
    path, text = file_path(words), file_text(words)
    kind = words.choice(("whole", "whole", "lines", "about"))
    if kind == "whole":
        return read_wish(words, path, text)
    if kind == "lines":
        first = words.integer(1, 200)
        last = first + words.integer(1, 30)
        arguments: JsonObject = {"path": path, "start_line": first, "end_line": last}
        question = asked(words, "read_lines", p=path, a=first, b=last)
        return Wish(question, "read_file", arguments, text, f"{path} says: {text}", text)
    document = facts(words, words.integer(1, 2))
    about, _, found = words.choice(document.answered)
    question = asked(words, "read_about", p=path, q=about)
    text = "\n".join(document.passages)
    return Wish(question, "read_file", {"path": path}, text, f"{found.rstrip('.')}.", found)


def places(found: list[tuple[str, int]]) -> str:
    """Where a text was found: "It is in a.md, line 3, and b.md, line 7."."""
    listed = [f"{path}, line {line}" for path, line in found]
    return f"It is in {', and '.join(listed)}."


def find_name(words: Words) -> Wish:
    """A file by its name."""
    path = file_path(words)
    name = path.rpartition("/")[2]
    return Wish(asked(words, "find_name", x=name), "search_files", {"pattern": name}, path, f"It is {path}.", path)


def search_files(words: Words) -> Wish:
    """A text in files, in the files of a folder, or a file by its name."""
    kind = words.choice(("find_text", "find_text", "find_in_folder", "find_name"))
    if kind == "find_name":
        return find_name(words)
    text = words.choice((words.any_word(), words.name(), code_line(words), f"{words.word()} {words.word()}", "TODO"))
    folder = words.choice(FOLDERS) if words.chance(0.5) else words.any_word()
    question = asked(words, kind, x=quoted(words, text), f=folder)
    arguments = {"pattern": text}
    if kind == "find_in_folder":
        arguments["path"] = folder
    if words.chance(0.12):
        return Wish(question, "search_files", arguments, NO_MATCHES, "Nothing was found.")
    found = []
    for _ in range(words.integer(1, 2)):
        path = file_path(words, ("md", "py", "txt"))
        if kind == "find_in_folder":
            path = f"{folder}/{path.rpartition('/')[2]}"
        found.append((path, words.integer(1, 300)))
    lines = [f"{path}:{line}: {text} {words.word()}" for path, line in found]
    return Wish(question, "search_files", arguments, "\n".join(lines), places(found), found[0][0])


def edited_text(words: Words, kind: str) -> str:
    if kind == "word":
        return words.any_word()
    if kind == "number":
        return str(words.number())
    if kind == "words":
        return str(words.value("text"))
    return setting(words) if kind == "setting" else code_line(words)


def replacement(words: Words) -> tuple[str, str]:
    """An old and a new text, not the same: words, a few words, lines of settings or lines of code."""
    kind = words.choice(("word", "word", "number", "words", "setting", "code"))
    old = new = edited_text(words, kind)
    while new == old:
        new = edited_text(words, kind)
    return old, new


def edit_call(words: Words, kind: str, path: str, old: str, new: str) -> Wish:
    question = asked(words, kind, p=path, o=quoted(words, old), n=quoted(words, new))
    arguments = {"path": path, "old_string": old, "new_string": new}
    result = builtin_tools().tools["edit_file"].result.format(path=path)
    return Wish(question, "edit_file", arguments, result, EDITED.format(path=path), new)


def edit_file(words: Words) -> Wish:
    """A text to replace or to delete."""
    path = file_path(words, (*TEXT_ENDINGS, *SETTING_ENDINGS, "py"))
    old, new = replacement(words)
    if words.chance(0.2):
        return edit_call(words, "edit_delete", path, old, "")
    return edit_call(words, "edit_replace", path, old, new)


def write_arguments(path: str, content: str) -> tuple[JsonObject, str]:
    """The arguments and the result of a call that writes a file."""
    return {"path": path, "content": content}, builtin_tools().tools["write_file"].result.format(path=path)


def write_file(words: Words) -> Wish:
    """A line or two or three lines to write."""
    path = file_path(words, (*TEXT_ENDINGS, *SETTING_ENDINGS, "py"))
    make: tuple[Callable[[], str], ...] = (
        lambda: str(words.value("text")),
        lambda: words.sentence(),
        lambda: setting(words),
        lambda: code_line(words),
        lambda: f"Call {words.person()} at {words.time()}",
    )
    made = words.choice(make)
    if words.chance(0.25):
        content = "\n".join(made() for _ in range(words.integer(2, 3)))
        question = asked(words, "write_lines", p=path, t=content)
    else:
        content = made()
        question = asked(words, "write_text", p=path, t=content).replace('""', '"')
    arguments, result = write_arguments(path, content)
    return Wish(question, "write_file", arguments, result, WROTE.format(path=path), content)

"""The agent's own tools, with names and wording that vary: calculator, clock, document search, file reader, Python."""

from collections.abc import Callable

from tiny_llm.pocket.lessons.passages import ABSENT, cited, facts
from tiny_llm.pocket.lessons.tools import Tool, ToolRequest, parameter, schema
from tiny_llm.pocket.lessons.words import Words

OPERATIONS = {"+": ("plus", "+"), "-": ("minus", "-"), "*": ("times", "*"), "/": ("divided by", "/")}
SUM_ASKS = (
    "What is {}?",
    "Compute {}.",
    "How much is {}?",
    "Please calculate {}.",
    "{} = ?",
    "Can you work out {} for me?",
    "I need the result of {}.",
    "Calculate {}.",
    "Tell me {}.",
    "What do I get for {}?",
    "Work out {}.",
    "What does {} make?",
)
MORE_SUM_ASKS = (  # these and the other MORE_…: in training only
    "What is the value of {}?",
    "Give me {}.",
    "I want to know {}.",
    "Could you compute {}?",
    "{}, please.",
    "What comes out of {}?",
    "Help me with {}.",
    "Do the sum {}.",
)


def number_text(value: float) -> str:
    """At most four decimals, none where there is no need."""
    return str(int(value)) if value == int(value) else f"{value:.4f}".rstrip("0")


def sum_of(words: Words) -> tuple[str, str, str]:
    """(how a user writes it, as an expression, result)."""
    first, second, third = words.number(), max(1, words.number(3)), max(1, words.number(2))
    operation = words.choice("+-*/")
    said = words.choice(OPERATIONS[operation])
    values = {"+": first + second, "-": first - second, "*": first * second, "/": first / second}
    kind = words.choice(("plain", "plain", "plain", "percent", "three", "square"))
    if kind == "percent":
        return f"{third} percent of {first}", f"{first} * {third} / 100", number_text(first * third / 100)
    if kind == "three":
        text = f"({first} {operation} {second}) * {third}"
        return text, text, number_text(values[operation] * third)
    if kind == "square":
        return f"the square of {second}", f"{second} * {second}", number_text(second * second)
    return f"{first} {said} {second}", f"{first} {operation} {second}", number_text(values[operation])


def calculator(words: Words) -> Tool:
    name = words.choice(("calculator", "calculator", "calculate", "calc", "compute", "evaluate"))
    label = words.choice(("expression", "expression", "expr", "formula"))
    about = words.choice(
        ("Evaluate an arithmetic expression.", "Do arithmetic.", "Compute an expression.", "Calculator.")
    )

    def request(words: Words) -> ToolRequest:
        said, expression, result = sum_of(words)
        shown = f'{{"result": {result}}}' if words.chance(0.3) else result
        return ToolRequest(
            words.phrasing(SUM_ASKS, MORE_SUM_ASKS).format(said),
            {label: expression},
            shown,
            f"{expression} = {result}.",
        )

    return Tool("calculator", schema(name, about, {label: parameter(words, label, "word")}), request)


CLOCK_ASKS = (
    "What time is it?",
    "What is the time?",
    "Tell me the time.",
    "What is the date today?",
    "How late is it?",
    "Which day is it?",
    "Do you know the current time?",
    "What is today's date?",
    "What time is it now?",
    "Give me the date and the time.",
    "What day is today?",
    "Do you have the time?",
)
MORE_CLOCK_ASKS = (
    "Today's date, please.",
    "Which date is it?",
    "What is the date?",
    "Tell me today's date.",
    "I want to know the date of today.",
    "Is it late?",
    "The time, please.",
    "What does the clock say?",
    "What is the current date?",
    "Say the time.",
)


def clock(words: Words) -> Tool:
    name = words.choice(("clock", "clock", "current_time", "get_current_time", "now", "date_time"))
    about = words.choice(("The current date and time.", "What time it is.", "Tell the date and time.", "Clock."))

    def request(words: Words) -> ToolRequest:
        now = words.date() + words.choice((" ", ", ", "T")) + words.time()
        now += f":{words.integer(10, 59)}" if words.chance(0.3) else ""
        now = f"{words.value('day')} {now}" if words.chance(0.3) else now
        return ToolRequest(words.phrasing(CLOCK_ASKS, MORE_CLOCK_ASKS), {}, now, f"It is {now}.")

    return Tool("clock", schema(name, about, {}), request)


SEARCH_ASKS = (
    "{q}",
    "{q}",
    "Search the documents: {q}",
    "Look it up: {q}",
    "{q} Search for it.",
    "Find out: {q}",
    "What do the documents say? {q}",
    "Check the documents. {q}",
)
MORE_SEARCH_ASKS = (
    "{q} Look into the documents.",
    "I want to know this: {q}",
    "Answer from the documents: {q}",
    "{q} It is in the documents.",
    "Please search: {q}",
)


def search(words: Words) -> Tool:
    """Search is asked with the user's question and gives numbered passages back."""
    name = words.choice(("search_documents", "search_documents", "search", "search_docs", "find_passages", "lookup"))
    about = words.choice(
        ("Search the documents.", "Find passages in the documents.", "Search for passages on a question.")
    )
    label = words.choice(("query", "query", "question", "q", "text"))

    def request(words: Words) -> ToolRequest:
        document = facts(words, words.integer(1, 3))
        lines = "\n".join(f"[{number}] {passage}" for number, passage in enumerate(document.passages, 1))
        if words.chance(0.2) and document.unanswered:
            question, answer = words.choice(document.unanswered), ABSENT
        else:
            question, place, found = words.choice(document.answered)
            answer = cited(found, place)
        return ToolRequest(
            words.phrasing(SEARCH_ASKS, MORE_SEARCH_ASKS).format(q=question), {label: question}, lines, answer
        )

    return Tool("search", schema(name, about, {label: parameter(words, label, "word")}), request)


READ_ASKS = (
    "Read {}.",
    "What is in {}?",
    "Show me {}.",
    "Open the file {}.",
    "What does {} say?",
    "Print {}.",
    "Read the file {} to me.",
    "I want to see {}.",
    "Give me the text of {}.",
    "Display {}.",
    "What does the file {} contain?",
)
MORE_READ_ASKS = (
    "I want to read {}.",
    "Let me see the file {}.",
    "Please open {}.",
    "What stands in {}?",
    "I need the text of {}.",
    "Tell me what is in {}.",
    "Look into {}.",
    "Read out {}.",
)


def read_file(words: Words) -> Tool:
    name = words.choice(("read_file", "read_file", "open_file", "show_file", "cat", "load_file"))
    about = words.choice(("Read a text file.", "The text of a file.", "Open a file and read it.", "Show a file."))
    label = words.choice(("path", "path", "file", "filename", "file_path"))

    def request(words: Words) -> ToolRequest:
        path = words.choice(("", "", "notes/", "data/")) + words.value("file")
        texts: tuple[Callable[[], str], ...] = (
            words.sentence,
            lambda: facts(words, 1).passages[0],
            lambda: str(words.value("text")),
        )
        text = words.choice(texts)()
        return ToolRequest(
            words.phrasing(READ_ASKS, MORE_READ_ASKS).format(path), {label: path}, text, f"{path} says: {text}"
        )

    return Tool("read_file", schema(name, about, {label: parameter(words, label, "word")}), request)


def code_task(words: Words) -> tuple[str, str, str]:
    """(what the user wants, Python code, what it prints)."""
    said, expression, result = sum_of(words)
    word, low = words.word(), words.integer(0, 20)
    high = low + words.integer(2, 40)
    numbers = [words.number(2) for _ in range(words.integer(3, 5))]
    listed = ", ".join(map(str, numbers))
    return words.choice(
        (
            (f"compute {said}", f"print({expression})", result),
            (f"reverse the word {word}", f"print('{word}'[::-1])", word[::-1]),
            (f"count the letters of {word}", f"print(len('{word}'))", str(len(word))),
            (f"sort the numbers {listed}", f"print(sorted([{listed}]))", str(sorted(numbers))),
            (f"add the numbers {listed}", f"print(sum([{listed}]))", str(sum(numbers))),
            (
                f"add all numbers from {low} to {high}",
                f"print(sum(range({low}, {high + 1})))",
                str(sum(range(low, high + 1))),
            ),
            (f"find the largest of {listed}", f"print(max([{listed}]))", str(max(numbers))),
            (f"write {word} in capitals", f"print('{word}'.upper())", word.upper()),
        )
    )


PYTHON_ASKS = (
    "Use Python to {}.",
    "With Python, {}.",
    "Write a bit of Python to {}.",
    "Please {} with Python.",
    "Can you {} in Python?",
    "Run Python and {}.",
)
MORE_PYTHON_ASKS = (
    "In Python, please {}.",
    "Let Python {}.",
    "Use a Python program to {}.",
    "{} by Python.",
    "I want you to {} with Python.",
    "Write Python that can {}.",
)


def python(words: Words) -> Tool:
    name = words.choice(("python", "python", "run_python", "execute_python", "python_code", "run_code"))
    about = words.choice(("Run Python code and return what it prints.", "Run Python.", "Execute a Python program."))
    label = words.choice(("code", "code", "source", "program"))

    def request(words: Words) -> ToolRequest:
        task, code, printed = code_task(words)
        asks = words.phrasing(PYTHON_ASKS, MORE_PYTHON_ASKS).format(task)
        question = f"Run this in Python: {code}" if words.chance(0.2) else asks
        return ToolRequest(question, {label: code}, printed, f"The output is {printed}.")

    return Tool("python", schema(name, about, {label: parameter(words, label, "word")}), request)


BUILTIN: dict[str, Callable[[Words], Tool]] = {
    "calculator": calculator,
    "clock": clock,
    "search": search,
    "read_file": read_file,
    "python": python,
}

"""Reading the book's Markdown: pages, includes, headings, blocks, and the commands whose output they show."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tiny_llm.course import learner, markers, mistakes, stubs
from tiny_llm.course.catalog import Task, course, read_source

ROOT = Path(__file__).parents[2]
SRC = ROOT / "book" / "src"
INCLUDE = re.compile(r"\{\{#include ([^}:]+)(?::([\w-]+))?\}\}")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
CONSOLE = re.compile(r"(?:<!-- code: (.*?) -->\n+)?^```console\n(.*?)^```$", re.DOTALL | re.MULTILINE)
CHAPTERS = sorted(SRC.glob("week*/*.md"))


def pages() -> list[Path]:
    """The pages of the book: SUMMARY.md and what it links to."""
    summary = SRC / "SUMMARY.md"
    return [summary, *(SRC / name for name in re.findall(r"\]\((.+?\.md)\)", summary.read_text(encoding="utf-8")))]


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def anchored(text: str, name: str) -> list[str]:
    """The lines of an anchor. Raises ValueError unless it begins and ends once, in this order."""
    lines = text.splitlines()
    begins = [i for i, line in enumerate(lines) if re.search(rf"ANCHOR: {re.escape(name)}$", line)]
    ends = [i for i, line in enumerate(lines) if re.search(rf"ANCHOR_END: {re.escape(name)}$", line)]
    if len(begins) != 1 or len(ends) != 1 or begins[0] >= ends[0]:
        raise ValueError(f"anchor {name}: begins at lines {begins}, ends at {ends}")
    return lines[begins[0] + 1 : ends[0]]


def expanded(page: Path) -> str:
    """A page with its includes in place. Raises ValueError or OSError for one that does not resolve."""

    def put(match: re.Match[str]) -> str:
        text = text_of(page.parent / match[1])
        return "\n".join(anchored(text, match[2])) if match[2] else text.rstrip("\n")

    return INCLUDE.sub(put, text_of(page))


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))


def code_share(text: str) -> float:
    """The share of lines that are code or console in a page with its includes in place, blank lines left out.

    Pictures and formulas count for neither side.
    """
    text = re.sub(r"<figure>.*?</figure>|^```math\n.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    code = [line for _, body in FENCE.findall(text) for line in body.splitlines() if line.strip()]
    rest = [line for line in FENCE.sub("", text).splitlines() if line.strip()]
    return len(code) / (len(code) + len(rest))


TEMPLATE = {
    "minutes, memory and back ends": r"\A# .+\n\n\*About \d+ minutes, of which \d+ are coding\. Memory: [^*]+back end",
    "where you are": r"^## Where you are\n\n<figure>\n\{\{#include \.\./figures/map-",
    "what you will see at the end": r"\s[Aa]t\s+the\s+end\s+of\s+this\s+chapter\s",
    "three invariants": r"^## Before you begin\n(?:.*\n)+?1\. \*\*(?:.*\n)+?2\. \*\*(?:.*\n)+?3\. \*\*",
    "a prediction": r"^\*Predict:\*",
    "by hand": r"^## .*by hand",
    "tasks": r"^## Task",
    "the learner's file": r"`(?:code/week\d/)?(?:kernels/)?\w+\.(?:py|metal|h)`",
    "contract": r"^```(?:python|c)\n\{\{#include \.\./contracts/",
    "the test's command": r"`tiny-llm course test",
    "what you should see": r"\*What you should see",
    "folded hints": r"<details><summary>Hint",
    "run the chat": r"^## Run the chat on your code\n\n```sh\ntiny-llm (?:rag add .+ --code mine\ntiny-llm rag )?chat",
    "measure": r"^## Measure\n",
    "the measuring command": r"`python bench/week\d\.py --chapter",
    "the measured table": r"^\{\{#include \.\./measured/",
    "checkpoint": r"^## Checkpoint\n\n- ",
    "questions": r"^## Check your understanding\n\n\{\{#include \.\./quiz/",
    "in production": r"^## In production\n",
    "further reading": r"^\*\*Further reading\.\*\* .*(?:\n.+)*https?://",
}


def missing_parts(text: str) -> list[str]:
    """The parts of the chapter template that a page, its includes not expanded, lacks or has before their turn."""
    missing, at = [], 0
    for part, pattern in TEMPLATE.items():
        found = re.compile(pattern, re.MULTILINE).search(text, at)
        if found is None:
            missing.append(part)
        elif pattern.startswith("^## "):
            at = found.start()
    return missing


def words(page: Path) -> int:
    """What there is to read: prose, tables and questions; no code, formulas or pictures."""
    text = re.sub(r"<svg.*?</svg>", "", expanded(page), flags=re.DOTALL)
    text = re.sub(r"\$`[^`]*`\$", "x", FENCE.sub("", text))
    return len(re.findall(r"\w[\w'.,/-]*", re.sub(r"<[^>]*>", "", text)))


def slugs(page: Path) -> set[str]:
    """The fragments of a page's headings, as mdBook makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text_of(page)), re.MULTILINE)
    return {re.sub(r"[^\w-]", "", heading.strip().lower().replace(" ", "-")) for heading in headings}


@dataclass(frozen=True)
class Console:
    """A command that a page shows, its output, and the state of the learner's files that it is run in.

    `state` is "" (nothing solved), "solved: 1.1 1.2" or "wrong: TASK MISTAKE" (what comes before it solved).
    """

    page: str
    state: str
    command: str
    output: str


def consoles() -> Iterator[Console]:
    for page in pages():
        for state, body in CONSOLE.findall(text_of(page)):
            for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
                command, _, output = part.partition("\n")
                yield Console(page.name, state, command, output)


def checkout(folder: Path, state: str) -> Path:
    """A folder like a checkout, with the learner's files in a state."""
    for file, text in stubs.generate().items():
        (folder / "code" / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / "code" / file).write_text(text, encoding="utf-8")
    for name in ("tests", "book"):
        (folder / name).symlink_to(ROOT / name)
    kind, _, rest = state.partition(": ")
    if kind == "solved":
        for task in course().tasks:
            if task.chapter in rest.split():
                solve(folder, task, read_source(task.source))
    elif kind == "wrong":
        wrong, _, mistake = rest.partition(" ")
        for task in course().tasks[: course().tasks.index(course().task(wrong))]:
            solve(folder, task, read_source(task.source))
        solve(folder, course().task(wrong), mistakes.mistaken_source(course().task(wrong), mistake))
    elif state:
        raise ValueError(f"<!-- code: {state} -->: expected solved or wrong")
    return folder


def solve(folder: Path, task: Task, source: str) -> None:
    """Put a task's function out of a source into the learner's file."""
    path = folder / "code" / task.file
    new = learner.function_lines(markers.without_markers(source, task.source), task.symbol, path)
    path.write_text(learner.with_function(path.read_text(encoding="utf-8"), task.symbol, new, path), encoding="utf-8")


def run(command: str, folder: Path) -> str:
    """What a `tiny-llm …` command prints, on stdout and stderr."""
    program, *arguments = shlex.split(command)
    assert program == "tiny-llm", f"{command}: only tiny-llm is run"
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tiny_llm.cli import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=folder, capture_output=True, text=True)
    return done.stdout + done.stderr


def normalised(text: str) -> str:
    """Without trailing blanks, every number as 0."""
    lines = [line.rstrip() for line in re.sub(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?", "0", text).strip().splitlines()]
    return "\n".join(lines)

"""The book's sources: includes, links, pictures, sizes, and that what pages show is what the engine does."""

import doctest
import importlib.util
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest
import typer

from tests.book import pages
from tests.book.pages import CHAPTERS, FENCE, ROOT, SRC, text_of
from tiny_llm.cli import app
from tiny_llm.course import markers
from tiny_llm.course.catalog import course, read_source
from tiny_llm.model.hub import packaged

LEAST_CODE, MOST_CODE = 0.20, 0.35  # share of a chapter's lines; 0.25 to 0.30 is aimed at
by_name = pytest.mark.parametrize("page", pages.pages(), ids=lambda page: page.stem)
by_chapter = pytest.mark.parametrize("page", CHAPTERS, ids=lambda page: page.stem)


def chapter_of(page: Path) -> str:
    return ".".join(page.stem.split("-")[:2])


@by_name
def test_every_include_resolves(page: Path) -> None:
    assert "{{#" not in pages.expanded(page)


def test_every_anchor_is_used_and_whole() -> None:
    """One that begins twice, or ends never, would cut a listing wrong without a word from mdBook."""
    used = {(page.parent / path).resolve(): [] for page in pages.pages() for path, _ in includes(page)}
    for page in pages.pages():
        for path, anchor in includes(page):
            used[(page.parent / path).resolve()] += [anchor] if anchor else []
    for path in sorted(p for p in (ROOT / "tiny_llm").rglob("*") if p.suffix in (".py", ".metal", ".h", ".cpp")):
        text = text_of(path)
        names = re.findall(r"(?:#|//) ANCHOR: ([\w-]+)$", text, re.MULTILINE)
        assert sorted(names) == sorted(used.get(path, [])), path
        for name in names:
            assert pages.anchored(text, name)
        assert len(re.findall(r"(?:#|//) ANCHOR_END: ", text)) == len(names), path


def includes(page: Path) -> list[tuple[str, str]]:
    return pages.INCLUDE.findall(text_of(page))


def test_a_broken_anchor_is_found() -> None:
    whole = "# ANCHOR: a\nx\n# ANCHOR_END: a\n"
    assert pages.anchored(whole, "a") == ["x"]
    for text in ("x\n", whole + whole, "# ANCHOR: a\nx\n", "# ANCHOR_END: a\n# ANCHOR: a\n"):
        with pytest.raises(ValueError, match="anchor a"):
            pages.anchored(text, "a")


@by_name
def test_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", pages.without_code(pages.expanded(page))):
        if re.match(r"https?://", target):
            continue
        path, _, fragment = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked in pages.pages(), target
        assert not fragment or fragment in pages.slugs(linked), target


@by_name
def test_every_picture_says_what_it_shows(page: Path) -> None:
    text = pages.expanded(page)
    assert not re.search(r"!\[\s*\]\(", text)
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        name = re.search(r'aria-labelledby="([\w-]+)-title \1-desc"', svg)
        assert 'role="img"' in svg and name
        assert re.search(rf'<title id="{name[1]}-title">[^<]+</title>', svg)
        assert len(re.search(rf'<desc id="{name[1]}-desc">([^<]+)</desc>', svg)[1]) > 40
        assert "\n\n" not in svg, "a blank line would end the HTML block"
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))


@by_chapter
def test_a_chapter_has_its_size_and_parts(page: Path) -> None:
    assert 1000 <= pages.words(page) <= 1800
    assert text_of(page).count("<figure>") >= 2
    assert pages.missing_parts(text_of(page)) == []
    assert LEAST_CODE <= pages.code_share(pages.expanded(page)) <= MOST_CODE


def test_a_missing_part_is_found() -> None:
    text = text_of(CHAPTERS[0])
    for part, pattern in pages.TEMPLATE.items():
        assert part in pages.missing_parts(re.sub(pattern, "", text, flags=re.MULTILINE))
    early = text.replace("## In production\n", "").replace("## Measure\n", "## In production\n\n## Measure\n")
    assert pages.missing_parts(early) == ["in production"]


def test_too_little_code_and_too_much_are_found() -> None:
    """Lines of code and of prose are counted; blank lines, pictures and formulas are not."""
    code = "```python\nx = 1\n\ny = 2\n```\n"
    assert pages.code_share("a line\n\n" * 6 + code) == 0.25
    assert pages.code_share("a line\n" * 9 + code) < LEAST_CODE
    assert pages.code_share("a line\n" * 3 + code) > MOST_CODE
    assert pages.code_share("a line\n" * 6 + code + "```math\nx\n```\n<figure>\n<svg>\n</svg>\n</figure>\n") == 0.25


@by_chapter
def test_a_chapter_names_its_tasks(page: Path) -> None:
    tasks = course().chapter(chapter_of(page))
    text = pages.without_code(text_of(page)) + text_of(page)
    assert tasks and all(task.id in text and task.symbol.split(".")[-1] in text for task in tasks)
    known = {task.id for task in course().tasks}
    assert set(re.findall(r"w\d\.\d+\.\d+", text)) <= known


def test_no_page_shows_a_solution() -> None:
    """Three lines of one in a row would be one too many."""
    shown = [
        line.strip()
        for page in pages.pages()
        for block in FENCE.findall(pages.expanded(page))
        for line in block[1].splitlines()
    ]
    text = "\n".join(shown)
    for source in course().files.values():
        for region in markers.regions(read_source(source), source):
            solution = [line.strip() for line in markers.solution(read_source(source), region) if line.strip()]
            for i in range(max(len(solution) - 2, 1)):
                assert "\n".join(solution[i : i + 3]) not in text, region.task


def test_generated_files_are_fresh() -> None:
    """Pictures and questions are, byte for byte, what figures/*.py and quizzes.toml give."""
    assert load("make", ROOT / "book" / "make.py").stale() == []


def load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    try:
        spec.loader.exec_module(module)
        module.made()
        return module
    finally:
        sys.path[:] = before


def test_every_chapter_has_four_questions_of_all_kinds() -> None:
    from tiny_llm.course.quiz import read

    questions = read(ROOT / "book" / "quizzes.toml")
    for page in CHAPTERS:
        mine = [question for question in questions if question.chapter == chapter_of(page)]
        assert len(mine) >= 4 and {question.kind for question in mine} == {"predict", "debug", "estimate"}
        assert f"quiz/{chapter_of(page)}.md" in text_of(page)


@by_chapter
def test_tables_leave_room_for_the_reader(page: Path) -> None:
    table = text_of(SRC / "measured" / f"{chapter_of(page)}.md").splitlines()
    assert f"measured/{chapter_of(page)}.md" in text_of(page)
    assert re.fullmatch(r"\| [\w ]+ \| your machine \| reference \| bound \|", table[0]) and len(table) > 4
    for row in table[2:]:
        name, yours, reference, bound = (cell.strip() for cell in row.strip("|").split("|"))
        assert name and yours == "" and float(reference) > 0 and float(bound) > 0


class Numbers(doctest.OutputChecker):
    """Compares numbers to three digits, and the words between them exactly."""

    NUMBER = re.compile(r"-?\d+\.?\d*(?:e[+-]?\d+)?")

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        if self.NUMBER.sub("0", want) != self.NUMBER.sub("0", got):
            return False
        pairs = zip(self.NUMBER.findall(want), self.NUMBER.findall(got), strict=True)
        return all(abs(float(a) - float(b)) <= 1e-3 * max(1, abs(float(a))) for a, b in pairs)


@by_chapter
def test_sessions_print_what_they_show(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`from attention import …`, as in code/week1 or code/week2, where the reference stands for a solved file."""
    sources = {file: source for file, source in course().files.items() if source.endswith(".py")}
    for file, source in sources.items():
        module = importlib.import_module(source.removesuffix(".py").replace("/", "."))
        monkeypatch.setitem(sys.modules, Path(file).stem, module)
    blocks = [body for kind, body in FENCE.findall(text_of(page)) if kind == "pycon"]
    assert blocks
    session = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, page.name, str(page), 0)
    report: list[str] = []
    doctest.DocTestRunner(Numbers()).run(session, out=report.append)
    assert report == []


@pytest.mark.parametrize("console", list(pages.consoles()), ids=lambda c: f"{c.page}: {c.command} {c.state}")
def test_consoles_show_what_the_commands_print(console: pages.Console, tmp_path: Path) -> None:
    if "smollm2" in console.command and packaged("smollm2-135m") is None:
        pytest.skip("SmolLM2 is not installed: make smollm2")
    printed = pages.run(console.command, pages.checkout(tmp_path, console.state))
    assert pages.normalised(printed) == pages.normalised(console.output)


def commands() -> list[str]:
    """Every `tiny-llm …` of the pages, in code blocks and in the text."""
    texts = [text_of(page) for page in pages.pages()]
    lines = [line for text in texts for _, body in FENCE.findall(text) for line in body.splitlines()]
    inline = [code for text in texts for code in re.findall(r"`(tiny-llm [^`\n]+)`", FENCE.sub("", text))]
    return sorted(
        {re.split(r"\s+#", line.removeprefix("$ "))[0] for line in [*lines, *inline] if "tiny-llm " in line[:11]}
    )


@pytest.mark.parametrize("line", commands())
def test_commands_exist_with_their_options(line: str) -> None:
    """Parsed as the command line would, without being run."""
    command, words = typer.main.get_command(app), shlex.split(line)[1:]
    context = None
    while hasattr(command, "commands"):
        assert words and words[0] in command.commands, line
        context = command.make_context(words[0], [], parent=context, resilient_parsing=True)
        command = command.commands[words.pop(0)]
    command.make_context(line, words, parent=context)


def test_commands_are_found() -> None:
    assert {"tiny-llm chat --code mine", "tiny-llm course next"} <= set(commands())

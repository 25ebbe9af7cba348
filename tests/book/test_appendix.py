"""The appendix: its size and parts, and that its figures are those of the logs and of the model card."""

import doctest
import json
import re
import statistics
from itertools import pairwise
from pathlib import Path

import pytest

from tests.book import pages
from tests.book.pages import FENCE, ROOT, SRC, text_of
from tiny_llm.config.gguf_keys import GGUF_RULES
from tiny_llm.config.keys import CONFIG, TABLES

REFERENCE = {"a-2-keys", "a-3-real-models"}  # pages to look things up in, not to read through
PAGES = sorted(page for page in (SRC / "appendix").glob("*.md") if page.stem not in REFERENCE)
DATA = ROOT / "book" / "figures" / "data"
COPYING = SRC / "appendix" / "a-1-copying.md"
PARTS = (
    r"\A# A\.\d .+\n\n\*About \d+ minutes, no coding\. Memory: [^*]+back end",
    r"^## Where you are\n",
    r"\s[Aa]t\s+the\s+end\s+of\s+this\s+chapter\s",
    r"^## Before you begin\n(?:.*\n)+?1\. \*\*(?:.*\n)+?2\. \*\*(?:.*\n)+?3\. \*\*",
    r"^\*Predict:\*",
    r"^## .*by hand",
    r"^## Try it\n(?:.*\n)+?```sh\n(?:tiny-llm|python bench/)",
    r"\*What you should see",
    r"^## What it can't do\n",
    r"^## Checkpoint\n\n- ",
    r"^## Check your understanding\n\n\{\{#include \.\./quiz/",
    r"^## In production\n",
    r"^\*\*Further reading\.\*\* .*(?:\n.+)*https?://",
)
by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def runs() -> list[dict]:
    return json.loads((DATA / "pocket_ablation.json").read_text(encoding="utf-8"))["runs"]


def rows(table: str) -> list[list[str]]:
    """The cells of a Markdown table, without its head."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@by_page
def test_size_and_parts(page: Path) -> None:
    assert page in pages.pages()
    assert 1000 <= pages.words(page) <= 1800
    assert text_of(page).count("<figure>") >= 2
    assert 0.20 <= pages.code_share(pages.expanded(page)) <= 0.35
    assert [part for part in PARTS if not re.search(part, text_of(page), re.MULTILINE)] == []


@by_page
def test_sessions_print_what_they_show(page: Path) -> None:
    blocks = [body for kind, body in FENCE.findall(text_of(page)) if kind == "pycon"]
    session = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, page.name, str(page), 0)
    report: list[str] = []
    doctest.DocTestRunner().run(session, out=report.append)
    assert blocks and report == []


def test_the_table_is_that_of_the_logs() -> None:
    labels = json.loads((DATA / "pocket_ablation.json").read_text(encoding="utf-8"))["labels"]
    found = {row[0]: [cell.split(", ") for cell in row[1:]] for row in rows(text_of(SRC / "tables" / "copying.md"))}
    assert set(found) == {labels[run["variant"]] for run in runs()}
    for run in runs():
        place = sorted(other["seed"] for other in runs() if other["variant"] == run["variant"]).index(run["seed"])
        tokens, twice, half, exam, long = (cells[place] for cells in found[labels[run["variant"]]])
        full = run["tokens"] >= 1_250_000
        assert tokens == f"{run['tokens'] / 1e6:.2f} M"
        assert (exam, long) == ((f"{run['right']:.2f}", f"{run['right_long']:.2f}") if full else ("–", "–"))
        grown = [point[0] for point in run["log"] if point[4] > 4 * 1.2 + 0.1]
        if run["variant"] == "no-curriculum":
            assert twice == "–"
        else:
            assert twice == (f"{grown[0] / 1e6:.2f} M" if grown else "not yet")
        passed = [point[0] for point in run["log"] if point[3] >= 0.5]
        assert half == (f"{passed[0] / 1e6:.2f} M" if passed else "not yet")


def test_the_logs_are_whole() -> None:
    """Every run is there once, and measured all along."""
    assert len({(run["variant"], run["seed"]) for run in runs()}) == len(runs())
    for run in runs():
        steps = [0, *(point[0] for point in run["log"])]
        assert all(0 < after - before < 25_000 for before, after in pairwise(steps))
        assert run["tokens"] - steps[-1] < 25_000


def test_the_text_gives_the_logs_figures() -> None:
    """Each share and each loss in the prose on the runs is one of the tables or of the logs."""
    text = pages.without_code(text_of(COPYING))
    told = text.partition("## Watch it emerge")[2].partition("## What it can't do")[0]
    tables = "".join(text_of(SRC / "tables" / f"{name}.md") for name in ("copying", "copying-heads"))
    logged = {f"{value:.2f}" for run in runs() for point in run["log"] for value in (point[0] / 1e6, *point[1:4])}
    logged |= {f"{statistics.mean(point[1] for point in run['log'][-10:]):.2f}" for run in runs()}
    training = json.loads((DATA / "pocket_training.json").read_text(encoding="utf-8"))
    logged |= {f"{share:.2f}" for one in training for share in one["errors"].values()}
    known = set(re.findall(r"\d\.\d\d", tables)) | logged | {"1.25", "0.66"}  # tokens of a run, parameters in millions
    told_figures = re.findall(r"(?<![\w.])\d\.\d\d(?!\d)", told)
    assert told_figures and set(told_figures) <= known


def test_the_card_is_the_shipped_models() -> None:
    card = (ROOT / "tiny_llm" / "pocket" / "weights" / "target" / "README.md").read_text(encoding="utf-8")
    assert rows(text_of(SRC / "tables" / "pocket-card.md")) == rows(card.partition("## Results")[2])


def test_the_page_of_keys_has_every_key_of_every_table() -> None:
    """A table of the engine that the page does not print would be a rule that nobody can look up."""
    page = pages.expanded(SRC / "appendix" / "a-2-keys.md")
    for name, rules in {**TABLES, "GGUF": GGUF_RULES}.items():
        section = page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        printed = {re.sub("`", "", row[0]).replace(", ", " "): row[1] for row in rows(section)}
        for rule in rules:
            assert printed[rule.keys].startswith(f"**{rule.verdict.value}**") and printed[rule.keys].endswith(rule.why)
        assert len(printed) == len(rules) + (name == CONFIG)

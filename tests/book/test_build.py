"""The built book, where mdBook is installed (`make book` does it): warnings, links, fragments, pictures, formulas."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.book.pages import ROOT, pages, text_of

VERSION = re.search(r"^MDBOOK_VERSION := (\S+)$", text_of(ROOT / "Makefile"), re.MULTILINE)[1]
INSTALLED = ROOT / ".mdbook" / VERSION / "bin" / "mdbook"
MDBOOK = str(INSTALLED) if INSTALLED.is_file() else shutil.which("mdbook")


class Page(HTMLParser):
    """What a page links to, the places that it offers, and its pictures without alternative."""

    def __init__(self, path: Path):
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.mute: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.links += [value for name in ("href", "src") if (value := given.get(name)) is not None]
        self.ids |= {value for name in ("id", "name") if (value := given.get(name))}
        if tag == "img" and not given.get("alt"):
            self.mute.append(str(given))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if MDBOOK is None:
        pytest.skip("mdbook is not installed: make book")
    out = tmp_path_factory.mktemp("book")
    command = [MDBOOK, "build", str(ROOT / "book"), "--dest-dir", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not re.search(r"WARN|ERROR", done.stdout + done.stderr), done.stderr
    return out


@pytest.fixture(scope="module")
def html(built: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in built.rglob("*.html")}


def test_every_page_is_there(built: Path, html: dict[Path, Page]) -> None:
    for page in pages()[1:]:
        assert built / page.relative_to(ROOT / "book" / "src").with_suffix(".html") in html


def test_no_directive_is_left(html: dict[Path, Page]) -> None:
    assert [path.name for path in html if "{{#" in path.read_text(encoding="utf-8")] == []


def test_links_and_fragments_resolve(built: Path, html: dict[Path, Page]) -> None:
    broken = []
    for path, page in html.items():
        if path.name in ("404.html", "toc.html"):  # their links are relative to the site's root
            continue
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or link.startswith("//"):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            offered = html[target].ids if target in html else None
            if not target.is_file() or (parts.fragment and offered is not None and parts.fragment not in offered):
                broken.append(f"{path.relative_to(built)}: {link}")
    assert broken == []


def test_no_picture_without_alternative(html: dict[Path, Page]) -> None:
    assert {path.name: page.mute for path, page in html.items() if page.mute} == {}


def test_formulas_are_drawn_by_the_vendored_katex(built: Path) -> None:
    page = (built / "week1" / "1-1-attention.html").read_text(encoding="utf-8")
    for name in ("katex/katex.min.js", "katex/katex.min.css", "math.js", "book.css"):
        assert f"../{name}" in page and (built / name).is_file()
    fonts = re.findall(r"url\((fonts/[\w-]+\.woff2)\)", (built / "katex" / "katex.min.css").read_text(encoding="utf-8"))
    assert fonts and all((built / "katex" / font).is_file() for font in fonts)


FORMULAS = """
const katex = require(process.argv[1]);
for (const [formula, display] of JSON.parse(require("fs").readFileSync(0, "utf8")))
  katex.renderToString(formula, { displayMode: display, strict: "error" });
"""


def test_every_formula_is_valid() -> None:
    """By KaTeX itself, where Node is installed."""
    import json

    node = shutil.which("node")
    texts = [text_of(page) for page in pages()]
    formulas = [(f, False) for text in texts for f in re.findall(r"\$`([^`]+)`\$", text)]
    formulas += [
        (f, True) for text in texts for f in re.findall(r"^```math\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    ]
    assert len(formulas) > 50
    bare = [
        line for text in texts for line in re.sub(r"`[^`]*`", "", text).splitlines() if re.search(r"\$[\w\\]", line)
    ]
    assert bare == [], "a formula is written $`…`$"
    if node is None:
        pytest.skip("Node is not installed")
    katex = ROOT / "book" / "src" / "katex" / "katex.min.js"
    command = [node, "-e", FORMULAS, str(katex)]
    done = subprocess.run(command, input=json.dumps(formulas), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

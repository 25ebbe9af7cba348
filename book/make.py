"""Write what the book's pages include: pictures and tables of figures/*.py, quizzes.toml's questions, tasks' contracts.

    python book/make.py [--check]

--check writes nothing and fails where a file is not what its source gives.
"""

import argparse
import importlib
import inspect
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "figures")]

import tiny_llm  # noqa: E402, F401  activates the BLAS before MLX  # isort: skip

from tiny_llm import kernels  # noqa: E402
from tiny_llm.course import learner, stubs  # noqa: E402
from tiny_llm.course.catalog import course  # noqa: E402
from tiny_llm.course.quiz import Question, read  # noqa: E402

DRAWINGS = (  # modules in figures/
    "engine_map",
    "attention",
    "rope",
    "mlp",
    "model",
    "generate",
    "sampling",
    "roofline",
    "first_kernel",
    "fusing",
    "kv_cache",
    "quantize",
    "matvec",
    "matrices",
    "flash",
    "decode_parts",
    "cpu_row",
    "serving_map",
    "scheduling",
    "paging",
    "experts",
    "speculation",
    "draft_trees",
    "agent",
    "server_map",
    "streaming",
    "forms",
    "observing",
    "limits",
    "copying",
    "retrieval",
)


def made() -> dict[Path, str]:
    """The text of each file."""
    src, questions = HERE / "src", read(HERE / "quizzes.toml")
    drawn = [drawing for name in DRAWINGS for drawing in importlib.import_module(name).drawings()]
    chapters = dict.fromkeys(question.chapter for question in questions)
    pictures = {src / "figures" / f"{drawing.name}.svg": drawing.svg() for drawing in drawn}
    asked = {
        src / "quiz" / f"{chapter}.md": markdown([q for q in questions if q.chapter == chapter]) for chapter in chapters
    }
    files = stubs.generate()
    exercises = [chapter for chapter in chapters if course().chapter(chapter)]
    taught = {src / "contracts" / f"{chapter}.txt": contracts(chapter, files) for chapter in exercises}
    tables = {
        src / "tables" / name: text
        for module in ("copying", "keys", "real_models")
        for name, text in importlib.import_module(module).tables().items()
    }
    return pictures | asked | taught | tables


def contracts(chapter: str, files: Mapping[str, str]) -> str:
    """Signature and docstring of each task of a chapter, as in the learner's file, anchored like w1-1-1.

    For a kernel those of its launcher, for a function in C++ its comment and declaration.
    """
    parts = []
    for task in course().chapter(chapter):
        name = task.id.replace(".", "-")
        if task.is_native:
            parts += [f"# ANCHOR: {name}", *declaration(files[task.file], task.symbol), f"# ANCHOR_END: {name}"]
            continue
        text = launcher_source(task.symbol) if task.is_kernel else files[task.file]
        function = learner.find(learner.parse(text, Path(task.file).with_suffix(".py")), task.symbol)
        assert function, task.symbol
        lines = text.splitlines()[function.lineno - 1 : function.body[0].end_lineno]
        parts += [f"# ANCHOR: {name}", textwrap.dedent("\n".join(lines)), f"# ANCHOR_END: {name}"]
    return "\n".join(parts) + "\n"


def declaration(text: str, symbol: str) -> list[str]:
    """The comment above a function in C++, and the function without its body."""
    lines = text.splitlines()
    end = next(i for i, line in enumerate(lines) if f" {symbol}(" in line)
    begin = end
    while lines[begin - 1].startswith(("//", "template")):
        begin -= 1
    return [*lines[begin:end], lines[end].removesuffix(" {") + ";"]


def launcher_source(symbol: str) -> str:
    """The module that defines the kernel's function."""
    return inspect.getsource(inspect.getmodule(getattr(kernels, symbol)))


def markdown(questions: Sequence[Question]) -> str:
    """The questions of one chapter with folded answers."""
    parts = []
    for number, question in enumerate(questions, 1):
        answer = f"**{question.answer.rstrip('.')}.** {question.reason}"
        options = f" ({' / '.join(question.options)})" if question.options else ""
        parts.append(
            f"**{number}. {question.kind.capitalize()}.** {question.text}{options}\n\n"
            f"<details><summary>Answer</summary>\n\n{answer}\n\n</details>\n"
        )
    return "\n".join(parts)


def stale() -> list[str]:
    """Files that are missing, spare, or not what their source gives."""
    fresh = made()
    there = {path for folder in {path.parent for path in fresh} for path in folder.iterdir()}
    wrong = {path for path in fresh.keys() & there if path.read_text(encoding="utf-8") != fresh[path]}
    return sorted(path.name for path in wrong | (fresh.keys() ^ there))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail if a file is not fresh")
    if parser.parse_args().check:
        if names := stale():
            sys.exit(f"{', '.join(names)}: not fresh; run python book/make.py")
        return
    for path, text in made().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

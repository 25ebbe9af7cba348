"""Making code/ from the engine's sources, and putting a stub back where a learner wants to begin again."""

import os
from pathlib import Path

from tiny_llm.course import learner, markers
from tiny_llm.course.catalog import Task, course, read_source

SAVED = "saved"  # the folder below code/ for copies of what was changed


def generate() -> dict[str, str]:
    """The learner's files as they are before anything is solved: path below code/ → text."""
    return {file: markers.stub(read_source(source), source) for file, source in course().files.items()}


def stale(code: Path) -> list[str]:
    """The files below `code` that are not, byte for byte, what `generate` makes."""
    expected = generate()
    weeks = {Path(file).parts[0] for file in expected}
    kinds = (".py", *learner.COMPILED)
    files = (path for week in weeks for path in (code / week).rglob("*") if path.suffix in kinds)
    there = {path.relative_to(code).as_posix() for path in files}
    different = {file for file, text in expected.items() if _bytes(code / file) != text.encode()}
    return sorted(different | (there - expected.keys()))


def write(code: Path) -> list[tuple[str, Path | None]]:
    """Bring code/ up to date; (file, where the copy of its former text is) for each that changed."""
    return [(file, put(code, file, text)) for file, text in generate().items() if file in stale(code)]


def reset_file(code: Path, file: str) -> Path | None:
    """The whole file as it was before anything was solved; returns where the copy of the former one is."""
    return put(code, file, generate()[file])


def reset_task(code: Path, task: Task) -> Path | None:
    """One function as it was before it was solved, the rest of the file untouched."""
    path = code / task.file
    new = learner.function_lines(generate()[task.file], task.symbol, path)
    return put(code, task.file, learner.with_function(learner.read(path), task.symbol, new, path))


def put(code: Path, file: str, text: str) -> Path | None:
    """Write a learner's file; if it held anything else, that is copied first. Returns where the copy is."""
    path, copy = code / file, None
    path.parent.mkdir(parents=True, exist_ok=True)
    former = _bytes(path)
    if former is not None and former != text.encode():
        copy = _free(code / SAVED / file)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(former)
    partial = path.with_name(path.name + ".part")
    partial.write_text(text, encoding="utf-8", newline="\n")
    os.replace(partial, path)
    return copy


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _free(path: Path) -> Path:
    """The first of path, path-2, path-3 … that does not exist."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return free

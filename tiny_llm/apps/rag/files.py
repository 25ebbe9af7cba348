"""Find the files to add: those named, and those below the folders named, without hidden ones."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tiny_llm.apps.rag.readers import KNOWN

SKIPPED = frozenset(("__pycache__", "node_modules", "build", "dist", "target"))


class Skipped(NamedTuple):
    """A file that is not in the index, and the reason."""

    path: Path
    reason: str


def find_files(paths: Sequence[Path]) -> tuple[list[Path], list[Skipped]]:
    """Return the absolute paths of all files to read, sorted, and what is skipped.

    Raises ValueError for a path that does not exist. A link that leads out of the folder that was named is skipped:
    adding a folder must not read files that lie elsewhere. Files with an unknown ending are left out silently.
    """
    files: set[Path] = set()
    skipped: list[Skipped] = []
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path}: expected a file or a folder, found none; check the name")
        if path.is_file():
            files.add(path.resolve())
            continue
        if not path.is_dir():
            skipped.append(Skipped(path, "neither a file nor a folder"))
            continue
        root = path.resolve()
        for file in walk(root):
            if not inside(file, root):
                skipped.append(Skipped(file, "a link out of the folder"))
            elif file.is_file() and file.suffix.lower() in KNOWN:
                files.add(file.resolve())
    return sorted(files), skipped


def walk(root: Path) -> Iterator[Path]:
    """Yield the files below a folder, and the links to folders out of it; hidden and generated folders are left out."""
    for folder, folders, names in os.walk(root):
        here = Path(folder)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in SKIPPED)
        for name in folders:
            link = here / name
            if link.is_symlink() and not inside(link, root):
                yield link
        for name in sorted(names):
            if not name.startswith("."):
                yield here / name


def inside(path: Path, root: Path) -> bool:
    """Return whether a path lies below a folder once links are followed."""
    return path.resolve().is_relative_to(root)

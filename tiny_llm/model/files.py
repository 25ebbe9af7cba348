"""Read and write the files of a model: raw bytes and JSON, with errors that name the file."""

import json
from collections.abc import Mapping
from pathlib import Path

from tiny_llm.config.fields import JsonFields, parse_object

GGUF_MAGIC = b"GGUF"


def read_bytes(path: Path, limit: int = -1) -> bytes:
    """Return the file's bytes, at most `limit`. Raises ValueError naming a file that cannot be read."""
    try:
        if not path.is_file():
            found = "something else" if path.exists() else "nothing"
            raise ValueError(f"{path}: expected a file, found {found}")
        with path.open("rb") as file:
            return file.read(limit)
    except OSError as error:
        raise ValueError(f"{path}: expected a readable file, found: {error.strerror}") from error


def read_json(path: Path, *, optional: bool = False) -> JsonFields:
    """Return a file's JSON object; an empty one if the file is `optional` and missing."""
    if optional and not path.exists():
        return JsonFields({}, str(path))
    return parse_object(read_bytes(path), str(path))


def write_json(path: Path, data: Mapping[str, object]) -> None:
    text = json.dumps(data, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def is_gguf(path: Path) -> bool:
    """Return whether a path is a file that is named .gguf or begins as a GGUF file does."""
    return path.is_file() and (path.suffix.lower() == ".gguf" or read_bytes(path, 4) == GGUF_MAGIC)

"""Read the course's TOML files."""

import sys
from pathlib import Path
from typing import Any

from tiny_llm.course import CourseError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).parent


def load(path: Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises CourseError naming the file if it cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CourseError(f"{path}: cannot be read as TOML: {error}") from error

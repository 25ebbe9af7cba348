"""Whether an extension can share arrays with MLX.

nanobind keeps the types of all extensions of one domain in a record of the Python interpreter. The record's key names
the layout of nanobind's structures, such as `nanobind_system_libstdcpp_…_a1_v22`. MLX makes its record when it is
imported. An extension of another layout makes a second record, in which `mlx.core.array` is missing.
"""

import ctypes
import re
from importlib.metadata import version
from pathlib import Path

RECORD = re.compile(r"__nb_internals_(.+)_mlx__")
VERSION_OF_LAYOUT = re.compile(r"(?:^|_)v(\d+)(?:_|$)")
DEFINITION = re.compile(r"^#\s*define\s+NB_INTERNALS_VERSION\s+(\d+)", re.MULTILINE)


def layouts() -> set[str]:
    """Return the layouts of the records that this interpreter has for MLX's domain."""
    api = ctypes.pythonapi
    api.PyInterpreterState_Get.restype = ctypes.c_void_p
    api.PyInterpreterState_GetDict.argtypes = [ctypes.c_void_p]
    api.PyInterpreterState_GetDict.restype = ctypes.c_void_p
    address = api.PyInterpreterState_GetDict(api.PyInterpreterState_Get())
    records = ctypes.cast(address, ctypes.py_object).value  # takes a reference; as a result it would take over one
    matches = [RECORD.fullmatch(key) for key in records if isinstance(key, str)]
    return {match[1] for match in matches if match}


def mismatch(nanobind: Path) -> str | None:
    """Return why extensions of the nanobind in this folder can't share MLX's arrays; None where they can.

    Compares the numbers of the two layouts, before anything is compiled.
    """
    ours = version_of_headers(nanobind)
    found = [VERSION_OF_LAYOUT.search(layout) for layout in layouts()]
    versions = {int(match[1]) for match in found if match}
    if ours is None or not versions or ours in versions:
        return None
    theirs = ", ".join(map(str, sorted(versions)))
    return (
        f"nanobind {version(nanobind.name)} has internals of version {ours}, and MLX {version('mlx')} was built with "
        f"version {theirs}; install the nanobind that MLX's pyproject.toml names, or both anew: "
        "pip install --upgrade mlx 'nanobind>=3.0,<4'"
    )


def version_of_headers(nanobind: Path) -> int | None:
    """Return the number of the layout that a folder of nanobind compiles; None where its sources do not define it."""
    for path in sorted((nanobind / "src").glob("*.h")):
        match = DEFINITION.search(path.read_text(encoding="utf-8", errors="replace"))
        if match:
            return int(match[1])
    return None

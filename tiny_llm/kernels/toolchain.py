"""This machine's C++ compiler and its processor's instruction sets, for all kernels that are compiled here."""

import os
import shutil
import sys
from functools import cache
from pathlib import Path


@cache
def compiler() -> str:
    """Return the path of the C++ compiler: the program that CXX names, else g++, clang++ or c++.

    Raises ValueError where CXX names no program, and where there is no compiler.
    """
    named = os.environ.get("CXX", "").strip()
    if named:
        path = shutil.which(named)
        if path is None:
            raise ValueError(
                f"CXX: expected the name or path of a C++ compiler, without arguments, found {named!r}; "
                "correct it or unset it"
            )
        return path
    for name in ("g++", "clang++", "c++"):
        path = shutil.which(name)
        if path is not None:
            return path
    install = "xcode-select --install" if sys.platform == "darwin" else "apt install g++"
    raise ValueError(f"this needs a C++ compiler, and none was found; install one: {install}")


@cache
def processor_features() -> frozenset[str]:
    """Return Linux's names of the processor's features, such as avx2. Empty where the system does not list them."""
    found = set[str]()
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    for line in text.splitlines():
        name, _, values = line.partition(":")
        if name.strip().lower() in ("flags", "features"):
            found.update(values.split())
    return frozenset(found)

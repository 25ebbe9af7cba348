"""What a learner needs beside what the engine needs: the checkout, readable files, tools of the later weeks."""

import shutil
import subprocess
import sys
from importlib.util import find_spec
from typing import Literal, NamedTuple

from tiny_llm.course import CourseError
from tiny_llm.course.catalog import PACKAGE, find_root
from tiny_llm.course.overlay import Overlay

WEIGHTS = PACKAGE / "pocket" / "weights" / "target"


class CourseFact(NamedTuple):
    """One thing looked at; "fail" keeps the course from running, "warn" a part of it."""

    name: str
    state: Literal["ok", "warn", "fail"]
    value: str
    remedy: str = ""


def collect() -> list[CourseFact]:
    return [_checkout(), _files(), _pytest(), _kernels(), _weights()]


def _checkout() -> CourseFact:
    try:
        return CourseFact("checkout", "ok", str(find_root()))
    except CourseError as error:
        return CourseFact("checkout", "fail", str(error), "git clone the repository and run inside it")


def _files() -> CourseFact:
    try:
        overlay = Overlay(find_root() / "code")
    except CourseError as error:
        return CourseFact("your files", "fail", str(error), "mend the line, or `tiny-llm course reset FILE`")
    total = len(overlay.course.tasks)
    return CourseFact("your files", "ok", f"{total - len(overlay.undone)} of {total} tasks written")


def _pytest() -> CourseFact:
    if find_spec("pytest"):
        return CourseFact("pytest", "ok", "found")
    return CourseFact(
        "pytest", "warn", "missing; `tiny-llm course test` works without", "pip install pytest, or make venv"
    )


def _kernels() -> CourseFact:
    """Week 2 compiles kernels: with Apple's compiler on a Mac, for the simulator elsewhere."""
    if sys.platform != "darwin":
        found = next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))), None)
        remedy = "" if found else "sudo apt install g++ (or your system's package), before week 2"
        return CourseFact(
            "kernels", "ok" if found else "warn", found or "no C++ compiler for the Metal simulator", remedy
        )
    found = shutil.which("xcrun")
    if found and subprocess.run([found, "-f", "metal"], capture_output=True).returncode == 0:
        return CourseFact("kernels", "ok", "Metal toolchain found")
    remedy = "xcode-select --install, then xcodebuild -downloadComponent MetalToolchain; before week 2"
    return CourseFact("kernels", "warn", "no Metal toolchain", remedy)


def _weights() -> CourseFact:
    if (WEIGHTS / "config.json").is_file():
        return CourseFact("weights", "ok", "the small model is inside; --model qwen3-0.6b takes a larger one")
    return CourseFact("weights", "warn", "no model inside this version", "tiny-llm models download qwen3-0.6b")

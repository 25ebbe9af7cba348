"""The way of a request through the package is short: few files are entered between a prompt and its answer."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import mlx.core as mx
import pytest

import tiny_llm
from tests.support import make_model
from tiny_llm import load
from tiny_llm.engine.serving import Engine

PACKAGE = Path(tiny_llm.__file__).parent
SERVED_FILES = 24  # for a list of prompts through `Engine`, decoded greedily
SINGLE_FILES = 30  # for one prompt through `LLM`
PROMPTS = ["Hello", "The capital of France is"]

pytestmark = pytest.mark.skipif(mx.default_device() == mx.gpu, reason="a GPU's kernels are files of their own")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@contextmanager
def traced() -> Iterator[set[str]]:
    """Collect the package's files that this thread, and each thread started in the block, enters a function of."""
    files: set[str] = set()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(PACKAGE):
            files.add(path.relative_to(PACKAGE).as_posix())

    before = sys.getprofile()
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield files
    finally:
        sys.setprofile(before)
        threading.setprofile(None)  # type: ignore[arg-type]


def check(files: set[str], limit: int) -> None:
    listed = "\n".join(sorted(files))
    assert len(files) <= limit, f"{len(files)} files are entered, more than {limit}:\n{listed}"


def test_a_served_request_enters_few_files(model: Path) -> None:
    with traced() as files, Engine(model) as engine:
        files.clear()
        engine.generate(PROMPTS, max_tokens=8, temperature=0)
        entered = set(files)
    check(entered, SERVED_FILES)


def test_a_single_prompt_enters_few_files(model: Path) -> None:
    """After the first prompt, with which the loop is made."""
    llm = load(model)
    llm.generate(PROMPTS[0], max_tokens=8, temperature=0)
    with traced() as files:
        llm.generate(PROMPTS[1], max_tokens=8, temperature=0)
    check(files, SINGLE_FILES)


def test_the_files_of_all_threads_are_found() -> None:
    with traced() as files:
        thread = threading.Thread(target=tiny_llm.SamplingParams)
        thread.start()
        thread.join()
    assert "config/sampling.py" in files
    with pytest.raises(AssertionError, match=r"more than 0:\n(.*\n)* *config/sampling\.py"):
        check(files, 0)

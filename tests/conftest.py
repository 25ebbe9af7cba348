"""What holds for every test: the package's BLAS comes first, on one thread; no network, nothing of the user's."""

import os
import socket
from contextlib import suppress
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # small models gain nothing from more, and other load can't stall it

import pytest

import tiny_llm  # noqa: F401  before mlx, as a user would
from tiny_llm.course import CourseError, desk


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--code", help="run the course's tests on your files: mine for code/, or another folder")


def pytest_configure(config: pytest.Config) -> None:
    """With --code the learner's files take the engine's place before any test imports it."""
    if (code := config.getoption("--code")) is not None:
        try:
            config.overlay = desk.install(code)
        except CourseError as error:
            raise pytest.UsageError(str(error)) from error
    elif not hasattr(config, "workerinput"):
        from tiny_llm.kernels.cpu import build  # not before the learner's files are in place

        with suppress(build.NoKernelsError):
            build.kernels()  # compiled here where they are new, or the first test that needs them would say so


def pytest_report_header(config: pytest.Config) -> str:
    return str(getattr(config, "overlay", ""))


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that opens a connection to another machine fails."""
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple) and address[0] not in ("localhost", "127.0.0.1", "::1"):
            raise AssertionError(f"a test tried to connect to {address[0]}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)

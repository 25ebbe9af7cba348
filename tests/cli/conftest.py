"""The command line in the test's own process, with a scripted model or a small random one."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest

from tests.support import make_model
from tiny_llm.cli import main
from tiny_llm.cli.options import NO_MODEL
from tiny_llm.engine import llm as engine

Run = Callable[..., "Result"]


@dataclass(frozen=True)
class Result:
    """What a user gets back; `inside` when told that the model inside answers, a line that `err` then lacks."""

    code: int
    out: str
    err: str
    inside: bool


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "random-qwen3")


def without_eos(model: Path) -> list[str]:
    """Options under which the model never ends by itself."""
    tokens = json.loads((model / "generation_config.json").read_text())["eos_token_id"]
    return [word for token in tokens for word in ("--logit-bias", f"{token}=-100")]


@pytest.fixture(autouse=True)
def own_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the user's is read or written; variables that main sets are forgotten."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("TINY_LLM_DEBUG", "")


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run("chat", "--model", …, stdin="…")`; with `llm=` that model is loaded instead of any other."""

    def run(*arguments: str, stdin: str | bytes = "", llm: object = None) -> Result:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO(data), encoding="utf-8"))
        if llm is not None:
            monkeypatch.setattr(engine, "load", lambda *_, **__: llm)
        try:
            code = main(arguments)
        except SystemExit as exit:
            code = int(exit.code or 0)
        captured = capfd.readouterr()
        line = NO_MODEL + "\n"
        return Result(code, captured.out, captured.err.replace(line, "", 1), line in captured.err)

    return run

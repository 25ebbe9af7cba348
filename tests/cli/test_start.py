"""Start-up: what is imported, help and version."""

import subprocess
import sys

import pytest

from tests.cli.conftest import Run

SLOW = ("mlx", "numpy", "huggingface_hub", "tokenizers", "jinja2", "prompt_toolkit", "rich", "pydantic")


def test_help_imports_nothing_slow() -> None:
    code = (
        f"import sys; from tiny_llm.cli import main; main(['--help']); print([m for m in {SLOW} if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1] == "[]"


def test_the_module_is_the_program() -> None:
    command = [sys.executable, "-m", "tiny_llm", "--version"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert shown.startswith("tiny-llm ")


@pytest.mark.parametrize("command", ["chat", "generate", "models", "doctor", "bench"])
def test_help_lists_the_commands_and_each_has_its_own(run: Run, command: str) -> None:
    assert f"\n  {command} " in run("--help").out
    result = run(command, "--help")
    assert result.code == 0
    assert result.out.startswith(f"Usage: tiny-llm {command} ")


def test_without_arguments_help_and_exit_code_2(run: Run) -> None:
    result = run()
    assert result.code == 2
    assert "Commands:" in result.out


def test_version(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tiny_llm.cli.metadata.version", lambda name: {"tiny-llm": "9.8"}[name])
    assert run("--version").out == "tiny-llm 9.8\n"

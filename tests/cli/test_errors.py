"""Wrong usage is exit code 2, a failure 1, each with one line that names the value and the remedy."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.cli.fake import FakeLLM
from tests.support import make_model, write_json
from tiny_llm.model import hub

PYTHON = [sys.executable, "-m", "tiny_llm"]

USAGE = [
    ("chat --temprature 1", "--temprature", "--temperature?"),
    ("generate hi --mode x", "--mode", "--model"),
    ("genrate hi", "genrate", "Did you mean 'generate'"),
    ("models lst", "lst", "'list'"),
    ("chat extra", "extra", "--help"),
    ("generate hi --top-k many", "many", "integer"),
    ("generate hi --ops fast", "fast", "'fused', 'plain'"),
    ("generate hi --temperature -3", "-3", "from 0 to 100"),
    ("generate hi --logit-bias 13:2", "13:2", "ID=VALUE"),
    ("generate hi --beam-width 2 --temperature 0.5", "temperature:", "draws nothing, leave it out; found 0.5"),
    ("generate hi --n 4 --beam-width 2", "n:", "at most beam_width (2)"),
    ("generate hi --n 2 --stream", "--stream", "leave out"),
    ("generate hi --raw --system x", "--raw", "--system"),
    ("generate hi --max-context 0", "max_context", "at least 1, found 0"),
    ("generate hi --file x", "PROMPT", "not both"),
    ("generate", "PROMPT", "is empty"),
    ("bench --max-tokens 1", "--max-tokens", "2"),
    ("models remove qwen3-4b", "MODEL", "--yes"),
]


@pytest.mark.parametrize(("line", "value", "remedy"), USAGE, ids=[line for line, *_ in USAGE])
def test_wrong_usage(run: Run, line: str, value: str, remedy: str) -> None:
    result = run(*line.split())
    assert (result.code, result.out) == (2, "")
    assert result.err.count("\n") == 1
    assert value in result.err
    assert remedy in result.err


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_empty_prompt(run: Run, prompt: str) -> None:
    result = run("generate", prompt)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "empty" in result.err


def test_prompt_that_is_no_text(run: Run) -> None:
    result = run("generate", stdin=b"\xff\xfe")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "UTF-8" in result.err


def test_prompt_longer_than_the_context(run: Run, model_dir: Path) -> None:
    result = run("generate", "word " * 100, "--model", str(model_dir), "--max-context", "50")
    assert (result.code, result.out, result.err.count("\n")) == (1, "", 1)
    assert "context of 50" in result.err
    assert "--max-context" in result.err


def test_missing_model_directory(run: Run, tmp_path: Path) -> None:
    missing = str(tmp_path / "nothing")
    result = run("generate", "hi", "--model", missing)
    assert (result.code, result.err) == (
        1,
        f"error: {missing}: expected a model directory or a GGUF file, found nothing there\n",
    )


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        ("config.json", "{", "config.json"),
        ("config.json", '{"model_type": "gpt2"}', "qwen3"),
        ("tokenizer.json", "[]", "tokenizer.json"),
        ("model.safetensors", "short", "model.safetensors"),
    ],
)
def test_broken_model_directory(run: Run, tmp_path: Path, file: str, content: str, named: str) -> None:
    make_model(tmp_path / "model")
    (tmp_path / "model" / file).write_text(content)
    result = run("generate", "hi", "--model", str(tmp_path / "model"))
    assert (result.code, result.out, result.err.count("\n")) == (1, "", 1)
    assert named in result.err


def test_no_network_for_a_hub_name(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_network(*_: object, **options: object) -> str:
        from huggingface_hub.errors import LocalEntryNotFoundError

        raise LocalEntryNotFoundError("cannot reach the Hub\nand so on")

    monkeypatch.setattr("huggingface_hub.snapshot_download", no_network)
    monkeypatch.setattr(hub, "local_models", lambda: [])
    result = run("generate", "hi", "--model", "qwen3-0.6b")
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert "Qwen/Qwen3-0.6B" in result.err
    assert "network" in result.err


def test_no_model_named(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tiny_llm.engine.llm.POCKET", tmp_path / "no pocket")
    result = run("chat")
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert "--model qwen3-0.6b" in result.err


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (MemoryError(), "error: not enough memory; choose a smaller or a quantized model"),
        (
            RuntimeError("[malloc] Unable to allocate 9 bytes.\n"),
            "error: not enough memory: [malloc] Unable to allocate",
        ),
        (ValueError("two\nlines"), "error: two lines\n"),
        (OSError(28, "No space left on device", "/x"), "error: /x: No space left on device\n"),
        (KeyError("k"), "error: unexpected KeyError: 'k' (--debug shows where)\n"),
    ],
)
def test_failures_are_one_line(run: Run, error: Exception, shown: str) -> None:
    result = run("generate", "hi", llm=FakeLLM(error))
    assert (result.code, result.out, result.err.count("\n")) == (1, "", 1)
    assert result.err.startswith(shown)


@pytest.mark.parametrize("arguments", [("--debug", "generate", "hi"), ("generate", "hi", "--debug")])
def test_debug_shows_the_traceback(run: Run, arguments: tuple[str, ...]) -> None:
    result = run(*arguments, llm=FakeLLM(ValueError("deep")))
    assert result.code == 1
    assert result.err.startswith("Traceback")
    assert "ValueError: deep" in result.err


def test_debug_by_environment(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINY_LLM_DEBUG", "1")
    assert run("generate", "hi", llm=FakeLLM(ValueError("deep"))).err.startswith("Traceback")


def test_a_prompt_may_be_spelled_like_the_debug_option(run: Run) -> None:
    llm = FakeLLM("yes")
    assert run("generate", "--", "--debug", llm=llm).code == 0
    assert os.environ["TINY_LLM_DEBUG"] == ""
    assert llm.asked == [[{"role": "user", "content": "--debug"}]]


def test_interrupted(run: Run) -> None:
    def press() -> None:
        raise KeyboardInterrupt

    assert run("generate", "hi", llm=FakeLLM(["a", press])).code == 130


def test_reader_that_leaves_early(model_dir: Path) -> None:
    command = [*PYTHON, "generate", "hi", "--model", str(model_dir), "--ignore-eos", "--max-tokens", "400"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(30) == 1


def test_reader_that_leaves_before_the_end_of_a_short_output() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.run([*PYTHON, "--version"], stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (process.returncode, process.stderr) == (1, b"")


def test_broken_generation_config(run: Run, tmp_path: Path) -> None:
    write_json(make_model(tmp_path / "model") / "generation_config.json", {"temperature": "hot"})
    result = run("generate", "hi", "--model", str(tmp_path / "model"))
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert "hot" in result.err


def test_a_warning_is_one_line_without_code(run: Run, tmp_path: Path) -> None:
    make_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    write_json(tmp_path / "config.json", {**config, "foo_bar": False})
    result = run("generate", "hi", "--raw", "--max-tokens", "1", "--model", str(tmp_path))
    assert result.code == 0
    assert f"warning: {tmp_path}/config.json: unknown keys have no effect: 'foo_bar' (false); " in result.err
    assert result.err.count("\n") == 1

"""The options of the KV cache, and the file that outlives the process."""

from pathlib import Path

import pytest

from tests.cli.conftest import Run, without_eos
from tests.support import make_model

GREEDY = ("--temperature", "0", "--max-tokens", "20")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--cache round", "'round' is not one of 'contiguous', 'rotating', 'quantized'"),
        ("--window 99", "window: 99 is for the rotating cache, found the contiguous one; set cache to rotating"),
        ("--cache quantized --sinks 2", "sinks: 2 is for the rotating cache, found the quantized one"),
        (
            "--kv-bits 4",
            "kv_bits: 4 is for the quantized cache, found the contiguous one; set cache to quantized or rotating",
        ),
        ("--cache quantized --kv-bits 3", "kv_bits: expected 8 or 4, found 3"),
        ("--cache quantized --kv-group-size 48", "kv_group_size: expected one of 32, 64, 128, found 48"),
        ("--cache rotating --window 4", "window: expected more than the 4 sinks that it includes, found 4"),
        ("--cache rotating --window 8 --sinks 9", "window: expected more than the 9 sinks that it includes, found 8"),
        ("--cache rotating --sinks -1", "sinks: expected an integer of at least 0, found -1"),
        ("--cache rotating --window 0", "window: expected an integer of at least 1, found 0"),
        ("--prompt-cache /nowhere/x", "/nowhere: expected a folder, found none"),
    ],
)
def test_bad_settings_are_wrong_usage(run: Run, model_dir: Path, line: str, message: str) -> None:
    result = run("generate", "--model", str(model_dir), *line.split(), "hi")
    assert (result.code, result.out) == (2, "")
    assert message in result.err and len(result.err.splitlines()) == 1


def test_groups_that_do_not_divide_the_heads(run: Run, tmp_path: Path) -> None:
    path = make_model(tmp_path / "odd", head_dim=80)
    result = run("generate", "--model", str(path), "--cache", "quantized", "hi")
    assert result.code == 1
    assert "cache: expected a head_dim that is a multiple of 32" in result.err
    assert "found the model's 80; take the contiguous or the rotating cache and leave kv_bits" in result.err
    result = run("generate", "--model", str(path), "--cache", "rotating", "--kv-bits", "8", "hi")
    assert result.code == 1
    assert "take the contiguous or the rotating cache and leave kv_bits and kv_group_size out" in result.err


@pytest.mark.parametrize("line", [
    "--cache rotating --window 40 --sinks 0", "--cache quantized --kv-bits 4",
    "--cache rotating --window 40 --kv-bits 4",
])  # fmt: skip
def test_every_cache_answers(run: Run, model_dir: Path, line: str) -> None:
    for command, stdin in (("generate", ""), ("chat", "hello\nthere\n")):
        words = [command, "--model", str(model_dir), *GREEDY, *without_eos(model_dir), *line.split()]
        result = run(*words, *(["hello"] if command == "generate" else []), stdin=stdin)
        assert (result.code, len(result.out) > 10) == (0, True), result.err


def test_a_prompt_cache_changes_no_answer(run: Run, model_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "kept.safetensors"
    line = ["generate", "--model", str(model_dir), *GREEDY, "the quick brown fox"]
    plain, first, second = run(*line), run(*line, "--prompt-cache", str(file)), run(*line, "--prompt-cache", str(file))
    assert file.exists()
    assert plain.out == first.out == second.out
    assert plain.code == first.code == second.code == 0


def test_a_chat_goes_on_from_its_file(run: Run, model_dir: Path, tmp_path: Path, monkeypatch) -> None:
    from tiny_llm.engine.llm import LLM

    loaded: list[int] = []
    load_cache = LLM.load_cache
    monkeypatch.setattr(LLM, "load_cache", lambda llm, path: loaded.append(load_cache(llm, path)))
    file = tmp_path / "kept.safetensors"
    line = ["chat", "--model", str(model_dir), *GREEDY, "--prompt-cache", str(file)]
    assert run(*line, stdin="hello\n").code == 0
    assert run(*line, stdin="hello\nthere\n").code == 0
    assert len(loaded) == 1 and loaded[0] > 10


def test_a_file_that_will_not_do_stops_before_the_answer_and_stays(run: Run, model_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("my notes")
    result = run("generate", "--model", str(model_dir), "--prompt-cache", str(file), "hi")
    assert (result.code, result.out) == (1, "")
    assert f"{file}: expected a tiny-llm prompt cache" in result.err
    assert file.read_text() == "my notes"


def test_nothing_is_written_after_a_failure(run: Run, model_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "kept.safetensors"
    line = ["generate", "--model", str(model_dir), "--max-context", "8", "--prompt-cache", str(file)]
    assert run(*line, "a prompt of more than eight tokens, all of it one by one").code == 1
    assert list(tmp_path.iterdir()) == []

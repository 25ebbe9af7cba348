"""models, doctor and bench."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tiny_llm import doctor
from tiny_llm.doctor import Fact
from tiny_llm.model import hub
from tiny_llm.model.hub import LocalModel

LOCAL = [
    LocalModel("Qwen/Qwen3-0.6B", "qwen3-0.6b", Path("/cache/a"), 1_512_345_678, True),
    LocalModel("me/mine", None, Path("/cache/b"), 900, False),
]


def test_models_list(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "local_models", lambda: LOCAL)
    lines = run("models", "list").out.splitlines()
    assert lines[0].split() == ["qwen3-0.6b", "Qwen/Qwen3-0.6B", "1.5", "GB"]
    assert lines[1].split(maxsplit=3) == ["me/mine", "900", "B", "incomplete: download it again"]
    assert lines[2] == "Inside: pocket, pocket-moe, pocket-draft"
    assert [line.split() for line in lines[5:]] == [[a, r] for a, r in hub.ALIASES.items() if a != "qwen3-0.6b"]


def test_models_list_json(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "local_models", lambda: LOCAL)
    data = json.loads(run("models", "list", "--json").out)
    assert data["models"][1] == {"repo": "me/mine", "alias": None, "path": "/cache/b", "size": 900, "complete": False}
    assert data["aliases"] == hub.ALIASES


def test_models_list_of_none(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "local_models", lambda: [])
    assert "No model has been downloaded yet." in run("models", "list").out


def test_models_download_prints_the_directory(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "download", lambda name, *, progress: Path("/cache") / name / str(progress))
    assert run("models", "download", "qwen3-4b").out == "/cache/qwen3-4b/False\n"


def test_models_remove(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "remove", {"qwen3-4b": 2_000_000}.__getitem__)
    assert run("models", "remove", "qwen3-4b", "--yes").out == "removed qwen3-4b: 2 MB freed\n"


@pytest.mark.parametrize(("state", "code"), [("ok", 0), ("warn", 0), ("fail", 1)])
def test_doctor_shows_facts_and_remedies(run: Run, monkeypatch: pytest.MonkeyPatch, state: str, code: int) -> None:
    facts = [Fact("BLAS", "ok", "[fast] one"), Fact("memory", state, "1 GB " * 40, "buy more")]  # type: ignore[arg-type]
    monkeypatch.setattr(doctor, "collect", lambda: facts)
    result = run("doctor")
    assert result.code == code
    first, second = result.out.splitlines()
    assert first.split() == ["ok", "BLAS", "[fast]", "one"]
    assert second.split()[:2] == [state, "memory"]
    assert second.endswith("1 GB ; buy more")
    data = json.loads(run("doctor", "--json").out)
    assert data[0] == {"name": "BLAS", "state": "ok", "value": "[fast] one", "remedy": ""}


def test_bench_measures_what_was_asked_and_nothing_cached(run: Run, model_dir: Path) -> None:
    from tiny_llm.cli.bench import run as measure
    from tiny_llm.engine.llm import load

    llm = load(model_dir)
    for seed in range(3):
        stats = measure(llm, 40, 7, seed)
        assert (stats.prompt_tokens, stats.cached_tokens, stats.generated_tokens) == (40, 0, 7)


def test_bench(run: Run, model_dir: Path) -> None:
    arguments = ("--model", str(model_dir), "--prompt-tokens", "20", "--max-tokens", "5", "--runs", "3")
    data = json.loads(run("bench", *arguments, "--json").out)
    assert {key: data[key] for key in ("model", "prompt_tokens", "max_tokens", "runs")} == {
        "model": "random-qwen3",
        "prompt_tokens": 20,
        "max_tokens": 5,
        "runs": 3,
    }
    cases = [row["case"] for row in data["rows"]]
    assert cases[:4] == ["prefill", "decode", "time to first token", "peak memory"]
    assert cases[4] in ("decode by memory", "decode by arithmetic")  # the roofline's bound
    assert all(0 < row["low"] <= row["median"] <= row["high"] for row in data["rows"])
    text = run("bench", *arguments).out.splitlines()
    assert text[0] == "random-qwen3: prompt 20, 5 written, median and range of 3 runs"
    assert [line.split("  ")[0] for line in text[1:5]] == cases[:4]
    assert text[5].startswith("decode by ")


def test_bench_beyond_the_context(run: Run, model_dir: Path) -> None:
    result = run("bench", "--model", str(model_dir), "--prompt-tokens", "500", "--max-tokens", "50")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "at most the context of 512, found 500 + 50" in result.err

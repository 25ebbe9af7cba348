"""`tiny-llm quantize`: what it writes and says, and what it refuses before any work."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.support import make_model
from tiny_llm.engine import llm as engine


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "dense", dtype="bfloat16")


def test_the_model_inside(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "pocket-4bit"
    result = run("quantize", "pocket", "-o", str(out), "--tokens", "600")
    assert result.code == 0
    first, head, weights, perplexity = result.out.splitlines()
    assert first == f"{out}: 29 matrices, 29 in 4 bits; groups of 64, 4.50 bits a weight"
    assert head.split() == ["before", "after"] and weights.split()[0] == "weights"
    name, before, after = perplexity.split()
    assert name == "perplexity" and 1 < float(before) < float(after) < 1.5 * float(before)
    text = engine.load(str(out)).generate("What is a KV cache?", max_tokens=5, ignore_eos=True)
    assert isinstance(text, engine.Completion) and len(text.tokens) == 5


def test_json_and_mixed_bits(run: Run, tmp_path: Path, dense: Path) -> None:
    out = tmp_path / "out"
    mixed = ("--predicate", "sensitive", "--bits", "3", "--high-bits", "6", "--target-bits", "5", "--group-size", "32")
    result = run("quantize", str(dense), "-o", str(out), *mixed, "--tokens", "300", "--json")
    told = json.loads(result.out)
    assert told["before"]["bytes"] > told["after"]["bytes"] > 0
    assert told["before"]["perplexity"] > 1 and told["after"]["perplexity"] > 1
    assert 4 < told["bits_per_weight"] <= 5
    assert told["quantization"] == json.loads((out / "config.json").read_text())["quantization"]
    own = [value for value in told["quantization"].values() if isinstance(value, dict)]
    assert own and all(value == {"bits": 6, "group_size": 32, "mode": "affine"} for value in own)
    first = (out / "model.safetensors").read_bytes()
    assert run("quantize", str(dense), "-o", str(out), *mixed, "--tokens", "0", "--overwrite").code == 0
    assert (out / "model.safetensors").read_bytes() == first


def test_without_measuring_nothing_is_loaded(
    run: Run, tmp_path: Path, dense: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "load", lambda *_, **__: pytest.fail("loaded"))
    result = run("quantize", str(dense), "-o", str(tmp_path / "x"), "--tokens", "0", "--predicate", "body")
    assert result.code == 0
    assert "14 in 4 bits" in result.out and "2 left dense" in result.out and "perplexity" not in result.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bits", "5"], "bits: expected 2 or 3 or 4 or 6 or 8, found 5"),
        (["--group-size", "16"], "group size: expected 32 or 64 or 128, found 16"),
        (["--group-size", "128"], "rows of 64, found 128: take 32 or 64"),
        (["--predicate", "sensitive"], "--target-bits goes with sensitive alone, found no --target-bits"),
        (["--target-bits", "5"], "--predicate all: --target-bits goes with sensitive alone, found one"),
        (["--predicate", "sensitive", "--target-bits", "9"], "expected 4.5 to 8.5"),
        (["--predicate", "sensitive", "--target-bits", "5", "--high-bits", "7"], "found 7"),
        (["--predicate", "sensitive", "--target-bits", "5", "--high-bits", "3"], "expected fewer than the 3"),
        (["--predicate", "some"], "'some'"),
        (["--tokens", "-1"], "-1"),
    ],
)
def test_bad_options_are_usage(
    run: Run, tmp_path: Path, dense: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.setattr(engine, "load", lambda *_, **__: pytest.fail("loaded"))
    result = run("quantize", str(dense), "-o", str(tmp_path / "x"), *options)
    assert (result.code, result.out) == (2, "")
    assert message in result.err and result.err.count("\n") == 1
    assert list(tmp_path.glob("x*")) == []


def test_bad_places_and_models(run: Run, tmp_path: Path, dense: Path) -> None:
    result = run("quantize", str(dense), "-o", str(dense), "--overwrite")
    assert result.code == 2 and "found the input" in result.err
    packed = make_model(tmp_path / "packed", quantize={"bits": 4, "group_size": 32})
    result = run("quantize", str(packed), "-o", str(tmp_path / "x"))
    assert result.code == 2 and "found one quantized to 4 bits already" in result.err
    result = run("quantize", str(dense), "-o", str(packed))
    assert result.code == 2 and "expected no such directory yet" in result.err
    assert run("quantize", str(dense)).code == 2

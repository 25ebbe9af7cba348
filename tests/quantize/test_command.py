"""`tiny-llm quantize`: what it writes and says, and what it refuses before any work."""

import json
from pathlib import Path

import mlx.core as mx
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


ODD = {"hidden_size": 64, "intermediate_size": 144}
DOWN = "model.layers.{}.mlp.down_proj"


@pytest.mark.parametrize("sensitive", [False, True], ids=["uniform", "sensitive"])
def test_a_layer_of_odd_width_stays_dense_and_is_named(run: Run, tmp_path: Path, sensitive: bool) -> None:
    """One width that no group size divides kept the whole model from being quantized."""
    odd, out = make_model(tmp_path / "odd", dtype="bfloat16", **ODD), tmp_path / "out"
    options = ["--predicate", "sensitive", "--target-bits", "6"] if sensitive else ["--bits", "4"]
    result = run("quantize", str(odd), "-o", str(out), "--tokens", "300", *options)
    assert result.code == 0, result.err
    assert "2 left dense" in result.out.splitlines()[0]
    told = result.out.splitlines()[1]
    assert "groups of 64 do not divide their rows: model.layers.*.mlp.down_proj (2 times, rows of 144);" in told
    sizes = {path: tensor.size for path, tensor in mx.load(str(odd / "model.safetensors")).items() if tensor.ndim == 2}
    stored = {path: tensor.nbytes for path, tensor in mx.load(str(out / "model.safetensors")).items()}
    in_matrices = sum(nbytes for path, nbytes in stored.items() if "norm" not in path)
    assert f"{8 * in_matrices / sum(sizes.values()):.2f} bits a weight over all matrices" in told
    table = json.loads((out / "config.json").read_text())["quantization"]
    assert [table[DOWN.format(i)] for i in (0, 1)] == [False, False]


def test_json_names_the_layers_that_stay_dense(run: Run, tmp_path: Path) -> None:
    odd = make_model(tmp_path / "odd", **ODD)
    told = json.loads(run("quantize", str(odd), "-o", str(tmp_path / "out"), "--tokens", "0", "--json").out)
    assert told["left_dense"] == [DOWN.format(0), DOWN.format(1)]
    assert told["bits_per_weight"] == 4.5 < told["bits_per_weight_overall"] < 16


@pytest.mark.parametrize("sensitive", [False, True], ids=["uniform", "sensitive"])
def test_a_model_that_no_group_fits_is_refused_with_the_numbers(run: Run, tmp_path: Path, sensitive: bool) -> None:
    options = ["--predicate", "sensitive", "--target-bits", "6"] if sensitive else []
    model = make_model(tmp_path / "odd", intermediate_size=96, head_dim=24)
    result = run("quantize", str(model), "-o", str(tmp_path / "x"), "--group-size", "128", "--tokens", "0", *options)
    assert (result.code, result.out) == (2, "")
    assert "expected one that divides a layer's rows of 64 or 96, found 128: take 32 or 64" in result.err
    model = make_model(tmp_path / "odder", hidden_size=80, intermediate_size=144, head_dim=20)
    result = run("quantize", str(model), "-o", str(tmp_path / "x"), "--tokens", "0", *options)
    assert (result.code, result.out) == (2, "")
    assert "a layer's rows of 80 or 144, found 64: this format can't hold the model" in result.err


def test_bad_places_and_models(run: Run, tmp_path: Path, dense: Path) -> None:
    result = run("quantize", str(dense), "-o", str(dense), "--overwrite")
    assert result.code == 2 and "found the input" in result.err
    packed = make_model(tmp_path / "packed", quantize={"bits": 4, "group_size": 32})
    result = run("quantize", str(packed), "-o", str(tmp_path / "x"))
    assert result.code == 2 and "found one quantized to 4 bits already" in result.err
    result = run("quantize", str(dense), "-o", str(packed))
    assert result.code == 2 and "expected no such directory yet" in result.err
    assert run("quantize", str(dense)).code == 2

"""A GGUF file wherever a command takes a model."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import Run
from tests.gguf_files import make_twins, pack
from tiny_llm import load
from tiny_llm.model import hub

GREEDY = ("--temperature", "0", "--max-tokens", "8", "--ignore-eos")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_twins(tmp_path_factory.mktemp("packed"), "llama", {"": "Q4_1", "output": "Q8_0"}, exact=False).file


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_twins(tmp_path_factory.mktemp("dense"), "qwen3", {"": "F16"}, exact=False).file


def test_generate(run: Run, file: Path) -> None:
    for model in (file, file.parent / "." / "model.gguf"):
        result = run("generate", "hello", "--model", str(model), *GREEDY, "--json")
        data = json.loads(result.out)
        expected = load(file).generate(
            [{"role": "user", "content": "hello"}], temperature=0, max_tokens=8, ignore_eos=True
        )
        assert (result.code, result.err) == (0, "")
        assert data["model"] == "model.gguf"
        assert data["completions"][0]["tokens"] == expected.tokens


def test_chat(run: Run, file: Path) -> None:
    result = run("chat", "--model", str(file), "--temperature", "0", "--max-tokens", "5", stdin="hello\n/stats\n")
    assert result.code == 0
    assert "written" in result.out


def test_bench(run: Run, file: Path) -> None:
    result = run("bench", "--model", str(file), "--prompt-tokens", "9", "--max-tokens", "3", "--runs", "1", "--json")
    assert result.code == 0
    assert {row["case"] for row in json.loads(result.out)["rows"]} >= {"prefill", "decode"}


def test_pictures_and_figures(run: Run, file: Path, tmp_path: Path) -> None:
    assert run("viz", "kv", "--model", str(file), "--out", str(tmp_path / "kv.html")).code == 0
    assert run("viz", "mask", "--prompt", "hello", "--model", str(file), "--out", str(tmp_path / "mask.html")).code == 0
    assert run("kernels", "roofline", "--model", str(file)).code == 0


def test_convert(run: Run, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("models", "convert", str(file), "-o", str(out))
    assert (result.code, result.out, result.err) == (0, f"{out}\n", "")
    same = [load(path).generate("hello", temperature=0, max_tokens=8).tokens for path in (file, out)]
    assert same[0] == same[1]
    again = run("models", "convert", str(file), "-o", str(out))
    assert (again.code, again.out) == (1, "")
    assert again.err == f"error: {out}: expected no such directory yet, found one: name another or remove it\n"


def test_convert_takes_the_file_of_an_alias(
    run: Run, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "packaged", lambda alias: file if alias == "smollm2-135m" else None)
    assert run("models", "convert", "smollm2-135m", "-o", str(tmp_path / "out")).code == 0
    result = run("models", "convert", "qwen3-0.6b", "-o", str(tmp_path / "none"))
    assert (result.code, result.out) == (2, "")
    assert "FILE: qwen3-0.6b: expected a GGUF file, found nothing of that name" in result.err


def test_quantize_takes_a_dense_file_and_refuses_a_packed_one(
    run: Run, file: Path, dense: Path, tmp_path: Path
) -> None:
    result = run("quantize", str(dense), "-o", str(tmp_path / "out"), "--group-size", "32", "--tokens", "60")
    assert result.code == 0 and "in 4 bits; groups of 32" in result.out
    assert len(load(tmp_path / "out").generate("hello", max_tokens=3, ignore_eos=True).tokens) == 3
    result = run("quantize", str(file), "-o", str(tmp_path / "none"))
    assert (result.code, result.out) == (2, "")
    assert f"{file}: expected a dense model, found one quantized to 4 bits already: take its original" in result.err


def test_a_broken_file_is_one_line(run: Run, file: Path, tmp_path: Path) -> None:
    (tmp_path / "short.gguf").write_bytes(file.read_bytes()[:2000])
    result = run("generate", "hi", "--model", str(tmp_path / "short.gguf"))
    assert (result.code, result.out, result.err.count("\n")) == (1, "", 1)
    assert "short.gguf: " in result.err and "damaged: download it again" in result.err
    missing = run("generate", "hi", "--model", "none.gguf")
    assert missing.err == "error: none.gguf: expected a model directory or a GGUF file, found nothing there\n"


def test_memory_that_some_types_cost_is_one_line(run: Run, tmp_path: Path) -> None:
    shape = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4}
    extra = {"output.weight": pack("Q6_K", np.ones((320, 256)))}
    file = make_twins(tmp_path, "llama", {"": "Q4_K"}, tie_word_embeddings=True, extra=extra, exact=False, **shape).file
    result = run("generate", "hi", "--model", str(file), *GREEDY)
    assert result.code == 0
    assert result.err == f"warning: {file}: takes more memory than the file: Q6_K as float16 0 MB instead of 0\n"

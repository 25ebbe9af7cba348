"""Quantized directories: what mlx-lm would write, read by both engines alike, written whole or not at all."""

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from mlx_lm.generate import generate_step

from tests.model.parity import close, ours, peer, peer_logits, prompt
from tests.support import make_model
from tiny_llm import SamplingParams, load
from tiny_llm.cache.contiguous import ContiguousCache
from tiny_llm.cache.recompute import RecomputeCache
from tiny_llm.config import QuantizationConfig
from tiny_llm.engine.llm import POCKET
from tiny_llm.model.loader import load_config
from tiny_llm.quantize import affine, write
from tiny_llm.quantize.plan import matrices, uniform

V_PROJ = "model.layers.1.self_attn.v_proj"


def tensors(directory: Path) -> dict[str, mx.array]:
    found: dict[str, mx.array] = {}
    for file in directory.glob("model*.safetensors"):
        found |= mx.load(str(file))
    return found


def same(a: dict[str, mx.array], b: dict[str, mx.array]) -> bool:
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and mx.array_equal(a[n], b[n]).item() for n in a)


def everything(directory: Path) -> dict[str, bytes]:
    return {str(file.relative_to(directory)): file.read_bytes() for file in directory.rglob("*") if file.is_file()}


def quantized(path: Path, out: Path, bits: int = 4, group_size: int = 32, **options: Any) -> Path:
    write.write_quantized(path, out, uniform(matrices(path), bits, group_size), **options)
    return out


@pytest.mark.parametrize(
    ("model_type", "dtype", "bits", "group_size", "options"),
    [
        ("qwen3", "bfloat16", 4, 64, {}),
        ("qwen3", "bfloat16", 2, 32, {"tie_word_embeddings": True}),
        ("qwen2", "float16", 3, 32, {}),
        ("qwen2", "bfloat16", 6, 64, {"shards": 3}),
        ("qwen3", "float16", 8, 128, {"hidden_size": 128, "num_attention_heads": 4}),
    ],
)
def test_the_tensors_are_those_of_mlx_lm(
    tmp_path: Path, model_type: str, dtype: str, bits: int, group_size: int, options: dict[str, Any]
) -> None:
    path = make_model(tmp_path / "in", model_type, dtype=dtype, **options)
    quantized(path, tmp_path / "ours", bits, group_size)
    theirs = str(tmp_path / "theirs")
    mlx_lm.convert(str(path), theirs, quantize=True, q_bits=bits, q_group_size=group_size)
    assert same(tensors(tmp_path / "ours"), tensors(Path(theirs)))
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("ours", "theirs")]
    assert configs[0]["quantization"] == configs[1]["quantization"] == configs[0]["quantization_config"]


def test_from_float32_it_is_what_mlx_lm_makes_in_bfloat16(tmp_path: Path) -> None:
    path = make_model(tmp_path / "in")
    quantized(path, tmp_path / "ours")
    mlx_lm.convert(str(path), str(tmp_path / "theirs"), quantize=True, q_bits=4, q_group_size=32, dtype="bfloat16")
    assert same(tensors(tmp_path / "ours"), tensors(tmp_path / "theirs"))
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["torch_dtype"] == "bfloat16"


MIXED = QuantizationConfig(
    4, 32, {V_PROJ: QuantizationConfig(8, 64), "model.layers.0.mlp.up_proj": QuantizationConfig(3, 32), "lm_head": None}
)


ODD_WIDTHS = {
    "down": {"intermediate_size": 144},
    "all but down and o": {"hidden_size": 72, "intermediate_size": 128},
    "o and down": {"head_dim": 20, "intermediate_size": 80},
    "tied": {"hidden_size": 72, "tie_word_embeddings": True},
}


@pytest.mark.parametrize("group_size", [32, 64])
@pytest.mark.parametrize("widths", ODD_WIDTHS)
def test_a_layer_of_odd_width_stays_dense_as_in_mlx_lm(tmp_path: Path, widths: str, group_size: int) -> None:
    """Such a model was refused as a whole."""
    path = make_model(tmp_path / "in", dtype="bfloat16", **ODD_WIDTHS[widths])
    out = quantized(path, tmp_path / "out", 4, group_size)
    theirs = tmp_path / "theirs"
    mlx_lm.convert(str(path), str(theirs), quantize=True, q_bits=4, q_group_size=group_size)
    assert same(tensors(out), tensors(theirs))
    table = json.loads((out / "config.json").read_text())["quantization"]
    found = tensors(out)
    paths = [name.removesuffix(".weight") for name, tensor in found.items() if tensor.ndim == 2]
    dense = {path for path in paths if f"{path}.weight" in found and f"{path}.scales" not in found}
    assert {name for name, value in table.items() if value is False} == dense != set()
    model, tokens = ours(out), prompt(30)
    close(model(mx.array(tokens), RecomputeCache(model.config, model.ops)), peer_logits(out, tokens))


@pytest.mark.parametrize("plan", [QuantizationConfig(4, 64), QuantizationConfig(2, 32), MIXED], ids=["4", "2", "mixed"])
@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
def test_both_engines_read_it_and_agree(tmp_path: Path, plan: QuantizationConfig, model_type: str) -> None:
    write.write_quantized(make_model(tmp_path / "in", model_type, dtype="bfloat16"), tmp_path / "out", plan)
    model, tokens = ours(tmp_path / "out"), prompt(30)
    close(model(mx.array(tokens), RecomputeCache(model.config, model.ops)), peer_logits(tmp_path / "out", tokens))
    cache = ContiguousCache(model.config, model.ops)
    said, logits = [], model(mx.array(tokens), cache, slice(-1, None))
    for _ in range(20):
        said.append(int(logits.argmax().item()))
        logits = model(mx.array(said[-1:]), cache)
    assert said == [int(token) for token, _ in generate_step(mx.array(tokens), peer(tmp_path / "out"), max_tokens=20)]


def test_the_model_inside_says_the_same_in_both_engines(tmp_path: Path) -> None:
    found = matrices(POCKET)
    few, many = uniform(found, 4, 64), QuantizationConfig(8, 64)
    plan = QuantizationConfig(4, 64, {m.path: many for m in found if "down_proj" in m.path})
    for name, each in (("few", few), ("mixed", plan)):
        write.write_quantized(POCKET, tmp_path / name, each)
        llm = load(tmp_path / name)
        tokens = llm.encode([{"role": "user", "content": "What is a KV cache?"}])
        said = llm.generate(tokens, SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)).tokens
        assert said == [int(t) for t, _ in generate_step(mx.array(tokens), peer(tmp_path / name), max_tokens=16)]


def test_each_layer_has_its_own_bits(tmp_path: Path) -> None:
    write.write_quantized(make_model(tmp_path / "in", dtype="bfloat16"), tmp_path / "out", MIXED)
    found = tensors(tmp_path / "out")
    assert found[f"{V_PROJ}.weight"].shape == (64, 64 * 8 // 32)
    assert found[f"{V_PROJ}.scales"].shape == (64, 1)
    assert found["model.layers.0.mlp.up_proj.weight"].shape == (128, 64 * 3 // 32)
    assert found["lm_head.weight"].dtype == mx.bfloat16 and "lm_head.scales" not in found
    settings = load_config(tmp_path / "out").quantization
    assert settings and (settings.layers[V_PROJ], settings.bits) == (QuantizationConfig(8, 64), 4)


def test_it_is_what_the_plain_twin_gives(tmp_path: Path) -> None:
    path = make_model(tmp_path / "in", dtype="bfloat16")
    for bits in (2, 3, 4, 6, 8):
        found = tensors(quantized(path, tmp_path / str(bits), bits))
        for name, weight in tensors(path).items():
            if weight.ndim == 2:
                twin = affine.quantize(weight, 32, bits)
                named = {part: found[name.removesuffix("weight") + part] for part in twin}
                assert same(named, twin), name


def test_large_models_are_written_in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_model(tmp_path / "in", dtype="bfloat16")
    whole = quantized(path, tmp_path / "whole")
    monkeypatch.setattr(write, "SHARD", 20_000)
    parts = quantized(path, tmp_path / "parts")
    files = sorted(file.name for file in parts.glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors" and len(files) > 2
    assert all((parts / file).stat().st_size < 25_000 for file in files)
    assert same(tensors(parts), tensors(whole))
    index = json.loads((parts / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors(whole).values())
    close(*(ours(p)(mx.array([1, 2, 3]), RecomputeCache(load_config(p), ours(p).ops)) for p in (parts, whole)))


def test_all_that_belongs_to_the_model_comes_along(tmp_path: Path) -> None:
    path = make_model(tmp_path / "in", shards=2)
    (path / "chat_template.jinja").write_text("{{ messages }}")
    (path / "additional_chat_templates").mkdir()
    (path / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    (path / "README.md").write_text("figures of the dense model")
    before = everything(path)
    out = quantized(path, tmp_path / "out")
    assert everything(path) == before
    names = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    names.add("additional_chat_templates/tool_use.jinja")
    assert set(everything(out)) == names | {"model.safetensors"}
    changed = ("config.json", "model.safetensors")
    assert all(data == before[name] for name, data in everything(out).items() if name not in changed)


FAILURES = {
    "while weights are written": ("mx.save_safetensors", OSError("no space left")),
    "while the rest is written": ("write_json", OSError("no space left")),
    "while it is flushed": ("os.fsync", OSError("input/output error")),
    "by Ctrl-C": ("_packed", KeyboardInterrupt()),
}


@pytest.mark.parametrize("there", [False, True], ids=["a new place", "an old model there"])
@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: str, there: bool
) -> None:
    path, out = make_model(tmp_path / "in"), tmp_path / "out"
    if there:
        quantized(path, out, bits=8)
    before = everything(tmp_path)
    name, error = FAILURES[failure]

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(f"tiny_llm.quantize.write.{name}", fail)
    with pytest.raises(type(error)):
        quantized(path, out, overwrite=True)
    monkeypatch.undo()
    assert everything(tmp_path) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == (["in", "out"] if there else ["in"])
    assert ours(quantized(path, out, overwrite=True)).config.quantization == QuantizationConfig(4, 32)


def test_a_disk_that_fills_up_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLX's writer may say nothing."""
    path, save = make_model(tmp_path / "in"), mx.save_safetensors

    def short(file: str, *rest: Any) -> None:
        save(file, *rest)
        with open(file, "r+b") as handle:
            handle.truncate(Path(file).stat().st_size - 100)

    monkeypatch.setattr(write.mx, "save_safetensors", short)
    with pytest.raises(ValueError, match=r"expected \d+ bytes of tensors, found"):
        quantized(path, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_a_full_disk_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLX's error of a full disk has no name of a file, and was shown as an unexpected one."""
    path = make_model(tmp_path / "in")

    def full(*_: Any) -> None:
        raise RuntimeError("[write] Unable to write 7 bytes to file.")

    monkeypatch.setattr(write.mx, "save_safetensors", full)
    with pytest.raises(OSError, match=f"^{tmp_path}: weights can't be written there: .*Is the disk full"):
        quantized(path, tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=f"^{tmp_path}/file: expected a folder, found a file: name another place"):
        quantized(path, tmp_path / "file" / "out")


def test_a_move_that_fails_half_way_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_model(tmp_path / "in")
    quantized(path, tmp_path / "out", bits=8)
    before, rename = everything(tmp_path), Path.rename

    def fail(self: Path, target: Path) -> Path:
        if Path(target) == tmp_path / "out" and ".old." not in str(self):
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="no"):
        quantized(path, tmp_path / "out", overwrite=True)
    assert everything(tmp_path) == before


def test_places_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_model(tmp_path / "in")
    (tmp_path / "link").symlink_to(path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    (tmp_path / "file").touch()
    dense = make_model(tmp_path / "dense")
    before = everything(tmp_path)
    for out in (path, path / "4bit", tmp_path, tmp_path / "link", path / ".." / "in"):
        with pytest.raises(ValueError, match="a place of its own for the result, found the input"):
            quantized(path, out, overwrite=True)
    with pytest.raises(ValueError, match="photos: expected no such directory yet, found one: name another, or allow"):
        quantized(path, tmp_path / "photos")
    for out in (tmp_path / "photos", tmp_path / "file", dense):
        with pytest.raises(ValueError, match="expected a quantized model to overwrite, found something else"):
            quantized(path, out, overwrite=True)
    monkeypatch.chdir(path)
    with pytest.raises(ValueError, match="found the input"):
        quantized(path, Path("."), overwrite=True)
    assert everything(tmp_path) == before


def test_models_that_are_refused(tmp_path: Path) -> None:
    packed = make_model(tmp_path / "packed", quantize={"bits": 6, "group_size": 32})
    with pytest.raises(ValueError, match="packed: expected a dense model, found one quantized to 6 bits already: take"):
        quantized(packed, tmp_path / "out")
    path = make_model(tmp_path / "in")
    with pytest.raises(ValueError, match=r"down_proj: .*divides its rows of 96, found 64: take 32"):
        odd = make_model(tmp_path / "odd", intermediate_size=96)
        write.write_quantized(odd, tmp_path / "out", QuantizationConfig(4, 64))
    weights = tensors(path)
    weights[f"{V_PROJ}.weight"] = mx.where(mx.arange(64) == 3, np.inf, weights[f"{V_PROJ}.weight"])
    mx.save_safetensors(str(path / "model.safetensors"), weights)
    with pytest.raises(ValueError, match="1.self_attn.v_proj: expected finite weights"):
        quantized(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    shutil.rmtree(path)
    with pytest.raises(ValueError, match=r"config.json: expected a file, found nothing"):
        quantized(path, tmp_path / "out")


def test_a_place_that_can_not_be_made_is_told_at_the_start(tmp_path: Path) -> None:
    """The error named a temporary folder, after all the work."""
    path = make_model(tmp_path / "in")
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(ValueError, match=f"^{tmp_path}/link: .*found a link that leads nowhere"):
        quantized(path, tmp_path / "link")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "link"]

"""Pictures of routing: the choices are those of the router's logits, the figures those of their counts."""

import re
import xml.dom.minidom
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from tests.support import make_model
from tiny_llm.cli import main
from tiny_llm.model import expert_load, ops
from tiny_llm.views import divergence, experts, record

TOKENS = [3, 1, 4, 1, 5, 9, 2]
SHAPE = {"num_experts": 8, "num_experts_per_tok": 3, "num_hidden_layers": 4, "decoder_sparse_step": 2}
LAYERS = [1, 3]  # of SHAPE, those with experts


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("viz") / "model", "qwen3_moe", **SHAPE)


@pytest.fixture(scope="module")
def found(path: Path) -> list[experts.LayerRouting]:
    return experts.record_routing(record.load(path), TOKENS)


def test_the_choices_are_the_largest_logits_of_each_router(path: Path, found: list[experts.LayerRouting]) -> None:
    notes = record.record(record.load(path), TOKENS)
    assert [routing.layer for routing in found] == LAYERS
    for routing in found:
        logits = notes[f"layer {routing.layer} router"].astype(np.float64)
        order = np.argsort(-logits, axis=1)[:, :3]
        np.testing.assert_array_equal(routing.experts, order)
        e = np.exp(np.take_along_axis(logits, order, axis=1))
        np.testing.assert_allclose(routing.shares, e / e.sum(axis=1, keepdims=True), atol=1e-5)
        assert routing.counts.tolist() == [int((order == expert).sum()) for expert in range(8)]


def test_the_words_have_every_choice_and_the_load(found: list[experts.LayerRouting]) -> None:
    words = ["a", "an unusually long word", *"bcdef"]
    routes, loads = experts.describe(words, found).split("\n\n")
    head, first, second, *_ = routes.splitlines()
    assert head.split() == ["token", "layer", "1", "layer", "3"]
    assert first.split() == ["a", *(str(e) for routing in found for e in routing.experts[0])]
    assert second.startswith("an unusuall…  ")
    for line, routing in zip(loads.splitlines()[1:], found, strict=True):
        counts = routing.counts
        assert line.split()[:2] == [str(routing.layer), str(counts.max())]
        figures = [f"{expert_load.variation(counts):.2f}", f"{expert_load.entropy(counts):.2f}"]
        assert line.split()[-3:] == [str((counts == 0).sum()), *figures]


def test_pictures_are_whole_and_every_choice_is_drawn(found: list[experts.LayerRouting]) -> None:
    words = ["<a>", *"bcdefg"]
    load = experts.draw_load("load", found)
    tips = re.findall(r"<title>layer (\d), expert (\d): (\d+) choices</title>", load.svg())
    counted = {(int(layer), int(expert)): int(count) for layer, expert, count in tips}
    assert counted == {(r.layer, expert): int(n) for r in found for expert, n in enumerate(r.counts)}
    worst = max(found, key=lambda routing: expert_load.variation(routing.counts))
    assert f"Layer {worst.layer} is the least even: variation {expert_load.variation(worst.counts):.2f}" in load.alt
    for routing in found:
        drawing = experts.draw_tokens("tokens", words, routing)
        xml.dom.minidom.parseString(drawing.svg())
        drawn = re.findall(r"<title>(\S+) goes to expert (\d), share", drawing.svg())
        assert [int(expert) for _, expert in drawn] == routing.experts.reshape(-1).tolist()
        assert drawn[0][0] == "&lt;a&gt;"
    xml.dom.minidom.parseString(load.svg())


@pytest.mark.parametrize(("num_experts", "step"), [(8, 1), (60, 10), (600, 100)])
def test_many_experts_fit_the_picture_and_their_numbers_do_not_overlap(
    tmp_path: Path, num_experts: int, step: int
) -> None:
    path = make_model(tmp_path, "qwen2_moe", num_experts=num_experts, num_experts_per_tok=4, moe_intermediate_size=8)
    found = experts.record_routing(record.load(path), TOKENS)
    load = experts.draw_load("load", found)
    assert load.width < 900
    written = re.findall(r'font-size="10"[^>]*>(\d+)<', load.svg())
    assert [int(number) for number in written] == list(range(0, num_experts, step))


def test_a_model_of_one_layer_with_one_expert_is_drawn(tmp_path: Path) -> None:
    path = make_model(tmp_path, "qwen3_moe", num_hidden_layers=1, num_experts=1, num_experts_per_tok=1)
    found = experts.record_routing(record.load(path), [3])
    assert experts.describe(["a"], found).splitlines()[-1].split() == [
        "0",
        *"1 (expert 0) 1 (expert 0) 0 0.00 1.00".split(),
    ]
    xml.dom.minidom.parseString(experts.draw_load("load", found).svg())
    xml.dom.minidom.parseString(experts.draw_tokens("tokens", ["a"], found[0]).svg())


def test_the_command_writes_a_page(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x.html"
    assert main(["viz", "experts", "--model", str(path), "--prompt", "the quick fox", "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert told.startswith("token") and "variation" in told and told.endswith(f"picture: {out}\n")
    assert out.read_text().count("<svg") == 1 + len(LAYERS)
    assert main(["viz", "experts", "--model", str(path), "--layer", "3", "--out", str(out)]) == 0
    assert out.read_text().count("<svg") == 2


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--layer", "0"], "--layer: layer: expected a layer with experts (1, 3), found 0"),
        (["--prompt", ""], "--prompt: prompt: expected at least one token, found none"),
        (["--prompt", "fox " * 400], "--prompt: prompt: expected at most 256 tokens for a picture"),
        (["--out", "a.svg"], "ends in .html, found a.svg"),
    ],
)
def test_bad_input_is_one_line(
    path: Path, words: list[str], complaint: str, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["viz", "experts", "--model", str(path), *words]) == 2
    error = capsys.readouterr().err
    assert complaint in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_dense_model_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dense = make_model(tmp_path / "dense")
    no_layer = make_model(tmp_path / "no-layer", "qwen3_moe", decoder_sparse_step=5)
    for name, model in (
        ("pocket", ["--model", "pocket"]),
        ("dense", ["--model", str(dense)]),
        ("no-layer", ["--model", str(no_layer)]),
    ):
        assert main(["viz", "experts", *model, "--out", str(tmp_path / "x.html")]) == 2
        assert f"{name}: expected a model with experts, found a dense one (model_type " in capsys.readouterr().err
    assert not (tmp_path / "x.html").exists()


@pytest.mark.parametrize("kind", ["qwen3_moe", "qwen2_moe"])
def test_every_tensor_of_a_layer_with_experts_is_recorded(tmp_path: Path, kind: str) -> None:
    """Only the last of the experts was recorded, as if it were the layer's MLP."""
    model = record.load(make_model(tmp_path, kind))
    notes = record.record(model, TOKENS)
    names = ["post_attention_layernorm", "router", "routing", "experts"]
    if kind == "qwen2_moe":
        names += [f"shared_expert {name}" for name in ("gate", "gate_up_proj", "swiglu", "down_proj")]
    recorded = [name.removeprefix("layer 0 ") for name in notes if name.startswith("layer 0 ")]
    assert recorded[recorded.index("post_attention_layernorm") :] == names
    assert notes["layer 0 routing"].shape == (len(TOKENS), 4)
    assert (notes["layer 0 routing"] > 0).sum() == 2 * len(TOKENS)
    np.testing.assert_array_equal(
        notes["logits"], np.array(model(mx.array(TOKENS), record.RecomputeCache(model.config, ops.PLAIN)))
    )


def test_a_wrong_mixture_is_named(tmp_path: Path) -> None:
    model = record.load(make_model(tmp_path, "qwen3_moe"))
    reference = record.record(model, TOKENS)
    twice = lambda x, routing, w, table: 2 * ops.PLAIN.experts(x, routing, w, table)  # noqa: E731
    rows = divergence.compare(reference, record.record(model, TOKENS, ops.PLAIN._replace(experts=twice)))
    assert next(row.name for row in rows if row.differs) == "layer 0 experts"
    assert divergence.describe_differences(rows).endswith("look at: moe.py (3.6)")

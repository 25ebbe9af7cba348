"""The ablations of the appendix: each changes one thing, and the exam measures copying and nothing else."""

import json
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from bench import pocket_ablation as ablation
from tiny_llm.pocket.trainer import PocketTrainer
from tiny_llm.train.differentiable import TreeAttention
from tiny_llm.train.optimizer import flatten


def trainer(name: str = "recipe") -> PocketTrainer:
    variant = ablation.VARIANTS[name]
    made = PocketTrainer(variant.recipe(ablation.BASE), Path(), lambda text: [], name)
    variant.prepare(made)
    return made


def test_exam_rows_are_distinct_tokens_twice() -> None:
    rows = ablation.rounds(16)
    assert rows.shape == (ablation.ROWS, 32) and (rows[:, :16] == rows[:, 16:]).all()
    assert all(len(set(row.tolist())) == 16 for row in rows)


@pytest.mark.parametrize(("back", "low", "high"), [(-1, 1.0, 1.0), (0, 0.0, 0.05), (1, 0.0, 0.05)])
def test_only_who_names_the_token_behind_passes(
    monkeypatch: pytest.MonkeyPatch, back: int, low: float, high: float
) -> None:
    """A stand-in for the model says, for each place of the rows, what stands `back` before the same token."""
    said = np.roll(ablation.rounds(16), back, axis=1).reshape(-1)

    class Copier:
        def __init__(self, *_: object):
            pass

        def logits(self, places: mx.array) -> mx.array:
            return 20.0 * (mx.arange(ablation.VOCAB_SIZE) == mx.array(said)[places][:, None])

    monkeypatch.setattr(ablation, "Qwen3", Copier)
    monkeypatch.setattr(ablation, "hidden_states", lambda _, tokens: mx.arange(tokens.size))
    assert low <= ablation.exam(trainer(), 16)[0] <= high


def test_a_model_that_knows_nothing_has_the_loss_of_chance() -> None:
    right, loss = ablation.exam(trainer(), 16)
    assert right < 0.05 and abs(loss - np.log(ablation.VOCAB_SIZE)) < 1


@pytest.mark.parametrize("name", ablation.VARIANTS)
def test_each_variant_changes_its_one_thing(name: str) -> None:
    base, made = trainer(), trainer(name)
    settings = {key for key, value in vars(base.recipe).items() if getattr(made.recipe, key) != value}
    optimizer = type(base.optimizer) is not type(made.optimizer)
    weights = flatten(base.weights)
    same = name != "one-layer" and {
        key for key, value in flatten(made.weights).items() if (value != weights[key]).any()
    }
    changed = {
        "recipe": (set(), False, set()),
        "no-curriculum": ({"repeats"}, False, set()),
        "adamw": (set(), True, set()),
        "adamw-slow": (set(), True, set()),
        "gain-1": ({"qk_gain"}, False, {f"layers.{i}.{x}_norm.weight" for i in range(2) for x in "qk"}),
        "random-projections": (set(), False, {f"layers.{i}.{x}_proj.weight" for i in range(2) for x in ("o", "down")}),
        "one-layer": ({"size"}, False, False),
    }
    assert (settings, optimizer, same) == changed[name]


def test_adamw_alone_trains_the_matrices_too() -> None:
    made = trainer("adamw")
    before = flatten(made.weights)["layers.0.qkv_proj.weight"], flatten(made.weights)["layers.0.o_proj.weight"]
    for _ in range(2):
        made.step()
    assert not any(name.startswith("muon") for name in made.optimizer.state)
    after = flatten(made.weights)["layers.0.qkv_proj.weight"], flatten(made.weights)["layers.0.o_proj.weight"]
    assert all((a != b).any() for a, b in zip(before, after, strict=True))


def test_the_weights_that_are_drawn_are_those_of_attention() -> None:
    """Applied to the values they give what the layer's attention gives."""
    length, rows = 8, 2
    positions = mx.broadcast_to(mx.arange(length), (rows, length))
    visible = mx.broadcast_to(mx.tri(length).astype(mx.bool_), (rows, length, length))
    q, k, v = (mx.random.normal((rows * length, heads, 16), key=mx.random.key(i)) for i, heads in enumerate((4, 2, 2)))
    seen: list[mx.array] = []
    out = ablation.Watching(positions, visible, seen).attend(0, q, k, v)
    assert mx.array_equal(out, TreeAttention(positions, visible).attend(0, q, k, v))
    values = mx.repeat(v.reshape(rows, length, 2, 16).swapaxes(1, 2), 2, axis=1)  # (B, Hq, T, D)
    attended = (seen[0] @ values).swapaxes(1, 2).reshape(out.shape)
    assert mx.allclose(attended, out, atol=1e-5)


def test_a_head_is_only_lent_away() -> None:
    made = trainer("random-projections")
    before = flatten(made.weights)
    ablation.without(made, 1, 2)
    assert all(mx.array_equal(a, before[name]) for name, a in flatten(made.weights).items())


def test_a_run_that_is_there_is_not_made_again_unless_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablation, "RUNS", tmp_path / "runs.json")
    monkeypatch.setattr(ablation, "HEADS", tmp_path / "heads.json")
    monkeypatch.setattr(ablation, "LOG_EVERY", 1)
    monkeypatch.setattr(ablation, "BASE", replace(ablation.BASE, step_tokens=256))
    ablation.make("one-layer", 1, 500)
    found = json.loads((tmp_path / "runs.json").read_text())
    (run,) = found["runs"]
    assert (run["variant"], run["seed"], len(run["log"])) == ("one-layer", 1, 3) and run["tokens"] >= 500
    ablation.make("one-layer", 1, 1000)
    (longer,) = json.loads((tmp_path / "runs.json").read_text())["runs"]
    assert longer["tokens"] >= 1000 and longer["log"][:3] == run["log"]
    monkeypatch.setattr(ablation, "train", lambda *_: pytest.fail("made again"))
    ablation.make("one-layer", 1, 500)

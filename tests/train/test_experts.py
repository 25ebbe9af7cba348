"""Training of models with experts: one wide MLP in their place, the balance loss, matrices in stacks, files."""

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from tests.train.examples import ROUTED, SETTINGS, Repeating, hf_config, weights_of
from tiny_llm.model import loader, moe
from tiny_llm.model.ops import PLAIN
from tiny_llm.train.experts import wide_experts
from tiny_llm.train.optimizer import Optimizer, flatten
from tiny_llm.train.weights_io import TrainedWeights, save_model


def noisy(seed: int = 0) -> TrainedWeights:
    """Weights none of which is zero."""
    keys = iter(mx.random.split(mx.random.key(seed), 20))
    return tree_map(lambda w: w + 0.05 * mx.random.normal(w.shape, key=next(keys)), weights_of(ROUTED))


def test_one_wide_mlp_gives_the_experts_results_and_slopes() -> None:
    layer = noisy()["layers"][0]
    x = mx.random.normal((7, 128), key=mx.random.key(1))
    assert ROUTED.moe
    routing = moe.route(x @ layer["router"]["weight"].T, ROUTED.moe)

    def total(experts, weights):
        return (experts(x, routing, weights, PLAIN) ** 2).sum()

    for function in (total, lambda *arguments: mx.grad(total, argnums=1)(*arguments)):
        ours, plain = (function(experts, layer["experts"]) for experts in (wide_experts, moe.each_expert))
        ours, plain = ({"": ours}, {"": plain}) if isinstance(ours, mx.array) else (flatten(ours), flatten(plain))
        for name, array in plain.items():
            np.testing.assert_allclose(np.array(ours[name]), np.array(array), rtol=1e-3, atol=1e-4)


def test_the_balance_loss_counts_as_the_settings_say(tmp_path: Path) -> None:
    losses = []
    for balance in (0.0, 0.5, 1.0):
        trainer = Repeating(tmp_path, replace(SETTINGS, balance=balance), config=ROUTED)
        batch = trainer.batch(np.random.default_rng(0))
        losses.append(trainer.loss(trainer.weights, batch)[0].item())
    assert losses[1] - losses[0] >= 0.5 * 0.99  # the loss of an even load is 1
    np.testing.assert_allclose(losses[2] - losses[1], losses[1] - losses[0], rtol=1e-3)


def test_a_router_that_prefers_one_expert_is_pushed_back(tmp_path: Path) -> None:
    trainer = Repeating(tmp_path, replace(SETTINGS, balance=10.0), config=ROUTED)
    trainer.weights = noisy()
    router = trainer.weights["layers"][0]["router"]
    x = mx.random.normal((50, 128), key=mx.random.key(1))
    router["weight"] = router["weight"].at[2].add(3 * x.mean(axis=0))

    def loss(weight):
        logits = x @ weight.T
        return moe.balance_loss(logits, moe.route(logits, ROUTED.moe).experts)

    before = loss(router["weight"]).item()
    assert loss(router["weight"] - 5.0 * mx.grad(loss)(router["weight"])).item() < before


def test_each_matrix_of_a_stack_is_made_orthogonal_by_itself() -> None:
    weights, gradients = noisy(), noisy(1)
    stacked, _ = Optimizer(ROUTED, 0.01, 1e-3, 1e9).update(weights, gradients, 1.0)
    for name in ("gate_up_proj", "down_proj"):
        for index in range(4):
            alone = Optimizer(ROUTED, 0.01, 1e-3, 1e9)
            own, slope = (
                {"layers": [{name: {"weight": tree["layers"][0]["experts"][name]["weight"][index]}}]}
                for tree in (weights, gradients)
            )
            changed, _ = alone.update(own, slope, 1.0)
            got = stacked["layers"][0]["experts"][name]["weight"][index]
            np.testing.assert_allclose(np.array(got), np.array(changed["layers"][0][name]["weight"]), atol=1e-5)


def test_a_saved_model_is_loaded_with_the_same_weights(tmp_path: Path) -> None:
    weights = noisy()
    save_model(tmp_path, weights, hf_config("qwen3_moe"), (1, 2))
    config = loader.load_config(tmp_path)
    loaded = flatten(loader.load_weights(tmp_path, config, mx.float32))
    assert config.moe == ROUTED.moe
    for name, array in flatten(weights).items():
        np.testing.assert_array_equal(np.array(loaded[name]), np.array(array.astype(mx.bfloat16).astype(mx.float32)))

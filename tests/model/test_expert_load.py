"""Figures of a router's load, and the bias that evens it out."""

import mlx.core as mx
import pytest

from tiny_llm.config.moe import MoeConfig
from tiny_llm.model.expert_load import dropped_share, entropy, variation
from tiny_llm.model.moe import adjusted_bias, counts_of, route


@pytest.mark.parametrize(
    ("counts", "spread", "evenness"),
    [
        ([5, 5, 5, 5], 0.0, 1.0),
        ([8, 0, 0, 0], 3**0.5, 0.0),  # deviations of 6, 2, 2 and 2 from a mean of 2
        ([4, 4, 0, 0], 1.0, 0.5),
        ([3, 1], 0.5, 0.811278),
        ([7], 0.0, 1.0),
        ([0, 0], 0.0, 1.0),
    ],
)
def test_variation_and_entropy_are_those_computed_by_hand(counts: list[int], spread: float, evenness: float) -> None:
    assert variation(counts) == pytest.approx(spread)
    assert entropy(counts) == pytest.approx(evenness, abs=1e-6)


@pytest.mark.parametrize(
    ("counts", "capacity", "dropped"),
    [
        ([4, 4, 4, 4], 1.0, 0.0),
        ([8, 4, 2, 2], 1.0, 0.25),  # 4 places each: 4 of 16 find none
        ([8, 4, 2, 2], 1.25, 3 / 16),
        ([8, 4, 2, 2], 2.0, 0.0),
        ([3, 2, 2], 1.0, 1 / 7),  # 2.33 places are 2
        ([0, 0], 1.0, 0.0),
    ],
)
def test_choices_beyond_the_capacity_are_dropped(counts: list[int], capacity: float, dropped: float) -> None:
    assert dropped_share(counts, capacity) == pytest.approx(dropped)


def test_counts_may_be_an_array_of_any_dtype() -> None:
    assert variation(mx.array([3, 1]).astype(mx.bfloat16)) == pytest.approx(0.5)


@pytest.mark.parametrize("figure", [variation, entropy, lambda counts: dropped_share(counts, 1.0)])
@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([], r"one number of choices for each expert, found an array of \(0,\)"),
        ([[1, 2]], r"one number of choices for each expert, found an array of \(1, 2\)"),
        ([1, -2], "finite numbers of choices from 0 up, found -2"),
        ([1, float("nan")], "finite numbers of choices from 0 up, found nan"),
    ],
)
def test_counts_that_cannot_be_are_refused(figure, counts: list, message: str) -> None:
    with pytest.raises(ValueError, match=f"counts: expected {message}"):
        figure(counts)


@pytest.mark.parametrize("capacity", [0.0, -1.0, float("inf"), float("nan")])
def test_a_capacity_that_cannot_be_is_refused(capacity: float) -> None:
    with pytest.raises(ValueError, match=f"capacity: expected a finite factor above 0, found {capacity}"):
        dropped_share([1, 2], capacity)


def test_the_bias_goes_up_where_the_load_is_low() -> None:
    bias = adjusted_bias(mx.array([0.5, 0.0, 0.0]), mx.array([6.0, 0.0, 3.0]), 0.25)
    assert bias.tolist() == [0.25, 0.25, 0.0]


def test_steps_of_the_bias_even_out_a_router_with_favourites() -> None:
    config = MoeConfig(8, 2, expert_size=4, normalize=True, layers=(0,))
    logits = mx.random.normal((400, 8), key=mx.random.key(0)) + mx.arange(8.0) / 3
    bias = mx.zeros(8)
    before = variation(counts_of(route(logits, config).experts, 8))
    for _ in range(200):
        load = counts_of(route(logits, config, bias).experts, 8)
        bias = adjusted_bias(bias, load, 0.002)
    assert before > 0.5
    assert variation(counts_of(route(logits, config, bias).experts, 8)) < before / 4

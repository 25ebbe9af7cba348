"""Mixed precision: damage as measured on whole quantized models, bits where it is greatest, within the budget."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.model.parity import ours, prompt
from tests.support import make_model
from tiny_llm.cache.recompute import RecomputeCache
from tiny_llm.config import QuantizationConfig
from tiny_llm.engine.llm import POCKET
from tiny_llm.model.qwen3 import Qwen3
from tiny_llm.model.tokenizer import Tokenizer
from tiny_llm.pocket.lessons.conversations import LONGEST, conversations
from tiny_llm.quantize.perplexity import Text, perplexity
from tiny_llm.quantize.plan import ENDS, Matrix, bits_per_weight, matrices, uniform
from tiny_llm.quantize.sensitive import JOINED, Unit, choose_bits, measure
from tiny_llm.quantize.write import write_quantized

TEXTS = [Text(prompt(12), 1), Text(prompt(7, seed=1), 5), Text(prompt(3, seed=2), 3)]


def measured(model: Qwen3, texts: list[Text], bits: int, group_size: int = 32) -> list[Unit]:
    return measure(model, texts, lambda: RecomputeCache(model.config, model.ops), bits, group_size)


def log_softmax(model: Qwen3) -> np.ndarray:
    """Of all predicted tokens of TEXTS, in float64."""
    rows = []
    for tokens, start in TEXTS:
        logits = np.array(model(mx.array(tokens), RecomputeCache(model.config, model.ops)), np.float64)
        rows.append(logits[start - 1 : len(tokens) - 1])
    logits = np.concatenate(rows)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.mark.parametrize("bits", [2, 4])
def test_damage_is_that_of_a_model_with_only_this_unit_quantized(tmp_path: Path, bits: int) -> None:
    """Each such model is written and loaded; KL by its definition in float64."""
    path = make_model(tmp_path / "in", dtype="bfloat16")
    dense = log_softmax(ours(path))
    units = measured(ours(path), TEXTS, bits)
    assert len(units) == 2 + 2 * len(JOINED)
    paths = {matrix.path for matrix in matrices(path)}
    assert sorted(p for unit in units for p in unit.paths) == sorted(paths)
    for i in (0, 1, 2, 4, 5, 9):
        plan = QuantizationConfig(bits, 32, dict.fromkeys(paths - set(units[i].paths)))
        write_quantized(path, tmp_path / str(i), plan)
        only = log_softmax(ours(tmp_path / str(i)))
        assert units[i].damage == pytest.approx((np.exp(dense) * (dense - only)).sum(-1).mean(), rel=1e-3)


def test_measuring_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = ours(make_model(tmp_path / "in", tie_word_embeddings=True))
    before = log_softmax(model)
    first, again = measured(model, TEXTS, 3), measured(model, TEXTS, 3)
    assert (log_softmax(model) == before).all()
    assert first == again and all(unit.damage > 0 for unit in first)
    assert first[0].paths == ("model.embed_tokens",) and len(first) == 1 + 2 * len(JOINED)


UNITS = [Unit(("a", "b"), 100, 0.5), Unit(("c",), 200, 1.2), Unit(("d",), 100, 0.1), Unit(("e",), 50, 0.25)]


@pytest.mark.parametrize(
    ("target", "high"),
    [(4.5, ""), (5.0, "e"), (6.3, "c"), (6.5, "c"), (6.8, "ce"), (7.2, "abc"), (7.7, "abce"), (8.5, "abcde")],
)
def test_the_worst_for_its_size_gets_the_bits(target: float, high: str) -> None:
    """c suffers 6 a thousand weights; a, b and e 5; d 1. Where c does not fit, what does comes next."""
    plan = choose_bits(UNITS, 4, 8, 64, target)
    assert (plan.bits, plan.group_size) == (4, 64)
    assert set(plan.layers) == set(high) and all(own == QuantizationConfig(8, 64) for own in plan.layers.values())
    assert choose_bits(UNITS[::-1], 4, 8, 64, target) == plan


@given(
    sizes=st.lists(st.integers(1, 1000), min_size=1, max_size=12),
    share=st.floats(0, 1),
    damages=st.lists(st.floats(0, 10), min_size=12, max_size=12),
)
def test_the_budget_is_kept_and_used(sizes: list[int], share: float, damages: list[float]) -> None:
    units = [Unit((f"m{i}",), size, damages[i]) for i, size in enumerate(sizes)]
    target = 3.25 + share * 5  # 3 to 8 bits in groups of 128
    plan = choose_bits(units, 3, 8, 128, target)
    found = [Matrix(unit.paths[0], 1, unit.size) for unit in units]
    average = bits_per_weight(found, plan)
    assert average <= target * (1 + 1e-9)
    smallest = min((unit.size for unit in units if unit.paths[0] not in plan.layers), default=None)
    assert smallest is None or average + 5 * smallest / sum(sizes) > target * (1 - 1e-9)


@pytest.mark.parametrize(
    ("low", "high", "target", "message"),
    [
        (4, 8, 4.4, r"target bits: expected 4.5 to 8.5 \(with scales and biases, groups of 64\), found 4.4"),
        (4, 8, 8.6, "expected 4.5 to 8.5 .*, found 8.6"),
        (4, 8, float("nan"), "found nan"),
        (8, 4, 5, "bits: expected fewer than the 4 of the sensitive layers, found 8"),
        (4, 4, 4.5, "expected fewer than the 4"),
    ],
)
def test_targets_that_are_refused(low: int, high: int, target: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_bits(UNITS, low, high, 64, target)


def test_a_plan_of_the_body_leaves_the_ends(tmp_path: Path) -> None:
    found = matrices(make_model(tmp_path))
    plan = uniform(found, 4, 32, "body")
    assert plan.layers == dict.fromkeys(ENDS)
    assert bits_per_weight(found, plan) == 5
    with pytest.raises(ValueError, match="predicate: expected all or body, found 'some'"):
        uniform(found, 4, 32, "some")  # type: ignore[arg-type]


def test_a_plan_for_no_matrices_names_the_model_not_the_group_size() -> None:
    """The message told of "rows of ", with nothing behind it."""
    ends = [Matrix(ENDS[0], 64, 64)]
    with pytest.raises(ValueError, match="predicate: expected matrices to quantize, found none of 'body'; "):
        uniform(ends, 4, 32, "body")


def test_conversations_are_held_out_and_always_the_same() -> None:
    encode = Tokenizer.from_dir(POCKET).encode
    test, train = conversations("test", 3000, encode), conversations("train", 3000, encode)
    assert test == conversations("test", 3000, encode)
    assert 2000 < sum(len(tokens) for tokens, _ in test) <= 3000
    assert all(0 < start < len(tokens) <= LONGEST for tokens, start in test)
    assert not {tuple(tokens) for tokens, _ in test} & {tuple(tokens) for tokens, _ in train}
    assert test[: len(conversations("test", 1000, encode))] == conversations("test", 1000, encode)


@pytest.fixture(scope="module")
def pocket_texts() -> list[Text]:
    return [Text(*each) for each in conversations("test", 500, Tokenizer.from_dir(POCKET).encode)]


def pocket_perplexity(path: Path, texts: list[Text]) -> float:
    model = ours(path)
    return perplexity(model, texts, lambda: RecomputeCache(model.config, model.ops))


def test_perplexity_of_the_model_inside(tmp_path: Path, pocket_texts: list[Text]) -> None:
    """8 bits cost next to nothing, 4 bits little, 2 bits much. Wide bounds: weights change with each training."""
    found, dense = matrices(POCKET), pocket_perplexity(POCKET, pocket_texts)
    cost = {}
    for bits in (2, 4, 8):
        write_quantized(POCKET, tmp_path / str(bits), uniform(found, bits, 64))
        cost[bits] = np.log(pocket_perplexity(tmp_path / str(bits), pocket_texts) / dense)
    assert abs(cost[8]) < 0.01
    assert cost[8] < cost[4] < 0.25
    assert cost[2] > 3 * cost[4]


def test_bits_where_it_hurts_serve_better_than_where_it_does_not(tmp_path: Path, pocket_texts: list[Text]) -> None:
    model, encode = ours(POCKET), Tokenizer.from_dir(POCKET).encode
    units = measured(model, [Text(*each) for each in conversations("train", 300, encode)], 2, 64)
    worst = choose_bits(units, 2, 8, 64, 4.5)
    mildest = choose_bits([unit._replace(damage=-unit.damage) for unit in units], 2, 8, 64, 4.5)
    for name, plan in (("worst", worst), ("mildest", mildest)):
        write_quantized(POCKET, tmp_path / name, plan)
    assert pocket_perplexity(tmp_path / "worst", pocket_texts) < pocket_perplexity(tmp_path / "mildest", pocket_texts)

"""1.2 Positions: frequencies, angles, and turning pairs. By hand in quarter turns, then against complex numbers."""

import mlx.core as mx
import numpy as np

from tests.week1.oracles import angles, f64, normal, turn
from tiny_llm.config import RopeConfig
from tiny_llm.course.check import Checker, task


@task("w1.2.1")
def test_two_pairs_by_hand(check: Checker) -> None:
    check(lambda m: m.inverse_frequencies(RopeConfig(theta=100.0), 4), np.array([1, 0.1]), axes="I")


@task("w1.2.1")
def test_a_models_frequencies(check: Checker) -> None:
    want = 1e6 ** (-np.arange(0, 128, 2) / 128)
    check(lambda m: m.inverse_frequencies(RopeConfig(theta=1e6), 128), want, axes="I", terms=16)


@task("w1.2.1")
def test_a_stretched_rope_gets_them_too(check: Checker) -> None:
    """What follows the exercise still works on its result."""
    config = RopeConfig(theta=100.0, kind="linear", factor=4.0)
    check(lambda m: m.inverse_frequencies(config, 4), np.array([0.25, 0.025]), axes="I")


@task("w1.2.2")
def test_four_positions(check: Checker) -> None:
    positions, config = mx.arange(4), RopeConfig(theta=100.0)
    want = angles(range(4), 4, 100.0)
    check(lambda m: m.Rope(config, 4).at(positions).cos, np.cos(want), axes="T I", what="cos")
    check(lambda m: m.Rope(config, 4).at(positions).sin, np.sin(want), axes="T I", what="sin")


@task("w1.2.2")
def test_any_positions(check: Checker) -> None:
    """A chunk behind a cache, two sequences in a row: positions are what they are."""
    positions, config = mx.array([50, 51, 7, 1000], mx.int32), RopeConfig(theta=1e4)
    want = angles([50, 51, 7, 1000], 8, 1e4)
    check(lambda m: m.Rope(config, 8).at(positions).cos, np.cos(want), axes="T I", what="cos", terms=1000)
    check(lambda m: m.Rope(config, 8).at(positions).sin, np.sin(want), axes="T I", what="sin", terms=1000)
    check(lambda m: m.Rope(config, 8).at(positions).positions, np.array([50, 51, 7, 1000]), axes="T", what="positions")


@task("w1.2.2")
def test_the_gain_is_on_both(check: Checker) -> None:
    """YaRN sharpens attention by a gain on cosine and sine."""
    config = RopeConfig(theta=100.0, kind="yarn", original_max_position_embeddings=64, attention_factor=1.5)
    want = angles(range(4), 4, 100.0)
    check(lambda m: m.Rope(config, 4).at(mx.arange(4)).cos, 1.5 * np.cos(want), axes="T I", what="cos")
    check(lambda m: m.Rope(config, 4).at(mx.arange(4)).sin, 1.5 * np.sin(want), axes="T I", what="sin")
    check(lambda m: m.Rope(config, 4).at(mx.arange(4)).gain, 1.5, what="gain")


def rotation(m, at):
    """A rotation by the given angles (T, D/2), made without the learner's `at`."""
    ones = mx.ones(at.shape[-1])
    return m.Rotation(mx.arange(len(at)), mx.array(np.cos(at), mx.float32), mx.array(np.sin(at), mx.float32), ones, 1.0)


@task("w1.2.3")
def test_quarter_turns(check: Checker) -> None:
    """Token t is turned by t quarters: (1, 3) and (2, 4) are the pairs, and a quarter makes (-3, 1) and (-4, 2)."""
    x = mx.array([[[1.0, 2.0, 3.0, 4.0]]] * 4)
    quarters = np.arange(4)[:, None] * np.full(2, np.pi / 2)
    want = np.array([[1, 2, 3, 4], [-3, -4, 1, 2], [-1, -2, -3, -4], [3, 4, -1, -2]])[:, None]
    check(lambda m: m.apply_rope(x, rotation(m, quarters)), want.astype(float), axes="T H D")


@task("w1.2.3")
def test_many_heads(check: Checker) -> None:
    x, at = mx.array(normal(6, 3, 16)), angles([0, 1, 2, 9, 30, 4], 16, 1e4)
    check(lambda m: m.apply_rope(x, rotation(m, at)), turn(f64(x), at), axes="T H D")


@task("w1.2.3")
def test_half_precision_stays_so(check: Checker) -> None:
    x, at = mx.array(normal(4, 2, 8)).astype(mx.bfloat16), angles(range(4), 8, 1e4)
    check(lambda m: m.apply_rope(x, rotation(m, at)), turn(f64(x), at), axes="T H D", dtype=mx.bfloat16)

"""Random numbers: the same for ever, and independent where seed, sample, position or purpose differ."""

import itertools
import math
from collections.abc import Mapping

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest

from tiny_llm.decode.draw import Purpose, stream_keys, uniforms

SEEDS = [0, 0, 1, 7, 7, 2**64 - 1, 2**63, 1 << 32]
SAMPLES = [0, 1, 0, 3, 3, 5, 0, 2]
POSITIONS = [0, 0, 1, 17, 18, 131_071, 2, 2**31]
KEYS = [
    0x48218226FF3CD4BF,
    0xA706DD2F4D197E6F,
    0xDCE423FC82C0D5B8,
    0x8CA3CBB6CA63129B,
    0x8CA3CBB6CA63129B,
    0x8306445ED348A658,
    0x9E6265A28E5C1035,
    0x53874534239E9DEB,
]
NUMBERS = [  # in steps of 2^-24
    [1_715_205, 5_671_579],
    [3_734_718, 2_327_157],
    [12_720_711, 7_140_922],
    [10_023_737, 6_402_318],
    [31_481, 8_158_503],
    [6_063_337, 9_405_813],
    [8_296_174, 522_126],
    [11_020_261, 13_729_979],
]
COUNT = 100_000
Floats = npt.NDArray[np.float64]


def test_the_numbers_of_a_draw_never_change() -> None:
    """A text that was drawn with a seed is drawn again with it, by any version."""
    keys = stream_keys(SEEDS, SAMPLES)
    assert keys.tolist() == KEYS
    for found in (uniforms(keys, POSITIONS), uniforms(keys, np.array(POSITIONS), Purpose.DRAW)):
        assert found.dtype == mx.float32
        assert (np.array(found, np.float64) * 2**24).tolist() == NUMBERS


def test_purposes_have_numbers_that_stay() -> None:
    """They are stored nowhere, so a change of them would change what a seed means."""
    assert [(purpose.name, purpose.value) for purpose in Purpose] == [
        ("DRAW", 0),
        ("ACCEPT", 1),
        ("RESIDUAL", 2),
        ("PROPOSE", 3),
    ]


@pytest.fixture(scope="module")
def streams() -> Mapping[str, Floats]:
    """Pairs of numbers (COUNT, 2) along positions, for all purposes, two samples and two seeds; and along seeds."""
    positions, found = np.arange(COUNT), {}
    for seed, sample in ((5, 0), (5, 1), (6, 0)):
        keys = stream_keys([seed] * COUNT, [sample] * COUNT)
        for purpose in Purpose:
            found[f"{seed} {sample} {purpose.name}"] = uniforms(keys, positions, purpose)
    keys = stream_keys(range(1000, 1000 + COUNT), [0] * COUNT)
    for purpose in Purpose:
        found[f"seeds {purpose.name}"] = uniforms(keys, [3] * COUNT, purpose)
    return {name: np.array(numbers, np.float64) for name, numbers in found.items()}


def test_streams_are_uniform(streams: Mapping[str, Floats]) -> None:
    for name, numbers in streams.items():
        assert numbers.min() >= 0 and numbers.max() < 1
        shares = np.histogram(numbers, bins=64, range=(0, 1))[0] / numbers.size
        assert np.abs(shares - 1 / 64).max() < 5 * math.sqrt(1 / 64 / numbers.size), name


def test_streams_do_not_correlate(streams: Mapping[str, Floats]) -> None:
    """Neither at the same index nor where one is a few indices behind the other."""
    columns = np.concatenate([numbers.T for numbers in streams.values()])  # (streams * 2, COUNT)
    columns = (columns - columns.mean(axis=1, keepdims=True)) / columns.std(axis=1, keepdims=True)
    for lag in (0, 1, 2, 7):
        found = columns[:, : COUNT - lag] @ columns[:, lag:].T / (COUNT - lag)
        if lag == 0:
            found -= np.eye(len(columns))
        assert np.abs(found).max() < 5.5 / math.sqrt(COUNT), lag


def test_no_two_draws_share_both_numbers(streams: Mapping[str, Floats]) -> None:
    """Of 1.6 million pairs of 24 bits each two are equal with a probability of 0.005; pairs taken over are found."""
    pairs = np.concatenate(list(streams.values())) * 2.0**24
    whole = pairs[:, 0] * 2.0**24 + pairs[:, 1]  # 48 bits, exact in float64
    assert len(np.unique(whole)) == len(whole)


def test_single_numbers_are_equal_as_often_as_by_chance(streams: Mapping[str, Floats]) -> None:
    """At the same index of two streams: all 24 bits in 0.012 of COUNT pairs, the upper 8 bits in one of 256."""
    for first, second in itertools.combinations(streams.values(), 2):
        assert (first == second).sum() <= 2
        same = (np.floor(first[:, 0] * 256) == np.floor(second[:, 0] * 256)).sum()
        assert abs(same - COUNT / 256) < 5.5 * math.sqrt(COUNT / 256)

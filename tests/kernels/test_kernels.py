"""Each kernel against its plain twin, against the definition in float64, in check mode and in shuffled order."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from tests.kernels.oracles import ORACLES, float64
from tiny_llm.kernels.catalog import CATALOG, DTYPES
from tiny_llm.kernels.sim import Simulator

ALIKE = "axpby residual_rms_norm rope decode_attention packed_attention merge_attention paged_decode".split()
PARTIAL = ("decode_attention", "packed_attention", "paged_decode")  # their results go to another kernel, in float32
ROUNDING = {mx.float32: 2.0**-23, mx.float16: 2.0**-10, mx.bfloat16: 2.0**-7}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CATALOG)
def test_equals_its_twin_and_is_clean_in_check_mode(name: str, dtype: mx.Dtype) -> None:
    entry = CATALOG[name]
    for arguments in entry.examples(dtype):
        simulator = Simulator(check=True, seed=1)
        got = entry.run(arguments, simulator)  # raises for any finding
        twin = entry.run(arguments, "plain")
        exact = ORACLES[name](*map(float64, arguments))
        assert len(got) == len(twin) == len(exact)
        for ours, plain, truth in zip(got, twin, exact, strict=True):
            assert (
                ours.dtype
                == plain.dtype
                == (mx.float32 if name in PARTIAL or (name == "quantized_tiles" and arguments[-1] > 1) else dtype)
            )
            assert ours.shape == plain.shape == truth.shape
            size = np.abs(truth).max()
            # a result rounds once, the sum and the weight of a norm once each; the row's own length in float32
            tolerance = (3 * ROUNDING[dtype] + 64 * ROUNDING[mx.float32]) * size
            np.testing.assert_allclose(float64(ours), truth, rtol=0, atol=tolerance)
            plain_sum = 2**-15 * size if name == "softmax" else 0  # MLX adds up 17,001 floats in turn
            np.testing.assert_allclose(float64(ours), float64(plain), rtol=0, atol=tolerance + plain_sum)
        assert all(report.findings == [] for report in simulator.reports)


@pytest.mark.parametrize("name", CATALOG)
def test_moves_little_more_than_it_must(name: str) -> None:
    entry, simulator = CATALOG[name], Simulator(check=True)
    entry.run(entry.typical(mx.float32), simulator)
    (report,) = simulator.reports
    assert report.minimum > 0
    if entry.once is None:
        assert report.traffic / report.minimum <= 1.05
        return
    read = {b.name: b for b in report.buffers}
    assert all(read[name].read == read[name].unique_read for name in entry.once.split())


def test_the_weight_of_a_single_row_is_read_once() -> None:
    entry, simulator = CATALOG["rms_norm"], Simulator(check=True)
    x, weight, eps = entry.typical(mx.float32)
    entry.run((x[:1], weight, eps), simulator)
    assert simulator.reports[0].traffic == simulator.reports[0].minimum == 3 * 128 * 4


@pytest.mark.parametrize("name", CATALOG)
def test_empty_input_gives_empty_output(name: str) -> None:
    arguments = CATALOG[name].examples(mx.float32)[-1]
    if name == "flash_attention":
        arguments = (*arguments[:3], [(0, arguments[1].shape[1])], *arguments[4:])
    if name == "paged_prefill":
        arguments = (*arguments[:4], [(0, 18)], *arguments[5:])
    rows = arguments[0].shape[0]

    def first_none(a: Any) -> Any:
        if isinstance(a, tuple):
            return tuple(map(first_none, a))
        return a[:0] if isinstance(a, mx.array) and a.shape[0] == rows else a

    empty = (arguments[0][:0], *(first_none(a) if name in ALIKE else a for a in arguments[1:]))
    if name == "split_sum":
        empty = (arguments[0][:, :0], *arguments[1:])
    if name == "expert_rows":
        none = mx.zeros(0, mx.int32)
        empty = (arguments[0][:0], arguments[1]._replace(rows=none, experts=none), *arguments[2:])
    for out in CATALOG[name].run(empty, Simulator()):
        assert out.size == 0


def test_softmax_of_huge_and_masked_rows() -> None:
    """Without the maximum exp overflows; a masked score is -inf, and a row may begin with many."""
    x = mx.array([[1e4] * 3 + [-1e4] * 2, [-np.inf] * 4 + [0.0]])
    got = np.array(CATALOG["softmax"].run((x,), Simulator(check=True))[0])
    np.testing.assert_allclose(got, [[1 / 3] * 3 + [0] * 2, [0] * 4 + [1]], atol=1e-7)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("axpby", lambda a: (a[0], a[1][:-1], *a[2:]), r"axpby y: expected shape \(257\)"),
        ("axpby", lambda a: (a[0], a[1].astype(mx.float16), *a[2:]), "found .* of float16"),
        ("rms_norm", lambda a: (a[0].astype(mx.int32), *a[1:]), "expected float32, float16 or bfloat16, found int32"),
        ("rms_norm", lambda a: (a[0][0], *a[1:]), r"expected shape \(any, any\)"),
        ("rms_norm", lambda a: (mx.zeros((1, 17000)), mx.zeros(17000), 1e-6), "16384 elements, found 17000"),
        ("rope", lambda a: (a[0][..., :9], *a[1:]), "even number of dimensions, found 9"),
        ("rope", lambda a: (a[0], a[1][:1], *a[2:]), "rope cosine"),
        ("swiglu", lambda a: (mx.zeros((2, 3)),), "even width"),
        ("softmax", lambda a: (mx.zeros((2, 0)),), "at least one element"),
        ("quantized_matvec", lambda a: (mx.zeros((2, 384)), *a[1:]), "expected one row, found 2; use quantized_matmul"),
        ("quantized_rows", lambda a: (mx.zeros((9, 96)), *a[1:]), "up to 8 rows, found 9; use quantized_matmul"),
        (
            "quantized_matvec",
            lambda a: (mx.zeros((1, 128)), *a[1:]),
            r"x of 128 columns, weight .* no format",
        ),
        ("quantized_matvec", lambda a: (a[0], a[1].astype(mx.int32), *a[2:]), "weight: expected .* of uint32"),
        ("decode_attention", lambda a: (a[0][:, :3], mx.zeros((3, 2, 9, 256)), *a[2:]), "3 query heads of 256 over 2"),
        ("decode_attention", lambda a: (*a[:3], a[3][:1], *a[4:]), r"lengths: expected shape \(3\)"),
        ("decode_attention", lambda a: (*a[:5], -1, 8), "window of at least 0, found 8 and -1"),
        ("quantized_tiles", lambda a: (*a[:-1], 9), "256 columns make no 9 splits"),
        ("packed_attention", lambda a: (a[0][..., :128], *a[1:]), "128 dimensions, codes .* make no format"),
        ("packed_attention", lambda a: (*a[:2], (*a[2][:2], a[2][2][:1]), *a[3:]), "v's biases: expected"),
        ("flash_attention", lambda a: (*a[:3], [(9, 17)], *a[4:]), "do not add up to 9 queries and 18 keys"),
        ("flash_attention", lambda a: (*a[:3], [(9, 8), (0, 10)], *a[4:]), "new tokens among all"),
        ("flash_attention", lambda a: (mx.zeros((9, 1, 257)), *[mx.zeros((1, 18, 257))] * 2, *a[3:]), "1 heads of 257"),
        ("paged_decode", lambda a: (a[0][:, :3], *[mx.zeros((2, 5, 4, 256))] * 2, *a[3:]), "3 of 256"),
        ("paged_decode", lambda a: (*a[:3], a[3][:1], *a[4:]), r"tables: expected shape \(3, any\)"),
        ("paged_decode", lambda a: (*a[:4], a[4][:1], *a[5:]), r"lengths: expected shape \(3\)"),
        ("paged_decode", lambda a: (*a[:6], -1, 8), "window of at least 0, found 8 and -1"),
        ("paged_prefill", lambda a: (*a[:4], [(9, 33)], *a[5:]), "of sequences of up to 32"),
        ("paged_prefill", lambda a: (*a[:4], [(8, 18)], *a[5:]), "expected 9 new tokens"),
        ("paged_prefill", lambda a: (*a[:2], a[2][:, 1:], *a[3:]), "values: expected"),
        ("copy_blocks", lambda a: (a[0][0], a[1]), r"pool: expected shape \(any, any, any, any\)"),
        ("copy_blocks", lambda a: (a[0], a[1].astype(mx.uint32)), "sources: .* of int32, found .* of uint32"),
        ("merge_attention", lambda a: (a[0], a[1][:1], *a[2:]), "merge_attention tops: expected"),
        ("quantized_matvec", lambda a: (a[0].astype(mx.float16), *a[1:]), "scales: expected .* of float16"),
    ],
)
def test_wrong_arguments_are_refused_in_words(name: str, change: Callable[[Any], Any], words: str) -> None:
    arguments = change(CATALOG[name].examples(mx.float32)[-1])
    with pytest.raises(ValueError, match=words):
        CATALOG[name].run(arguments, "plain")

"""What bench/kernels.py counts of a part stands for the whole."""

import mlx.core as mx
import pytest

from bench.kernels import Case, Counts, Model, Part, counts_of, decoding, prefill, product

SMALL = Model("small", 256, 4, 2, 64, 512)


@pytest.mark.parametrize("case", [
    *(product(SMALL, "gate_up", rows, mx.float16) for rows in (1, 3, 16, 64)),
    *(decoding(SMALL, 1024, bits, mx.float16) for bits in (16, 8, 4)),
], ids=lambda case: case.name)  # fmt: skip
def test_two_columns_of_threadgroups_say_what_all_would(case: Case) -> None:
    whole = Part()
    case.ours(on=whole)
    found, simulated = counts_of(case)
    assert found == [Counts.of(report) for report in whole.reports]
    assert sum(r.groups for r in simulated) < sum(r.groups for r in whole.reports)


def test_the_heads_of_one_key_value_head_stand_for_all() -> None:
    whole = Part()
    prefill(SMALL, 70, mx.float16).ours(on=whole)
    part = prefill(SMALL, 70, mx.float16, SMALL.kv_heads)
    (found,), _ = counts_of(part)
    (report,) = whole.reports
    assert found.asked == report.traffic and found.arrays == part.formula
    assert found.groups == report.groups and found.large_least == Counts.of(report).large_least

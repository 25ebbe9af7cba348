"""Products with quantized weights as they are called: the kernel that suits the rows, against MLX and in bytes."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from tests.kernels.oracles import float64, product
from tiny_llm.config.moe import MoeConfig
from tiny_llm.kernels import quantized_matmul
from tiny_llm.kernels.catalog import expert_arguments, quantized_arguments
from tiny_llm.kernels.experts import expert_rows
from tiny_llm.kernels.matmul import quantized_tiles, splits_for
from tiny_llm.kernels.quantized import quantized_matvec, quantized_rows
from tiny_llm.kernels.sim import Simulator
from tiny_llm.kernels.sim.recorder import Recorder
from tiny_llm.kernels.table import experts_on
from tiny_llm.model.moe import chosen_experts, route
from tiny_llm.model.ops import PLAIN


@pytest.mark.parametrize(("rows", "kernels"), [
    (1, ["quantized_matvec"]), (2, ["quantized_rows"]), (16, ["quantized_rows"]),
    (17, ["quantized_tiles", "split_sum"]), (33, ["quantized_tiles", "split_sum"]),
])  # fmt: skip
def test_the_rows_choose_the_kernel(rows: int, kernels: list[str]) -> None:
    arguments, simulator = quantized_arguments(mx.float32, rows, 40, 512, 4, 64), Simulator(check=True)
    got = quantized_matmul(*arguments, on=simulator)
    assert [report.kernel for report in simulator.reports] == kernels
    np.testing.assert_allclose(float64(got), product(*map(float64, arguments)), atol=1e-4)
    mlx = mx.quantized_matmul(*arguments, group_size=64, bits=4)
    np.testing.assert_allclose(np.array(got), np.array(mlx), atol=1e-4)


def test_of_three_bits_a_group_holds_no_more_than_eight_rows() -> None:
    for rows, kernel in ((8, "quantized_rows"), (9, "quantized_tiles")):
        simulator = Simulator(check=True)
        quantized_matmul(*quantized_arguments(mx.float16, rows, 33, 96, 3, 32), on=simulator)
        assert simulator.reports[0].kernel == kernel


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_each_packing_of_one_row(bits: int, group: int) -> None:
    """Columns that end within a simdgroup's step, as many rows as end within a group's."""
    arguments = quantized_arguments(mx.float32, 1, 11, 3 * group, bits, group)
    got = quantized_matvec(*arguments, on=Simulator(check=True))
    np.testing.assert_allclose(float64(got), product(*map(float64, arguments)), atol=2e-5)


@pytest.mark.parametrize("rows", [2, 5, 16])
def test_weights_are_read_once_for_all_rows(rows: int) -> None:
    """A kernel that takes the rows one by one would read `rows` times as much. x is asked for by each threadgroup."""
    arguments, simulator = quantized_arguments(mx.float16, rows, 256, 512, 4, 64), Simulator(check=True)
    quantized_rows(*arguments, on=simulator)
    (report,) = simulator.reports
    read = {b.name: b.read for b in report.buffers}
    for name, x in zip(("weight", "scales", "biases"), arguments[1:], strict=True):
        assert read[name] == x.nbytes
    assert read["x"] == report.groups * arguments[0].nbytes


@pytest.mark.parametrize(("rows", "owned"), [(2, 64), (4, 64), (8, 64), (16, 32)])
def test_a_threadgroup_owns_as_many_outputs_as_the_book_says(rows: int, owned: int) -> None:
    recorder = Recorder()
    quantized_rows(*quantized_arguments(mx.float16, rows, 6144, 64, 4, 64), on=recorder)
    dispatch = recorder.calls[0][-1]
    assert dispatch.grid[0] // dispatch.threadgroup[0] == 6144 // owned


def test_tiles_read_what_their_formula_says() -> None:
    rows, outputs = 70, 96
    arguments, simulator = quantized_arguments(mx.float16, rows, outputs, 256, 4, 64), Simulator(check=True)
    x, weight = arguments[:2]
    quantized_tiles(*arguments, on=simulator)
    read = {b.name: b.read for b in simulator.reports[0].buffers}
    assert read["x"] == x.nbytes * (outputs // 32)
    assert read["weight"] == weight.nbytes * -(-rows // 32)
    assert simulator.reports[0].threadgroup_bytes <= 32 * 1024


def test_k_is_split_while_the_tiles_are_few() -> None:
    assert splits_for(32, 1024, 3072) == 4
    assert splits_for(512, 1024, 3072) == 1
    assert splits_for(32, 32, 512) == 2
    assert splits_for(32, 32, 96) == 1


@pytest.mark.parametrize("tokens", [1, 4, 16])
def test_each_expert_that_was_chosen_is_read_once(tokens: int) -> None:
    """Reading the matrix for each of its choices would move `tokens` times as much."""
    x, choices, *matrices = expert_arguments(mx.float32, tokens, 8, 2, 256, 512, 4, 64)
    simulator = Simulator(check=True)
    expert_rows(x, choices, *matrices, on=simulator)
    (report,) = simulator.reports
    read = {b.name: b.read for b in report.buffers}
    chosen = len(set(np.array(choices.experts).tolist()))
    for name, stack in zip(("weight", "scales", "biases"), matrices, strict=True):
        assert read[name] == stack.nbytes // 8 * chosen


@pytest.mark.parametrize(("tokens", "bits", "by_kernel"), [(16, 4, True), (17, 4, False), (8, 3, True), (9, 3, False)])
def test_the_kernel_multiplies_experts_of_as_many_tokens_as_it_takes(tokens: int, bits: int, by_kernel: bool) -> None:
    """From 9 tokens on its place was taken whatever the bits were."""
    config = MoeConfig(8, 2, expert_size=64, normalize=True, layers=(0,))
    x, _, *gate_up = expert_arguments(mx.float32, tokens, 8, 2, 128, 64, bits, 32)
    _, _, *down = expert_arguments(mx.float32, tokens, 8, 2, 64, 64, bits, 32)
    names = ("weight", "scales", "biases")
    w = {"gate_up_proj": dict(zip(names, gate_up, strict=True)), "down_proj": dict(zip(names, down, strict=True))}
    routing = route(mx.random.normal((tokens, 8), key=mx.random.key(1)), config)
    others: list[int] = []

    def many(*arguments: Any) -> mx.array:
        others.append(tokens)
        return chosen_experts(*arguments)

    y = experts_on("plain", many)(x, routing, w, PLAIN)
    assert others == ([] if by_kernel else [tokens])
    np.testing.assert_allclose(np.array(y), np.array(chosen_experts(x, routing, w, PLAIN)), rtol=1e-3, atol=1e-3)


def test_more_choices_of_an_expert_than_a_group_holds_are_refused() -> None:
    for tokens, bits in ((17, 4), (9, 3)):
        with pytest.raises(ValueError, match=f"expert_rows: expected up to .* rows an expert, found {tokens}"):
            expert_rows(*expert_arguments(mx.float32, tokens, 4, 2, 16, 96, bits, 32), on="sim")

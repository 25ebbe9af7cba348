"""`compile_options` of MLX 0.32: the math mode is honoured, everything else refused by name."""

from typing import Any

import mlx.core as mx
import pytest

from tiny_llm.kernels.sim import Simulator, metal_kernel

SPECIAL = "uint i = thread_position_in_grid.x;\nout[i] = (x[i] != x[i]) + 2 * isinf(x[i]);"
LARGE = "uint i = thread_position_in_grid.x;\nout[i] = (x[i] + 1e8f) - 1e8f;"


def computed(body: str, values: list[float], check: bool, options: Any) -> list[float]:
    kernel = metal_kernel("probe", ["x"], ["out"], body, compile_options=options)
    sizes = {"grid": (8, 1, 1), "threadgroup": (8, 1, 1), "output_shapes": [(8,)], "output_dtypes": [mx.float32]}
    return kernel(inputs=[mx.array(values)], simulator=Simulator(check=check), **sizes)[0].tolist()


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("options", [None, {}, {"math_mode": "safe"}, {"math_mode": "relaxed"}], ids=str)
def test_nan_and_infinity_are_seen(options: Any, check: bool) -> None:
    assert computed(SPECIAL, [mx.nan, mx.inf, -mx.inf] + [1.0] * 5, check, options) == [1, 2, 2, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("check", [False, True])
def test_the_fast_mode_takes_every_number_for_finite(check: bool) -> None:
    """As Apple's compiler does: a test for NaN is false, whatever the value."""
    assert computed(SPECIAL, [mx.nan, mx.inf, -mx.inf] + [1.0] * 5, check, {"math_mode": "fast"}) == [0] * 8


@pytest.mark.parametrize(("mode", "first"), [("safe", 0), ("relaxed", 1), ("fast", 1)])
def test_only_the_safe_mode_keeps_the_order_of_sums(mode: str, first: float) -> None:
    assert computed(LARGE, [1.0] * 8, False, {"math_mode": mode}) == [first] * 8


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"math_mode": "quick"}, "math_mode: expected safe, relaxed, fast, found 'quick'"),
        ({"math_mode": None}, "found None"),
        ({"math_mode": ["fast"]}, r"found \['fast'\]"),
        ({"fast_math": True}, "compile_options: no option 'fast_math'; there is math_mode only"),
        ({"math_mode": "fast", "language": "3.2"}, "no option 'language'"),
        ("fast", "compile_options: expected a dict, found 'fast'"),
        ([("math_mode", "fast")], "expected a dict"),
    ],
)
def test_other_options_are_refused_by_name(options: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        metal_kernel("probe", ["x"], ["out"], "", compile_options=options)


def test_mlx_refuses_the_same() -> None:
    for options in ({"math_mode": "quick"}, {"fast_math": True}, "fast"):
        with pytest.raises(ValueError):
            mx.fast.metal_kernel(
                name="probe", input_names=["x"], output_names=["out"], source="", compile_options=options
            )

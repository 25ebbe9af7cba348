"""What a check says, in which order: not done, type, shape, dtype, NaN, value; and when it says nothing."""

from types import ModuleType
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from tests.course.conftest import ROOT
from tiny_llm.course import CourseError, NotDone, check, compare, runner
from tiny_llm.course.catalog import Task, course
from tiny_llm.course.check import Checker, CheckFailed

TASK = course().task("w1.1.2")
WANT = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])


def said(got: Any, want: Any = WANT, **options: Any) -> list[str]:
    """The lines of a failed check, without the first word's task and the last line."""
    mine = checker()
    mine.module.result = got  # which a mistaken reference does not have
    with pytest.raises(CheckFailed) as error:
        mine(lambda m: m.result, want, **{"axes": "T D", **options})
    *lines, last = str(error.value).splitlines()
    assert last == "try: tiny-llm course hint w1.1.2"
    assert lines[0].startswith("w1.1.2 scaled_dot_product_attention: ")
    return [lines[0].partition(": ")[2], *lines[1:]]


def checker(undone: bool = False) -> Checker:
    return Checker(TASK, ModuleType("nothing"), undone)


def test_not_done_comes_before_all_else() -> None:
    with pytest.raises(NotDone, match=r"w1\.1\.2 is not done yet"):
        checker(undone=True)(lambda _: 1 / 0, WANT)


@pytest.mark.parametrize(
    ("got", "lines"),
    [
        (None, ["gave None: is a `return` missing?", "expected an mx.array"]),
        (WANT, ["gave a ndarray", "expected an mx.array"]),
        (mx.zeros((3, 2)), ["wrong shape: T and D are swapped?", "yours (3, 2) · expected (T 2, D 3)"]),
        (mx.zeros((2,)), ["wrong shape: the axis D is missing?", "yours (2) · expected (T 2, D 3)"]),
        (mx.zeros((4, 4)), ["wrong shape", "yours (4, 4) · expected (T 2, D 3)"]),
        (mx.zeros((3, 2), mx.float16), ["wrong shape: T and D are swapped?", "yours (3, 2) · expected (T 2, D 3)"]),
        (mx.full((2, 3), mx.nan, mx.float16), ["wrong dtype", "yours float16 · expected float32"]),
        (mx.array([[1, 2, 3], [4, np.nan, 0]], mx.float32), ["NaN in 1 of 6, first at [t1 d1]", "expected 5"]),
        (
            mx.array([[1, 2, 3], [4, 5.5, 6]], mx.float32),
            [
                "1 of 6 differ, first at [t1 d1]",
                "yours 5.5 · expected 5",
                "row [t1]: yours (4 5.5 6) · expected (4 5 6)",
            ],
        ),
        (
            mx.array(WANT * 1.0001, mx.float32),
            [
                "6 of 6 differ, first at [t0 d0]",
                "yours 1.0001 · expected 1",
                "row [t0]: yours (1 2 3) · expected (1 2 3)",
            ],
        ),
    ],
)
def test_what_is_wrong_with_an_array(got: Any, lines: list[str]) -> None:
    assert said(got) == lines


def test_a_long_row_is_shown_in_part() -> None:
    want = np.arange(20.0)
    lines = said(mx.zeros(20), want, axes="D")
    assert lines == [
        "19 of 20 differ, first at [d1]",
        "yours 0 · expected 1",
        "all: yours (0 0 0 0 0 0 …) · expected (0 1 2 3 4 5 …)",
    ]


def test_truth_values_and_whole_numbers() -> None:
    assert said(mx.array([1, 0]), np.array([True, False]))[0] == "wrong dtype"
    assert said(mx.array([True, True]), np.array([True, False]))[1] == "yours True · expected False"
    assert said(mx.array([1.0, 2.0]), np.array([1, 2])) == ["wrong dtype", "yours float32 · expected integers"]
    checker()(lambda _: mx.array([1, 2], mx.uint32), np.array([1, 2]))


def test_plain_values() -> None:
    assert said([1, 2, 3], [1, 5, 3]) == ["differs from entry 1 on", "yours [1, 2, 3] · expected [1, 5, 3]"]
    assert said([1, 2], [1, 2, 3])[0] == "differs from entry 2 on"
    assert said(None, [1])[0] == "gave None: is a `return` missing?"
    assert said("a", "b") == ["differs", "yours 'a' · expected 'b'"]
    checker()(lambda _: (1, 2), [1, 2])
    checker()(lambda _: 1.5, 1.5)


@pytest.mark.parametrize(("dtype", "error"), [(mx.float32, 1e-7), (mx.float16, 1e-3), (mx.bfloat16, 8e-3)])
def test_rounding_is_forgiven_and_a_hundred_times_it_is_not(dtype: mx.Dtype, error: float) -> None:
    def off(by: float) -> mx.array:
        return mx.array(WANT * (1 + by), mx.float32).astype(dtype)

    checker()(lambda _: off(error), WANT, dtype=dtype)
    assert said(off(100 * error), dtype=dtype)[0].endswith("differ, first at [t0 d0]")


def test_infinities_must_agree() -> None:
    want = np.array([-np.inf, 1.0])
    checker()(lambda _: mx.array([-mx.inf, 1.0]), want)
    assert said(mx.array([0.0, 1.0]), want, axes="D")[1] == "yours 0 · expected -inf"
    assert said(mx.array([-mx.inf, mx.inf]), want, axes="D")[1] == "yours inf · expected 1"


def test_an_error_is_told_with_the_learners_line(tmp_path: Any) -> None:
    path = tmp_path / "attention.py"
    path.write_text("def f():\n    return 1 / 0\n")
    module = ModuleType("mine")
    exec(compile(path.read_text(), str(path), "exec"), module.__dict__)
    with pytest.raises(CheckFailed) as error:
        Checker(TASK, module, code=tmp_path)(lambda m: m.f(), WANT)
    assert str(error.value).splitlines()[:2] == [
        f"w1.1.2 scaled_dot_product_attention: raised an error at {path}:2",
        "ZeroDivisionError: division by zero",
    ]


def wrong(text: str) -> ModuleType:
    """A learner's module with one function."""
    module = ModuleType("mine")
    exec(
        f"import mlx.core as mx\ndef scaled_dot_product_attention(q, k, v, scale, mask=None):\n    {text}",
        module.__dict__,
    )
    return module


def test_a_mistake_is_recognized_in_another_form() -> None:
    result = runner.run_task(TASK, wrong("return mx.softmax(mx.einsum('td,sd->ts', q, k), -1) @ v"))
    assert 'matches the mistake "scale forgotten"' in result.message
    result = runner.run_task(TASK, wrong("return mx.softmax(q @ k * scale) @ v"))
    assert 'matches the mistake "k not transposed"' in result.message


def test_an_unknown_mistake_gets_no_name() -> None:
    result = runner.run_task(TASK, wrong("return mx.softmax(mx.einsum('td,sd->ts', q, k) * scale * 1.5, -1) @ v"))
    assert result.state == "failed"
    assert "matches" not in result.message


def test_a_name_must_fit_all_that_the_test_saw() -> None:
    """Right without a mask and wrong with one is not what a forgotten scale gives."""

    def call(m: Any) -> mx.array:
        q = mx.array([[1.0, 0.0]])
        return m.scaled_dot_product_attention(q, q, q, 1.0)

    first = Checker(TASK, wrong("return v * 2"))
    with pytest.raises(CheckFailed) as error:
        first(call, np.array([[1.0, 0.0]]), axes="T D")
    assert "matches" not in str(error.value)


def test_same_compares_shape_kind_and_value() -> None:
    x = mx.array([1.0, mx.nan])
    assert check.same(x, x + 1e-6)
    assert not check.same(x, x[None])
    assert not check.same(x, x.astype(mx.float16))
    assert not check.same(x, None)
    assert check.same([1], [1])
    assert not check.same((1,), [1])
    assert check.same(check.Raised(ValueError("a")), check.Raised(ValueError("a")))
    assert not check.same(check.Raised(ValueError("a")), check.Raised(ValueError("b")))


def test_a_task_without_a_test_is_told() -> None:
    values = {**vars(TASK), "id": "w1.9.9"}
    with pytest.raises(CourseError, match=r"tests/week1/test_1_1_attention.py: no test is marked with w1\.9\.9"):
        runner.tests_of(Task(**values))


def test_the_tolerance_grows_with_the_terms() -> None:
    few, many = (compare.tolerance(mx.float32, WANT, terms) for terms in (1, 100))
    np.testing.assert_allclose(many, 10 * few)
    assert few.max() < 5e-5


def test_tests_of_the_course_stand_where_course_toml_says() -> None:
    assert [task.id for task in course().tasks if not (ROOT / task.test).is_file()] == []

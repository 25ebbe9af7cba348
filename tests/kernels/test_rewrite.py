"""Which declarations of threadgroup variables are rewritten, and that no line moves."""

import pytest

from tests.kernels.swizzles import header
from tiny_llm.kernels.sim.compiler import INCLUDE
from tiny_llm.kernels.sim.rewrite import Allocation, allocate_threadgroup, rewrite


def found(text: str) -> list[list[str]]:
    seen: list[Allocation] = []
    rewrite(text, lambda allocation: seen.append(allocation) or "")  # type: ignore[func-returns-value]
    return [allocation.variables for allocation in seen]


@pytest.mark.parametrize(
    ("text", "variables"),
    [
        ("threadgroup float a[4];", [["a"]]),
        ("{ threadgroup T a[N / 32][D + 1], b; }", [["a", "b"]]),
        ("threadgroup vec<T, 4> a[4];", [["a"]]),
        ("threadgroup metal::vec<float, 2> a;", [["a"]]),
        ("threadgroup float\n  a[4],\n  b[8];", [["a", "b"]]),
        ("x = 1; threadgroup uchar a[sizeof(float) * 4]; threadgroup int c;", [["a"], ["c"]]),
        ("threadgroup float* p = a;", []),
        ("threadgroup float& p = a[0];", []),
        ("const threadgroup float* p = a;", []),
        ("void f(threadgroup float* a, threadgroup float b[4]) {}", []),
        ("p = (threadgroup float*)q;", []),
        ("// threadgroup float a[4];", []),
        ("/* threadgroup float a; */", []),
        ('f("threadgroup float a;");', []),
        ("struct threadgroup_size { int a; };", []),
    ],
)
def test_allocations(text: str, variables: list[list[str]]) -> None:
    assert found(text) == variables
    assert allocate_threadgroup(text).count("\n") == text.count("\n")
    if not variables:
        assert allocate_threadgroup(text) == text


def test_the_swizzles_are_those_of_their_maker() -> None:
    assert (INCLUDE / "sim" / "swizzles.h").read_text() == header()

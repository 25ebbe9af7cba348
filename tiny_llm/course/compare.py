"""In which way a result is wrong: type, shape, dtype, first NaN, value, in this order."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

EPSILON = {mx.float32: 2.0**-23, mx.float16: 2.0**-10, mx.bfloat16: 2.0**-7}
SHOWN = 6  # entries of a row
AnyArray = npt.NDArray[Any]


def as_numpy(x: mx.array) -> AnyArray:
    return np.array(x.astype(mx.float32) if x.dtype == mx.bfloat16 else x)


def difference(got: Any, want: Any, axes: Sequence[str], dtype: mx.Dtype | None, terms: int) -> list[str]:
    """Lines that say in which way `got` is not `want`; none where it is. The first goes behind the task's name."""
    if not isinstance(want, np.ndarray):
        return _plain(got, want)
    if not isinstance(got, mx.array):
        kind = "gave None: is a `return` missing?" if got is None else f"gave a {type(got).__name__}"
        return [kind, "expected an mx.array"]
    if got.shape != want.shape:
        return ["wrong shape" + _guess(got.shape, want.shape, axes), _shapes(got.shape, want.shape, axes)]
    if problem := _dtype(got.dtype, want, dtype):
        return problem
    return _values(as_numpy(got), want, axes, tolerance(got.dtype, want, terms))


def tolerance(dtype: mx.Dtype, want: AnyArray, terms: int) -> AnyArray:
    """What rounding may do to each value: a sum of n terms errs by about √n roundings of its largest term."""
    if want.dtype.kind != "f":
        return np.zeros(want.shape)
    finite = np.abs(np.where(np.isfinite(want), want, 0.0))
    allowed: AnyArray = 32 * EPSILON.get(dtype, 0.0) * terms**0.5 * (finite + finite.max(initial=0) / 4 + 1e-3)
    return allowed


def _plain(got: Any, want: Any) -> list[str]:
    if got is None and want is not None:
        return ["gave None: is a `return` missing?", f"expected {want!r:.200}"]
    if isinstance(want, list) and isinstance(got, list | tuple) and list(got) != want:
        pairs = [i for i, (a, b) in enumerate(zip(got, want, strict=False)) if a != b]
        first = pairs[0] if pairs else min(len(got), len(want))
        return [f"differs from entry {first} on", f"yours {got!r:.200} · expected {want!r:.200}"]
    if got == want or (isinstance(want, list) and list(got) == want):
        return []
    return ["differs", f"yours {got!r:.200} · expected {want!r:.200}"]


def _shapes(got: Sequence[int], want: Sequence[int], axes: Sequence[str]) -> str:
    named = axes if len(axes) == len(want) else [""] * len(want)
    expected = ", ".join(f"{name} {size}".strip() for name, size in zip(named, want, strict=True))
    return f"yours ({', '.join(map(str, got))}) · expected ({expected})"


def _guess(got: Sequence[int], want: Sequence[int], axes: Sequence[str]) -> str:
    if len(axes) != len(want):
        return ""
    for i, j in combinations(range(len(want)), 2):
        order = list(range(len(want)))
        order[i], order[j] = j, i
        if tuple(got) == tuple(want[k] for k in order):
            return f": {axes[i]} and {axes[j]} are swapped?"
    for i in range(len(want)):
        if tuple(got) == (*want[:i], *want[i + 1 :]):
            return f": the axis {axes[i]} is missing?"
    return ""


def _dtype(got: mx.Dtype, want: AnyArray, dtype: mx.Dtype | None) -> list[str]:
    if want.dtype.kind in "iu":
        ok, expected = mx.issubdtype(got, mx.integer), "integers"
    else:
        wanted = mx.bool_ if want.dtype.kind == "b" else dtype or mx.float32
        ok, expected = got == wanted, str(wanted).removeprefix("mlx.core.")
    return [] if ok else ["wrong dtype", f"yours {str(got).removeprefix('mlx.core.')} · expected {expected}"]


def _values(got: AnyArray, want: AnyArray, axes: Sequence[str], allowed: AnyArray) -> list[str]:
    nan = np.isnan(got) if got.dtype.kind == "f" else np.zeros(got.shape, bool)
    if (nan & ~np.isnan(want)).any():
        where = _first(nan)
        return [f"NaN in {nan.sum()} of {nan.size}, first at {_index(where, axes)}", f"expected {_number(want[where])}"]
    with np.errstate(invalid="ignore"):
        wrong = ~((got == want) | (np.abs(got - want) <= allowed)) if want.dtype.kind == "f" else got != want
    if not wrong.any():
        return []
    where = _first(wrong)
    yours, expected = _number(got[where]), _number(want[where])
    if yours == expected:
        yours, expected = (f"{float(x):.8g}" for x in (got[where], want[where]))
    lines = [f"{wrong.sum()} of {wrong.size} differ, first at {_index(where, axes)}"]
    lines.append(f"yours {yours} · expected {expected}")
    if want.ndim and want.shape[-1] > 1:
        row = where[:-1]
        name = f"row {_index(row, axes)}" if row else "all"
        lines.append(f"{name}: yours {_row(got[row])} · expected {_row(want[row])}")
    return lines


def _first(wrong: AnyArray) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(wrong)), wrong.shape))


def _index(where: Sequence[int], axes: Sequence[str]) -> str:
    names = [axis.lower() for axis in axes] if len(axes) >= len(where) else [""] * len(where)
    return "[" + " ".join(f"{name}{i}" for name, i in zip(names, where, strict=False)) + "]"


def _row(values: AnyArray) -> str:
    more = " …" if len(values) > SHOWN else ""
    return "(" + " ".join(_number(x) for x in values[:SHOWN]) + more + ")"


def _number(x: Any) -> str:
    return str(bool(x)) if isinstance(x, np.bool_) else f"{x:.3g}"

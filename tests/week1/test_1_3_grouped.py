"""1.3 Grouped queries: which K/V head a query head reads, and the attention that a cache calls."""

import mlx.core as mx
import numpy as np

from tests.week1.oracles import Array, attend, normal
from tiny_llm.course.check import Checker, task


def grouped(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: np.ndarray | None = None) -> Array:
    """One query head after the other. q (Hq, T, D), k and v (Hkv, S, D)."""
    share = q.shape[0] // k.shape[0]
    return np.stack([attend(q[h], k[h // share], v[h // share], scale, mask) for h in range(q.shape[0])])


def causal(q: mx.array, k: mx.array, v: mx.array, scale: float, window: int = 10**9) -> Array:
    """q (T, Hq, D), k and v (Hkv, S, D)."""
    place = np.arange(k.shape[1] - q.shape[0], k.shape[1])[:, None]
    back = place - np.arange(k.shape[1])
    return grouped(q.swapaxes(0, 1), k, v, scale, (back >= 0) & (back < window)).swapaxes(0, 1)


def arrays(*shapes: tuple[int, ...]) -> list[mx.array]:
    return [mx.array(normal(*shape, seed=i)) for i, shape in enumerate(shapes)]


@task("w1.3.1")
def test_neighbours_share_a_head(check: Checker) -> None:
    """Values of K/V head 0 are 1, those of head 1 are 2: query heads 0 and 1 see 1, heads 2 and 3 see 2."""
    q, k = arrays((4, 4, 2), (2, 4, 2))
    v = mx.array([[[1.0, 1.0]] * 4, [[2.0, 2.0]] * 4])
    want = np.repeat([1.0, 1.0, 2.0, 2.0], 8).reshape(4, 4, 2)
    check(lambda m: m.grouped_attention(q, k, v, 0.7), want, axes="H T D", terms=4)


@task("w1.3.1")
def test_one_head_for_each_and_one_for_all(check: Checker) -> None:
    """MHA and MQA are the two ends."""
    for kv_heads in (6, 3, 1):
        q, k, v = arrays((6, 4, 8), (kv_heads, 4, 8), (kv_heads, 4, 8))
        want = grouped(q, k, v, 8**-0.5)
        check(
            lambda m, q=q, k=k, v=v: m.grouped_attention(q, k, v, 8**-0.5),
            want,
            axes="H T D",
            what=f"6 query heads on {kv_heads}",
            terms=8,
        )


@task("w1.3.1")
def test_the_mask_holds_for_every_head(check: Checker) -> None:
    q, k, v = arrays((4, 3, 8), (2, 5, 8), (2, 5, 8))
    mask = np.tril(np.ones((3, 5), bool), 2)
    want = grouped(q, k, v, 0.3, mask)
    check(lambda m: m.grouped_attention(q, k, v, 0.3, mx.array(mask)), want, axes="H T D", terms=8)


@task("w1.3.2")
def test_four_tokens(check: Checker) -> None:
    q, k, v = arrays((4, 2, 2), (1, 4, 2), (1, 4, 2))
    check(lambda m: m.causal_attention(q, k, v, 0.7), causal(q, k, v, 0.7), axes="T H D", terms=4)


@task("w1.3.2")
def test_a_chunk_behind_a_cache(check: Checker) -> None:
    """Three new tokens, eight in all."""
    q, k, v = arrays((3, 4, 8), (2, 8, 8), (2, 8, 8))
    check(lambda m: m.causal_attention(q, k, v, 0.3), causal(q, k, v, 0.3), axes="T H D", terms=8)


@task("w1.3.2")
def test_a_window(check: Checker) -> None:
    q, k, v = arrays((5, 4, 8), (2, 9, 8), (2, 9, 8))
    check(lambda m: m.causal_attention(q, k, v, 0.3, 3), causal(q, k, v, 0.3, 3), axes="T H D", terms=8)

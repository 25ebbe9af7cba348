"""2.5 What the cache costs: bytes and slots by counting, rings by writing tokens down one by one."""

from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np

from tests.week1.tiny import QWEN3
from tiny_llm.course.check import Checker, task

FOUR = replace(QWEN3, num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=2, head_dim=64)
QWEN3_0_6B = replace(QWEN3, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8, head_dim=128)
RINGS = [(2, 6), (0, 4), (4, 5), (1, 8)]  # (sinks, capacity)


@task("w2.5.1")
def test_bytes_of_a_token(check: Checker) -> None:
    """3 layers, keys and values, 2 heads of 64 numbers: 768 numbers."""
    for width in (4, 2):
        check(lambda m, w=width: m.bytes_per_slot(FOUR, w), 768 * width, what=f"bytes ({width} a number)")
    check(lambda m: m.bytes_per_slot(QWEN3_0_6B, 2), 114_688, what="bytes (Qwen3-0.6B in bfloat16)")


@task("w2.5.1")
def test_bytes_of_a_packed_token(check: Checker) -> None:
    """768 numbers in 8 bits are 768 bytes; 12 groups of 64 bring 12 scales and 12 biases of 2 bytes each: 48."""
    check(lambda m: m.bytes_per_slot(FOUR, 2, 8, 64), 816, what="bytes (8 bits, groups of 64, scales of 2 bytes)")
    check(lambda m: m.bytes_per_slot(FOUR, 2, 4, 64), 432, what="bytes (4 bits, groups of 64, scales of 2 bytes)")
    check(lambda m: m.bytes_per_slot(FOUR, 4, 4, 32), 576, what="bytes (4 bits, groups of 32, scales of 4 bytes)")


@task("w2.5.2")
def test_whole_steps(check: Checker) -> None:
    sizes = [1, 255, 256, 257, 512, 1000]
    check(lambda m: [m.slots(n) for n in sizes], [256, 256, 256, 512, 512, 1024], what=f"slots of {sizes} tokens")
    check(lambda m: m.slots(0), 0, what="slots of no token")


@task("w2.5.2")
def test_a_window_ends_the_growth(check: Checker) -> None:
    sizes = [10, 300, 1000, 1280, 1281, 100_000]
    want = [256, 512, 1024, 1280, 1280, 1280]
    check(lambda m: [m.slots(n, 1024) for n in sizes], want, what=f"slots of {sizes} tokens, window 1,024")
    check(lambda m: [m.slots(n, 100) for n in (200, 300)], [256, 356], what="slots of 200 and 300 tokens, window 100")


def written(length: int, sinks: int, capacity: int) -> tuple[list[int], list[int]]:
    """(each position's slot, what each slot holds at the end), by going round; -1 for an empty slot."""
    places, held, at = list[int](), [-1] * capacity, 0
    for position in range(length):
        places.append(at)
        held[at] = position
        at = sinks if at == capacity - 1 else at + 1
    return places, held


@task("w2.5.3")
def test_two_sinks_and_a_ring_of_four(check: Checker) -> None:
    want = [0, 1, 2, 3, 4, 5, 2, 3, 4, 5, 2, 3]
    check(lambda m: [m.slot_of(p, 2, 6) for p in range(12)], want, what="slots of positions 0 to 11 (2 sinks, 6 slots)")


@task("w2.5.3")
def test_other_rings(check: Checker) -> None:
    for sinks, capacity in RINGS:
        want = written(40, sinks, capacity)[0]
        what = f"slots of positions 0 to 39 ({sinks} sinks, {capacity} slots)"
        check(lambda m, s=sinks, c=capacity: [m.slot_of(p, s, c) for p in range(40)], want, what=what)


@task("w2.5.4")
def test_two_sinks_and_a_ring_after_ten_tokens(check: Checker) -> None:
    check(lambda m: m.held_positions(9, 2, 6), np.array([0, 1, 6, 7, 8, 9]), axes="S")
    check(lambda m: m.held_positions(11, 2, 6), np.array([0, 1, 10, 11, 8, 9]), axes="S")


@task("w2.5.4")
def test_the_way_back_from_any_ring(check: Checker) -> None:
    for sinks, capacity in RINGS:
        for length in (capacity, capacity + 1, 2 * capacity + 3, 40):
            want, last = np.array(written(length, sinks, capacity)[1]), length - 1
            what = f"positions held (last {last}, {sinks} sinks, {capacity} slots)"
            check(lambda m, a=(last, sinks, capacity): m.held_positions(*a), want, axes="S", what=what)


@task("w2.5.4")
def test_slots_not_yet_written_hold_no_ring_position(check: Checker) -> None:
    def ring_positions(m: Any) -> list[int]:
        return [p if p >= 2 else -1 for p in m.held_positions(4, 2, 8).tolist()[2:]]

    check(ring_positions, [2, 3, 4, -1, -1, -1], what="ring positions (-1: below the sinks) after 5 tokens in 8 slots")


def seen(queries: list[int], held: list[int], sinks: int, recent: int) -> np.ndarray:
    """One query and one slot at a time."""
    mask = np.zeros((len(queries), len(held)), bool)
    for t, query in enumerate(queries):
        for slot, position in enumerate(held):
            kept = position in range(sinks) if slot < sinks else position >= sinks and query - position < recent
            mask[t, slot] = kept and position <= query
    return mask


@task("w2.5.5")
def test_a_decode_step(check: Checker) -> None:
    """Query 9, 2 sinks, the 2 newest: sinks 0 and 1, and 8 and 9."""
    held, want = mx.array([0, 1, 6, 7, 8, 9]), np.array([[True, True, False, False, True, True]])
    check(lambda m: m.visible(mx.array([9]), held, 2, 2), want, axes="T S")


@task("w2.5.5")
def test_a_chunk_and_slots_out_of_order(check: Checker) -> None:
    held = [0, 1, 10, 11, 12, 5, 6, 7, 8, 9]
    for sinks, recent in ((2, 1), (2, 4), (2, 6)):
        want = seen([10, 11, 12], held, sinks, recent)
        what = f"mask of queries 10 to 12 ({sinks} sinks, {recent} recent)"
        call = lambda m, s=sinks, r=recent: m.visible(mx.array([10, 11, 12]), mx.array(held), s, r)  # noqa: E731
        check(call, want, axes="T S", what=what)


@task("w2.5.5")
def test_empty_slots_and_the_future_are_not_seen(check: Checker) -> None:
    """Three tokens in all; slots 5 to 7 were never written, whatever number below the sinks they have."""
    held = [0, 1, 2, 3, 4, -1, 0, 1]
    want = seen([0, 1, 4], held, 2, 100)
    call = lambda m: m.visible(mx.array([0, 1, 4]), mx.array(held), 2, 100)  # noqa: E731
    check(call, want, axes="T S", what="mask of queries 0, 1 and 4 in 8 slots, of which 5 hold something")
    want = seen([3, 9], [6, 7, 8, 9], 0, 3)
    check(lambda m: m.visible(mx.array([3, 9]), mx.array([6, 7, 8, 9]), 0, 3), want, axes="T S", what="mask, no sinks")

"""A store of whole caches: each behaves like a cache by itself, forks are independent, and what is ahead goes back."""

from collections.abc import Iterable

import mlx.core as mx
import numpy as np
import pytest

from tests.cache.kinds import CONFIG, KINDS, inputs
from tiny_llm.cache.view import View
from tiny_llm.cache.whole import WholeCaches
from tiny_llm.engine.request import SequenceId, Share
from tiny_llm.model.ops import PLAIN

LONG = 40  # tokens of a text: more than any kind's window and spare slots
BLOCK_SIZE = 64
RINGS = [kind for kind in KINDS if kind.startswith("rotating")]


def part(block: int, start: int, end: int) -> Share:
    """The tokens `start` to `end - 1` of the sequence in this block."""
    tokens = (0,) * (end - start)
    return Share(SequenceId("r", block), start, tokens, 0, View((block,), start))


def make_store(kind: str, kept: int = 1) -> WholeCaches:
    return WholeCaches(lambda: KINDS[kind](CONFIG, PLAIN), 6, BLOCK_SIZE, kept)


def text(seed: int) -> list[tuple[mx.array, mx.array, mx.array]]:
    """What each layer is given for a text of LONG tokens."""
    return [inputs(CONFIG, LONG, 10 * seed + layer) for layer in range(2)]


def spliced(first: list, other: list, at: int) -> list[tuple[mx.array, ...]]:
    """A text that begins like the first one and goes on like the other one from token `at` on."""
    layers = []
    for layer in range(2):
        pairs = zip(first[layer], other[layer], strict=True)
        layers.append(tuple(mx.concatenate([a[:at], b[at:]]) for a, b in pairs))
    return layers


def attend(store: WholeCaches, parts: Iterable[Share], texts: Iterable[list]) -> list[np.ndarray]:
    """One step through both layers; what each of the sequences sees in the last layer."""
    parts, texts = list(parts), list(texts)
    batch = store.batch(parts)
    positions = batch.begin(sum(share.length for share in parts))
    assert positions.tolist() == [position for share in parts for position in range(share.start, share.end)]
    seen = mx.array([])
    for layer in range(2):
        rows = []
        for number in range(3):
            own = [one[layer][number][share.start : share.end] for share, one in zip(parts, texts, strict=True)]
            rows.append(mx.concatenate(own))
        seen = batch.attend(layer, *rows)
    found = []
    begin = 0
    for share in parts:
        found.append(np.array(seen[begin : begin + share.length]))
        begin += share.length
    return found


def alone(kind: str, layers: list, ends: Iterable[int]) -> list[np.ndarray]:
    """What a cache by itself gives for steps that end at `ends`."""
    cache = KINDS[kind](CONFIG, PLAIN)
    found = []
    begin = 0
    for end in ends:
        cache.begin(end - begin)
        for layer in range(2):
            seen = cache.attend(layer, *(rows[begin:end] for rows in layers[layer]))
        found.append(np.array(seen))
        begin = end
    return found


def assert_close(mine: np.ndarray, theirs: np.ndarray) -> None:
    np.testing.assert_allclose(mine, theirs, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_sequences_side_by_side_see_what_they_see_alone(kind: str) -> None:
    store, texts = make_store(kind), [text(1), text(2), text(3)]
    ends = [[5, 20, 21, LONG], [1, 17, 18, LONG], [9, 10, 30, LONG]]
    begins = [0, 0, 0]
    wants = [alone(kind, one, its) for one, its in zip(texts, ends, strict=True)]
    for step in range(4):
        parts = [part(block, begins[block], ends[block][step]) for block in range(3)]
        for block, seen in enumerate(attend(store, parts, texts)):
            assert_close(seen, wants[block][step])
        begins = [share.end for share in parts]


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_sequence_gets_its_cache_as_it_is(kind: str) -> None:
    store = make_store(kind)
    batch = store.batch([part(2, 0, 3)])
    assert batch is store.caches[2]


@pytest.mark.parametrize("kind", KINDS)
def test_forks_go_on_independently(kind: str) -> None:
    store, first, other = make_store(kind), text(1), text(2)
    attend(store, [part(0, 0, 12)], [first])
    store.copy_blocks([(0, 1)])
    mixed = spliced(first, other, 12)
    seen = attend(store, [part(0, 12, 30), part(1, 12, 30)], [first, mixed])
    assert_close(seen[0], alone(kind, first, [12, 30])[1])
    assert_close(seen[1], alone(kind, mixed, [12, 30])[1])


def test_two_blocks_may_change_places_in_one_copy() -> None:
    """All sources are read before a target is written."""
    store, first, other = make_store("contiguous"), text(1), text(2)
    attend(store, [part(0, 0, 8), part(1, 0, 8)], [first, other])
    store.copy_blocks([(0, 1), (1, 0)])
    seen = attend(store, [part(0, 8, 9), part(1, 8, 9)], [other, first])
    assert_close(seen[0], alone("contiguous", other, [8, 9])[1])
    assert_close(seen[1], alone("contiguous", first, [8, 9])[1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_that_is_ahead_goes_back(kind: str) -> None:
    """A step that begins earlier than its cache ends makes the cache forget the tokens between."""
    store, layers = make_store(kind), text(1)
    attend(store, [part(0, 0, 5)], [layers])
    again = attend(store, [part(0, 3, 5)], [layers])
    assert store.caches[0].offset == 5
    assert_close(again[0], alone(kind, layers, [3, 5])[1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_that_begins_anew_gets_an_empty_cache(kind: str) -> None:
    store, first, other = make_store(kind), text(1), text(2)
    attend(store, [part(0, 0, LONG)], [first])
    seen = attend(store, [part(0, 0, 7)], [other])
    assert_close(seen[0], alone(kind, other, [7])[0])


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_built_ahead_counts_only_once_it_is_adopted(kind: str) -> None:
    layers = text(1)
    wants = alone(kind, layers, [12, 13, 14])
    store = make_store(kind)
    attend(store, [part(0, 0, 12)], [layers])
    ahead = store.ahead()
    attend(ahead, [part(0, 12, 13)], [text(9)])  # a prediction that proves wrong
    assert store.caches[0].offset == 12
    assert_close(attend(store, [part(0, 12, 13)], [layers])[0], wants[1])
    ahead = store.ahead()
    seen = attend(ahead, [part(0, 13, 14)], [layers])
    store.adopt(ahead)
    assert store.caches[0].offset == 14
    assert_close(seen[0], wants[2])


def test_a_store_writes_into_its_caches_again_after_it_has_adopted_a_step() -> None:
    """Only what is built ahead forks: the store itself must not copy a cache in every step."""
    store, layers = make_store("contiguous"), text(1)
    attend(store, [part(0, 0, 12)], [layers])
    ahead = store.ahead()
    attend(ahead, [part(0, 12, 13)], [layers])
    store.adopt(ahead)
    cache = store.caches[0]
    attend(store, [part(0, 13, 14)], [layers])
    assert store.caches[0] is cache


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in RINGS])
def test_a_cache_that_holds_every_token_can_keep_any_beginning(kind: str) -> None:
    store = make_store(kind)
    attend(store, [part(0, 0, LONG)], [text(1)])
    assert all(store.can_keep(0, count) for count in range(1, LONG + 1))
    assert not store.can_keep(5, 1)  # no cache


@pytest.mark.parametrize("kind", RINGS)
def test_a_ring_beyond_its_window_can_keep_no_short_beginning(kind: str) -> None:
    store = make_store(kind)
    attend(store, [part(0, 0, LONG)], [text(1)])
    spare = store.caches[0].spare
    assert store.can_keep(0, LONG) and store.can_keep(0, LONG - spare)
    assert not store.can_keep(0, LONG - spare - 2)
    assert not store.can_keep(0, 1)


def test_a_cache_that_was_filled_elsewhere_is_gone_on_from() -> None:
    layers, cache = text(1), KINDS["contiguous"](CONFIG, PLAIN)
    cache.begin(10)
    for layer in range(2):
        cache.attend(layer, *(rows[:10] for rows in layers[layer]))
    store = make_store("contiguous")
    store.put(3, cache)
    seen = attend(store, [part(3, 10, 12)], [layers])
    assert_close(seen[0], alone("contiguous", layers, [10, 12])[1])


def test_unused_caches_are_dropped_and_the_others_stay() -> None:
    store, layers = make_store("contiguous"), text(1)
    attend(store, [part(block, 0, 5) for block in range(4)], [layers] * 4)
    full = store.nbytes
    store.drop_unused({1, 3}.__contains__)
    assert set(store.caches) == {1, 3}
    assert store.nbytes == full // 2
    assert_close(attend(store, [part(3, 5, 6)], [layers])[0], alone("contiguous", layers, [5, 6])[1])


def test_mending_says_that_all_is_lost() -> None:
    store = make_store("contiguous")
    attend(store, [part(0, 0, 5)], [text(1)])
    assert not store.mend()
    assert not store.caches and not store.nbytes and store.state == []


def test_the_state_has_every_array_of_every_cache() -> None:
    store = make_store("8 bits")
    attend(store, [part(0, 0, 5), part(1, 0, 6)], [text(1), text(2)])
    assert len(store.state) == 2 * 2 * 2 * 3  # caches, layers, keys and values, codes with scales and biases
    assert store.nbytes == sum(array.nbytes for array in store.state)

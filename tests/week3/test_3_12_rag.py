"""3.12 Retrieval: chunks that overlap, ranks that are fused, a packed prompt, and citations that are checked."""

import random
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from tiny_llm.apps.rag.words import content_words
from tiny_llm.course.check import Checker, task

Spans = list[list[int]]


def spans_of(lengths: Sequence[int], size: int, overlap: int) -> Spans:
    """The chunks, each start found by trying all of them from the front."""
    found: Spans = []
    begin = 0
    while True:
        end = begin + 1
        while end < len(lengths) and sum(lengths[begin : end + 1]) <= size:
            end += 1
        found.append([begin, end])
        if end == len(lengths):
            return found
        starts = range(begin + 1, end + 1)
        ok = [s for s in starts if sum(lengths[s:end]) <= overlap and sum(lengths[s : end + 1]) <= size]
        begin = ok[0] if ok else end


def listed(spans: Any) -> Spans:
    return [[int(begin), int(end)] for begin, end in spans]


@task("w3.12.1")
def test_four_sentences_by_hand(check: Checker) -> None:
    """Four units of 4 tokens, two to a chunk, one of them shared; then without overlap."""
    check(lambda m: listed(m.windows([4, 4, 4, 4], 9, 5)), [[0, 2], [1, 3], [2, 4]], what="chunks of 9 with 5 shared")
    check(lambda m: listed(m.windows([4, 4, 4, 4], 8, 0)), [[0, 2], [2, 4]], what="chunks of 8 with nothing shared")


@task("w3.12.1")
def test_a_unit_may_fill_the_chunk_exactly(check: Checker) -> None:
    cases = [([8, 8], 8, 4), ([3, 5, 3, 5], 8, 3), ([8], 8, 4), ([5, 4, 5], 8, 5)]
    want = [spans_of(*case) for case in cases]
    check(lambda m: [listed(m.windows(*case)) for case in cases], want, what="four texts in chunks of 8")


@task("w3.12.1")
def test_the_next_chunk_always_has_something_new(check: Checker) -> None:
    """The overlap would let 6 and 2 be shared, but then the unit of 7 does not fit behind them."""
    cases = [([6, 2, 7, 1], 10, 8), ([2, 2, 2, 9, 1], 10, 6), ([1, 1, 1, 1, 1], 3, 3), ([5, 5, 9], 14, 8)]
    want = [spans_of(*case) for case in cases]
    check(lambda m: [listed(m.windows(*case)) for case in cases], want, what="four texts with long units")


@task("w3.12.1")
def test_a_unit_that_is_too_long_stands_alone(check: Checker) -> None:
    cases = [([12], 8, 4), ([3, 12, 3], 8, 4), ([12, 12], 8, 0), ([1, 12, 1, 1], 8, 2)]
    want = [spans_of(*case) for case in cases]
    check(lambda m: [listed(m.windows(*case)) for case in cases], want, what="four texts with units beyond 8")
    check(lambda m: listed(m.windows([], 8, 4)), [], what="a text without units")


@task("w3.12.1")
def test_random_texts(check: Checker) -> None:
    draw = random.Random(0)
    cases = [([draw.randint(1, 9) for _ in range(30)], draw.randint(9, 24), draw.randint(0, 12)) for _ in range(20)]
    want = [spans_of(*case) for case in cases]
    check(lambda m: [listed(m.windows(*case)) for case in cases], want, what="twenty texts of thirty units")


def fused(rankings: Sequence[Sequence[str]], k: int) -> list[list[Any]]:
    seen = list(dict.fromkeys(item for ranking in rankings for item in ranking))
    score = {
        item: sum(Fraction(1, k + ranking.index(item) + 1) for ranking in rankings if item in ranking) for item in seen
    }
    return [[item, round(float(score[item]), 9)] for item in sorted(seen, key=lambda item: -score[item])]


def told(pairs: Any) -> list[list[Any]]:
    return [[item, round(float(score), 9)] for item, score in pairs]


@task("w3.12.2")
def test_two_rankings_by_hand(check: Checker) -> None:
    """a: 1/61 + 1/63, b: 1/62 + 1/61, so b is first."""
    rankings = [["a", "b", "c"], ["b", "d", "a"]]
    want = fused(rankings, 60)
    assert [item for item, _ in want] == ["b", "a", "d", "c"]
    check(lambda m: told(m.fuse(rankings)), want, what="two rankings fused")


@task("w3.12.2")
def test_k_and_ties(check: Checker) -> None:
    """With a small k a first place counts more than two third places; equal scores keep the order of first sight."""
    rankings = [["x", "p", "y"], ["q", "r", "y"]]
    check(lambda m: told(m.fuse(rankings, 1)), fused(rankings, 1), what="fused with k = 1")
    check(lambda m: told(m.fuse(rankings, 60)), fused(rankings, 60), what="fused with k = 60")
    check(lambda m: told(m.fuse([["z", "a"], ["a", "z"]])), fused([["z", "a"], ["a", "z"]], 60), what="a tie")


@task("w3.12.2")
def test_empty_rankings(check: Checker) -> None:
    check(lambda m: told(m.fuse([])), [], what="no ranking")
    check(lambda m: told(m.fuse([[], ["a"], []])), fused([["a"]], 60), what="one of three has an item")


@task("w3.12.2")
def test_random_rankings(check: Checker) -> None:
    draw = random.Random(1)
    cases = [[draw.sample("abcdefghij", draw.randint(1, 9)) for _ in range(3)] for _ in range(10)]
    want = [fused(case, 60) for case in cases]
    check(lambda m: [told(m.fuse(case)) for case in cases], want, what="three rankings fused, ten times")


@task("w3.12.3")
def test_the_best_that_fit(check: Checker) -> None:
    """6 fits, 7 does not fit into the 4 that are left, 3 does."""
    check(lambda m: list(m.pack([6, 7, 3], 10, 5, [0, 1, 2])), [0, 2], what="costs 6, 7, 3 in 10")
    check(lambda m: list(m.pack([6, 4, 1], 10, 5, [0, 1, 2])), [0, 1], what="costs 6, 4, 1 in 10")
    check(lambda m: list(m.pack([11, 12], 10, 5, [0, 1])), [], what="nothing fits")
    check(lambda m: list(m.pack([], 10, 5, [])), [], what="no passages")


@task("w3.12.3")
def test_no_more_than_wanted(check: Checker) -> None:
    check(lambda m: list(m.pack([1, 1, 1, 1], 10, 2, [0, 1, 2, 3])), [0, 1], what="two of four")
    check(lambda m: list(m.pack([20, 1, 1, 1], 10, 2, [0, 1, 2, 3])), [1, 2], what="two, and the first is too long")


@task("w3.12.3")
def test_they_stand_in_the_order_of_the_documents(check: Checker) -> None:
    """Two questions find the same three passages in another order: the prompts begin alike."""
    check(lambda m: list(m.pack([1, 1, 1], 10, 3, [40, 7, 23])), [1, 2, 0], what="by place")
    one, other = [40, 7, 23], [7, 40, 23]
    call = [sorted(one), sorted(other)]
    check(
        lambda m: [[places[i] for i in m.pack([1, 1, 1], 10, 3, places)] for places in (one, other)],
        call,
        what="the places of two prompts",
    )
    check(lambda m: list(m.pack([5, 5, 5], 10, 3, [9, 8, 1])), [1, 0], what="chosen by rank, sorted by place")


def cited(found: Any) -> list[list[Any]]:
    return [[c.number, c.claim, c.exists, round(float(c.overlap), 9)] for c in found]


PASSAGES = ["The red mill was built in 1871 by Odo Tamsin.", "The pool has eight lanes.", "Rye bread and honey."]


def support(claim: str, passage: str) -> float:
    said = set(content_words(claim))
    return round(len(said & set(content_words(passage))) / len(said), 9)


@task("w3.12.4")
def test_citations_by_hand(check: Checker) -> None:
    answer = "It was built in 1871 [1]. The pool has nine lanes [2]."
    want = [
        [1, "It was built in 1871", True, 1.0],
        [2, "The pool has nine lanes", True, support("The pool has nine lanes", PASSAGES[1])],
    ]
    assert want[1][3] == round(2 / 3, 9)
    check(lambda m: cited(m.check_citations(answer, PASSAGES)), want, what="two citations")


@task("w3.12.4")
def test_a_number_without_a_passage(check: Checker) -> None:
    answers = ["1871 [4].", "1871 [0].", "Eight [3]."]
    want = [[[4, "1871", False, 0.0]], [[0, "1871", False, 0.0]], [[3, "Eight", True, 0.0]]]
    call = "of 4, 0 and 3 only 3 exists"
    check(lambda m: [cited(m.check_citations(answer, PASSAGES)) for answer in answers], want, what=call)


@task("w3.12.4")
def test_the_claim_is_the_last_sentence(check: Checker) -> None:
    answer = "The pool is large. It has eight lanes [2]. Odo Tamsin built the mill [1]"
    want = [[2, "It has eight lanes", True, 1.0], [1, "Odo Tamsin built the mill", True, 1.0]]
    check(lambda m: cited(m.check_citations(answer, PASSAGES)), want, what="a sentence without a mark before")


@task("w3.12.4")
def test_marks_side_by_side_share_the_claim(check: Checker) -> None:
    answer = "Eight lanes [1][2], [3]."
    want = [[1, "Eight lanes", True, 0.0], [2, "Eight lanes", True, 1.0], [3, "Eight lanes", True, 0.0]]
    check(lambda m: cited(m.check_citations(answer, PASSAGES)), want, what="three marks for one claim")


@task("w3.12.4")
def test_only_content_words_count_and_each_once(check: Checker) -> None:
    """ "it is the" is in every text, and a word said twice is one word."""
    answers = ["It is the [1].", "mill mill honey [1].", "MILLS [1].", "[1] first."]
    want = [
        [[1, "It is the", True, 0.0]],
        [[1, "mill mill honey", True, 0.5]],
        [[1, "MILLS", True, 1.0]],
        [[1, "", True, 0.0]],
    ]
    check(lambda m: [cited(m.check_citations(answer, PASSAGES)) for answer in answers], want, what="four answers")
    check(lambda m: cited(m.check_citations("The documents do not say.", PASSAGES)), [], what="no mark")

"""3.9 Trees, Medusa and EAGLE: what a token of a tree sees, the likeliest lines, rows of the text, targets of heads."""

from collections.abc import Callable, Sequence
from itertools import product
from random import Random
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np

from tests.week3.guessing import Scripted, answered, following, half_right, in_place, llm, new_loop, plain, requests
from tiny_llm.cache import scattered
from tiny_llm.cache.contiguous import ContiguousCache
from tiny_llm.cache.view import View
from tiny_llm.course.check import Checker, task
from tiny_llm.decode.acceptance import DraftTree
from tiny_llm.engine.request import Result, SequenceId, Share
from tiny_llm.engine.request import Sequence as Running

# 0 → 1, 2; 1 → 3, 4; 2 → 5; and another tree beside it: 6 → 7
PARENTS = (-1, 0, 0, 1, 1, 2, -1, 6)


def walked_up(parents: Sequence[int], token: int) -> list[int]:
    """The token, its parent and so on."""
    found = [token]
    while parents[found[-1]] >= 0:
        found.append(parents[found[-1]])
    return found


def seen_by(parents: Sequence[int]) -> list[list[list[int]]]:
    """The depth of each token alone in a list, then which tokens it sees."""
    found = []
    for token in range(len(parents)):
        ancestors = walked_up(parents, token)
        found.append([[len(ancestors) - 1], [int(other in ancestors) for other in range(len(parents))]])
    return found


def seen_of(m: Any, parents: Sequence[int]) -> list[list[list[int]]]:
    depths, seen = m.ancestry(parents)
    return [[[int(d)], [int(x) for x in row]] for d, row in zip(np.asarray(depths), np.asarray(seen), strict=True)]


@task("w3.9.1")
def test_a_tree_by_hand(check: Checker) -> None:
    assert [d[0][0] for d in seen_by(PARENTS)] == [0, 1, 1, 2, 2, 2, 0, 1]
    assert seen_by(PARENTS)[4][1] == [1, 1, 0, 0, 1, 0, 0, 0]
    check(lambda m: seen_of(m, PARENTS), seen_by(PARENTS), what=f"[[depth], what it sees] with the parents {PARENTS}")


@task("w3.9.1")
def test_a_chain_and_a_row_of_siblings(check: Checker) -> None:
    cases = [(-1,), (-1, 0, 1, 2), (-1, -1, -1), (-1, 0, 0, 0), (-1, 0, 1, 1, 3, 3)]
    check(lambda m: [seen_of(m, case) for case in cases], [seen_by(case) for case in cases], what=f"of {cases}")


@task("w3.9.1")
def test_random_parents(check: Checker) -> None:
    rng = Random(0)
    cases = [tuple(rng.randrange(-1, token) for token in range(size)) for size in (5, 12, 30, 64)]
    check(lambda m: [seen_of(m, case) for case in cases], [seen_by(case) for case in cases], what="of random trees")


@task("w3.9.1")
def test_types_of_what_a_mask_is_made_of(check: Checker) -> None:
    def call(m: Any) -> list[Any]:
        depths, seen = m.ancestry(PARENTS)
        return [str(depths.dtype), list(depths.shape), str(seen.dtype), list(seen.shape)]

    check(call, ["int32", [8], "bool", [8, 8]], what="type and shape of the depths, and of what is seen")


@task("w3.9.1")
def test_answers_with_trees_are_those_without(check: Checker) -> None:
    """Through the engine: a token that sees too much, or stands elsewhere, draws another token."""
    check(lambda m: seen_of(m, PARENTS), seen_by(PARENTS), what=f"[[depth], what it sees] with the parents {PARENTS}")

    def call(m: Any) -> list[Any]:
        with in_place(scattered, "ancestry", m.ancestry):
            answers, counts = answered(new_loop(), Scripted(half_right))
        return [answers == plain(), counts.accepted > 10]

    check(call, [True, True], what="equal? more than 10 guesses accepted?")


Places = Sequence[tuple[Sequence[int], Sequence[float]]]  # tokens, best first, and their log-probabilities


def lines_of(places: Places, limit: int, least: float) -> list[tuple[int, ...]]:
    """The ranks of the likeliest lines, by sorting every line that there is."""
    found = []
    for depth in range(1, len(places) + 1):
        for ranks in product(*(range(len(tokens)) for tokens, _ in places[:depth])):
            total = 0.0
            for (_, log_q), rank in zip(places, ranks, strict=False):
                total += log_q[rank]
            if total >= least:
                found.append((-total, ranks))
    return [ranks for _, ranks in sorted(found)[:limit]]


def tree_by_sorting(places: Places, limit: int, least: float) -> DraftTree:
    lines = lines_of(places, limit, least)
    tokens = tuple(places[len(ranks) - 1][0][ranks[-1]] for ranks in lines)
    return DraftTree(tokens, tuple(lines.index(ranks[:-1]) if ranks[1:] else -1 for ranks in lines))


def tree_of(m: Any, places: Places, limit: int, least: float) -> Any:
    return m.likeliest_tree([m.Ranked(tokens, log_q) for tokens, log_q in places], limit, least)


def told(tree: Any) -> list[list[int]]:
    return [list(tree.tokens), list(tree.parents)]


def check_trees(check: Checker, asked: Sequence[tuple[Places, int, float]], what: str) -> None:
    want = [told(tree_by_sorting(*one)) for one in asked]
    check(lambda m: [told(tree_of(m, *one)) for one in asked], want, what=f"[tokens, parents] of {what}")


def logs(*odds: float) -> list[float]:
    return np.log(odds).tolist()


BY_HAND: Places = [([7, 8, 9], logs(0.6, 0.29, 0.05)), ([4, 5], logs(0.7, 0.25)), ([1, 2], logs(0.5, 0.45))]


@task("w3.9.2")
def test_the_likeliest_lines_by_hand(check: Checker) -> None:
    """7 has .6, 7 4 has .42, 8 has .29, 7 4 1 has .21, 8 4 has .203, 7 4 2 has .189, 7 5 has .15."""
    want = [[7, 4, 8, 1, 4, 2, 5], [-1, 0, -1, 1, 2, 1, 0]]
    assert told(tree_by_sorting(BY_HAND, 7, -9.0)) == want
    check_trees(check, [(BY_HAND, 7, -99.0)], "the 7 likeliest lines")
    check_trees(check, [(BY_HAND, limit, -99.0) for limit in (1, 2, 3, 12, 63)], "1, 2, 3, 12 and 63 lines")


@task("w3.9.2")
def test_lines_under_least_are_left_out(check: Checker) -> None:
    """These sums are exact: 8 4 has -2, which is not under -2."""
    places: Places = [([7, 8, 9], [-0.5, -1.5, -4.0]), ([4, 5], [-0.5, -1.375]), ([1], [-0.25])]
    assert told(tree_by_sorting(places, 9, -2.0)) == [[7, 4, 1, 8, 5, 4], [-1, 0, 1, -1, 0, 3]]
    check_trees(check, [(places, 9, least) for least in (-0.25, -0.5, -1.25, -1.5, -2.25, -3.0)], "lines over a border")
    check_trees(check, [(places, limit, -1.25) for limit in (0, 1, 2, 3)], "at most 0, 1, 2 and 3 lines")
    check_trees(check, [([], 5, -9.0), (places[2:], 5, -9.0)], "of no place, and of one with a single token")


@task("w3.9.2")
def test_random_places(check: Checker) -> None:
    asked = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        places = []
        for _ in range(1 + seed % 4):
            log_q = np.sort(np.log(rng.dirichlet(np.full(12, 0.5))))[::-1][: 1 + seed % 7]
            places.append((rng.permutation(300)[: len(log_q)].tolist(), log_q.tolist()))
        asked.append((places, 3 + 5 * seed, -2.0 - seed))
    check_trees(check, asked, "random places")


@task("w3.9.2")
def test_of_equally_likely_lines_any(check: Checker) -> None:
    places: Places = [([1, 2], [-1.0, -1.0]), ([3, 4], [-1.0, -1.0])]

    def call(m: Any) -> list[Any]:
        tree = DraftTree(*tree_of(m, places, 4, -9.0)[:2])
        tree.check()
        return [sorted(tree.depths()), tree.tokens[0] in (1, 2)]

    check(call, [[1, 1, 2, 2], True], what="depths, is the first a guess at the first token?")


def ranked_future(sequence: Running, limit: int) -> Places:
    """The tokens that will follow, each at some rank among others."""
    rng = Random(len(sequence.tokens))
    places = []
    for right in following(sequence, limit):
        tokens = rng.sample([token for token in range(300) if token != right], 2)
        tokens.insert(rng.choice([0, 0, 1, 2]), right)
        odds = sorted((rng.random() for _ in tokens), reverse=True)
        places.append((tokens, logs(*(0.9 * x / sum(odds) for x in odds))))
    return places


@task("w3.9.2")
def test_the_engine_finds_the_right_line_in_the_tree(check: Checker) -> None:
    """Equal answers, and as many guesses accepted as of the trees that sorting makes."""

    def run(build: Callable[[Places, int, float], DraftTree]) -> list[Any]:
        drafter = Scripted(lambda sequence, limit: build(ranked_future(sequence, limit), limit, -9.0))
        answers, counts = answered(new_loop(), drafter, most=6)
        return [answers == plain(), counts.accepted]

    want = run(tree_by_sorting)
    assert want[0] and want[1] > 15
    check(lambda m: run(lambda *asked: DraftTree(*tree_of(m, *asked)[:2])), want, what="equal? guesses accepted")


def share_of(known: int, wanted: int, parents: Sequence[int] | None) -> Share:
    """Known tokens 100, 101, … and guesses behind them: `parents` are those of the draft, None for a chain."""
    count = max(0, wanted - 1)
    row = None if parents is None else (*range(-1, known - 1), *(known + parent for parent in parents))
    return Share(SequenceId("one", 0), 40, tuple(range(100, 100 + known + count)), wanted, View((3,), 40), row)


def rows_by_text(share: Share, known: int, kept: Sequence[int]) -> list[int]:
    """The rows of the tokens that the text has now, looked up by the tokens, which all differ."""
    text = [*share.tokens[:known], *(share.draft.tokens[node] for node in kept)]
    return [share.tokens.index(token) for token in text]


TREE = (-1, -1, 0, 1, 1, 4)  # of the draft
ROWS = [
    (1, 7, TREE, (1, 4, 5)),
    (1, 7, TREE, (0, 2)),
    (1, 7, TREE, (1,)),
    (1, 7, TREE, ()),
    (5, 7, TREE, (1, 3)),
    (1, 4, None, (0, 1)),
    (1, 4, None, (0, 1, 2)),
    (6, 1, None, ()),
    (1, 1, None, ()),
    (6, 0, None, ()),
]


@task("w3.9.3")
def test_rows_by_hand(check: Checker) -> None:
    """Trees and chains behind one token and behind five; the end of a prompt, a decode, a chunk of a prompt."""
    want, asked = [], []
    for known, wanted, parents, kept in ROWS:
        share = share_of(known, wanted, parents)
        asked.append((share, Result((7,) * bool(wanted), kept=kept)))
        want.append(rows_by_text(share, known, kept))
    assert want[0] == [0, 2, 5, 6] and want[4] == [0, 1, 2, 3, 4, 6, 8] and want[-1] == [0, 1, 2, 3, 4, 5]
    check(lambda m: [list(m.rows_of_text(*one)) for one in asked], want, what="rows of ten shares")


class Noting(Scripted):
    """Guesses, and notes the model's features for each position of each text."""

    taps = (llm().config.num_hidden_layers - 1,)

    def __init__(self, m: Any):
        super().__init__(half_right)
        self.m = m
        self.noted: list[tuple[SequenceId, int, Any]] = []

    def observe(self, seen: Sequence[Any]) -> None:
        for share, result, features in seen:
            rows = list(self.m.rows_of_text(share, result))
            for position, row in enumerate(rows, share.start):
                self.noted.append((share.sequence, position, np.array(features[row])))

    def copy_blocks(self, pairs: Any) -> None:
        pass


@task("w3.9.3")
def test_features_are_those_of_the_texts_tokens(check: Checker) -> None:
    """Through the engine: each noted vector equals that of a pass over the whole text, and no position is left out."""
    texts = {SequenceId(one.id, 0): [*one.tokens, *plain()[SequenceId(one.id, 0)]] for one in requests()}
    alone = {name: features_of(tokens, Noting.taps) for name, tokens in texts.items()}

    def call(m: Any) -> list[Any]:
        loop, drafter = new_loop(), Noting(m)
        loop.runner.taps = drafter.taps
        answers, counts = answered(loop, drafter)
        near = [
            position < len(alone[name]) and np.allclose(vector, alone[name][position], atol=1e-3)
            for name, position, vector in drafter.noted
        ]
        ends = [max(p for n, p, _ in drafter.noted if n == name) + 1 for name in texts]
        gaps = [position for name in texts for position in missing(drafter.noted, name)]
        long = [end >= len(text) - 5 for end, text in zip(ends, texts.values(), strict=True)]
        return [answers == plain(), counts.accepted > 10, all(near), gaps, all(long)]

    what = "equal? over 10 accepted? features right? positions left out, up to the end?"
    check(call, [True, True, True, [], True], what=what)


def features_of(tokens: Sequence[int], taps: tuple[int, ...]) -> Any:
    model = llm().model
    _, features = model.layer_outputs(mx.array(tokens), ContiguousCache(model.config, model.ops), taps)
    return np.array(features)


def missing(noted: Sequence[tuple[SequenceId, int, Any]], name: SequenceId) -> list[int]:
    """The positions between the first and the last noted ones of a text that were not noted."""
    positions = {position for other, position, _ in noted if other == name}
    return [position for position in range(min(positions), max(positions)) if position not in positions]


Text = tuple[list[int], int]  # its tokens, and how many of them are the prompt
TEXTS: list[Text] = [([11, 12, 13, 14], 2), ([15, 16, 17], 1), ([18], 0), ([19, 20, 21, 22, 23], 4)]
DISTANCES = (1, 2, 3, 4)


def targets(texts: Sequence[Text], places: int) -> list[Any]:
    """For each token: the one so many places after it in its own text (-1: none), and whether that is an answer's."""
    found = []
    for tokens, num_prompt in texts:
        for place in range(len(tokens)):
            there = place + places
            inside = there < len(tokens)
            found.append([tokens[there] if inside else -1, inside and there >= num_prompt])
    return found


def targets_of(m: Any, texts: Sequence[Text], places: int) -> list[Any]:
    """The same of `Row.ahead`; a token where the text has none may be any, and is shown as -1."""
    samples = [
        m.Sample(np.array(tokens, np.int32), count, np.zeros((len(tokens), 4), np.float16)) for tokens, count in texts
    ]
    tokens, own = m.Row.of(samples).ahead(places)
    inside = [place + places < len(text) for text, _ in texts for place in range(len(text))]
    rows = zip(tokens.tolist(), own.tolist(), strict=True)
    return [[token if known else -1, bool(counts)] for (token, counts), known in zip(rows, inside, strict=False)]


@task("w3.9.4")
def test_targets_by_hand(check: Checker) -> None:
    """Two places ahead in 11 12 13 14 and 15 16 17: behind 13 comes nothing, though 16 stands there."""
    assert targets(TEXTS[:2], 2)[:4] == [[13, True], [14, True], [-1, False], [-1, False]]
    check(lambda m: targets_of(m, TEXTS[:2], 2), targets(TEXTS[:2], 2), what="[token, learned?] two places ahead")


@task("w3.9.4")
def test_other_distances_and_texts(check: Checker) -> None:
    cases = [*product((TEXTS, TEXTS[:1], TEXTS[3:], TEXTS[::-1]), DISTANCES[:3]), (TEXTS, 4)]
    want = [targets(*case) for case in cases]
    check(lambda m: [targets_of(m, *case) for case in cases], want, what="[token, learned?] 1 to 4 places ahead")


@task("w3.9.4")
def test_arrays_are_as_long_as_the_row(check: Checker) -> None:
    def call(m: Any) -> list[Any]:
        sample = m.Sample(np.arange(6, dtype=np.int32), 2, np.zeros((6, 4), np.float16))
        tokens, own = m.Row.of([sample]).ahead(2)
        return [tokens.shape[0], str(tokens.dtype), own.shape[0], str(own.dtype)]

    check(call, [6, "mlx.core.int32", 6, "mlx.core.bool"], what="length and type of the tokens, and of what is learned")


@task("w3.9.4")
def test_what_training_begins_with(check: Checker) -> None:
    """New heads change nothing: head j asks the model's own distribution behind t for the token j + 2 places on."""
    check(lambda m: targets_of(m, TEXTS[:2], 2), targets(TEXTS[:2], 2), what="[token, learned?] two places ahead")
    rng = np.random.default_rng(1)
    texts = [(rng.integers(0, 300, 20).tolist(), rng.integers(0, 300, 110).tolist()) for _ in range(3)]
    want = first_loss(texts)

    def call(m: Any) -> bool:
        losses: list[float] = []
        found = m.samples(llm().model, texts, (llm().config.num_hidden_layers - 1,))
        m.train_medusa(llm().model, found, 2, 1, 0, lambda _, loss: losses.append(loss))
        return abs(losses[0] - want) < 0.02

    check(call, True, what="is the loss of two new Medusa heads what a loop over the texts gives?")


def first_loss(texts: Sequence[tuple[list[int], list[int]]]) -> float:
    model, losses = llm().model, SimpleNamespace(of=([], []))
    for prompt, answer in texts:
        tokens = [*prompt, *answer]
        hidden = model.hidden_states(mx.array(tokens), ContiguousCache(model.config, model.ops))
        logits = np.array(model.logits(hidden), np.float64)
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        for head, row in enumerate(losses.of):
            row += [-log_p[t, tokens[t + head + 2]] for t in range(len(tokens) - head - 2) if t + head + 2 >= 20]
    return float(np.mean(losses.of[0]) + 0.8 * np.mean(losses.of[1]))

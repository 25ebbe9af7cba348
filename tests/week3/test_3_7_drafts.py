"""3.7 Drafts and verification: the walk of rule A, guesses from a suffix automaton, what a draft model has computed."""

from collections.abc import Callable, Iterator, Sequence
from random import Random
from types import SimpleNamespace
from typing import Any

from tests.week3.guessing import Scripted, answered, following, half_right, in_place, llm, near, new_loop, plain
from tiny_llm.course.check import Checker, task
from tiny_llm.decode.acceptance import DraftTree
from tiny_llm.engine import choosers, draft_model
from tiny_llm.engine.blocks import BlockPool
from tiny_llm.engine.drafters import store_like
from tiny_llm.engine.request import Request
from tiny_llm.engine.request import Sequence as Running

CHAIN = ((5, 6, 7), (-1, 0, 1))
TREE = ((5, 6, 7, 8, 6, 9, 8), (-1, -1, 0, 0, 1, 3, 4))  # 5 → 7, 8 → 9 and 6 → 6 → 8


def walked(tokens: Sequence[int], parents: Sequence[int], drawn: Sequence[int]) -> list[int]:
    """The nodes whose path from the text is what was drawn on the way."""
    found = []
    for node in range(len(tokens)):
        path = [node]
        while parents[path[0]] >= 0:
            path.insert(0, parents[path[0]])
        before = [-1, *path[:-1]]
        if all(drawn[b + 1] == tokens[n] for b, n in zip(before, path, strict=True)):
            found.append(path)
    return max(found, key=len, default=[])


def kept_of(m: Any, tree: tuple[tuple[int, ...], tuple[int, ...]], drawn: Sequence[int]) -> list[int]:
    return list(m.accepted(m.DraftTree(*tree), drawn))


def check_walks(check: Checker, tree: tuple[tuple[int, ...], tuple[int, ...]], rows: Sequence[Sequence[int]]) -> None:
    want = [walked(*tree, drawn) for drawn in rows]
    check(lambda m: [kept_of(m, tree, drawn) for drawn in rows], want, what=f"nodes kept of {tree}")


@task("w3.7.1")
def test_a_chain_by_hand(check: Checker) -> None:
    """All right, the second wrong, the first wrong, right again behind a wrong one, the last wrong; then 4 4 4."""
    rows = [(CHAIN, drawn) for drawn in ((5, 6, 7, 1), (5, 9, 7, 1), (9, 6, 7, 1), (5, 6, 9, 7), (6, 6, 7, 5))]
    rows.append((((4, 4, 4), (-1, 0, 1)), (4, 4, 4, 4)))
    want = [[0, 1, 2], [0], [], [0, 1], [], [0, 1, 2]]
    check(lambda m: [kept_of(m, *row) for row in rows], want, what="nodes kept of the chain 5 6 7, and of 4 4 4")
    check(lambda m: [kept_of(m, ((), ()), (4,))], [[]], what="nodes kept of an empty draft")


@task("w3.7.1")
def test_a_tree_by_hand(check: Checker) -> None:
    """Row i + 1 of what was drawn is the token behind node i; siblings may stand in any order, and apart."""
    rows = [
        (5, 8, 0, 0, 9, 0, 0, 0),  # node 0, its child 3, and below it 5
        (6, 0, 6, 0, 0, 8, 0, 0),  # node 1, then 4, which has the same token, then 6
        (5, 6, 6, 0, 9, 8, 0, 0),  # node 0; the 6 behind it was guessed elsewhere
        (7, 7, 7, 7, 7, 7, 7, 7),  # the 7 is a guess at the second token
        (5, 7, 8, 8, 9, 0, 0, 0),  # node 0 and its child 2
    ]
    want = [[0, 3, 5], [1, 4, 6], [0], [], [0, 2]]
    check(lambda m: [kept_of(m, TREE, drawn) for drawn in rows], want, what="nodes kept of a tree")


@task("w3.7.1")
def test_random_trees(check: Checker) -> None:
    for seed in range(12):
        rng = Random(seed)
        lines = [[rng.randrange(3) for _ in range(rng.randint(1, 4))] for _ in range(5)]
        tree = tuple(DraftTree.merged(lines)[:2])
        check_walks(check, tree, [[rng.randrange(3) for _ in range(len(tree[0]) + 1)] for _ in range(12)])


@task("w3.7.1")
def test_answers_are_those_without_guesses(check: Checker) -> None:
    """Through the engine, greedy and sampled: the same tokens, and only right guesses save steps."""

    def call(m: Any) -> list[Any]:
        found = []
        wrong: Callable[[Running, int], DraftTree] = lambda s, n: DraftTree.chain([t ^ 1 for t in following(s, n)])  # noqa: E731
        right: Callable[[Running, int], DraftTree] = lambda s, n: DraftTree.chain(following(s, n))  # noqa: E731
        with in_place(choosers, "accepted", m.accepted):
            for guess in (right, wrong, half_right):
                answers, counts = answered(new_loop(), Scripted(guess))
                found += [answers == plain(), counts.accepted_at[0], counts.accepted - counts.drafted]
        return found

    want = call(SimpleNamespace(accepted=lambda tree, drawn: walked(tree.tokens, tree.parents, drawn)))
    assert want[:3] == [True, want[1], 0] and want[3:5] == [True, 0] and want[6] is True
    check(call, want, what="equal? first guesses accepted, accepted less drafted: right, wrong, half right guesses")


def automaton(m: Any, text: Sequence[int]) -> Any:
    made = m.SuffixAutomaton()
    made.extend(text)
    return made


def at(m: Any, known: Any, part: Sequence[int]) -> Any:
    """The match of a substring, found from the empty one on."""
    state = 0
    for token in part:
        state = known.following[state][token]
    return m.KnownSuffix(state, len(part))


def occurrences(text: Sequence[int], part: Sequence[int]) -> int:
    """How often `part` stands in the text; nothing stands before every token."""
    if not part:
        return len(text)
    size = len(part)
    return sum(list(text[i : i + size]) == list(part) for i in range(len(text) - size + 1))


def successors(text: Sequence[int], part: Sequence[int]) -> list[int]:
    return [token for token in sorted(set(text)) if occurrences(text, [*part, token])]


def longest_suffix(text: Sequence[int], query: Sequence[int]) -> list[int]:
    """The longest end of a query that the text contains, by trying all of them."""
    for begin in range(len(query)):
        if occurrences(text, query[begin:]):
            return list(query[begin:])
    return []


def told(known: Any, match: Any) -> list[Any]:
    """The length of a match, and what may follow it."""
    return [match.length, sorted(known.following[known.settled(match).state])]


def followed(m: Any, text: Sequence[int], query: Sequence[int]) -> list[Any]:
    """The match behind each token of a query."""
    known, match, found = automaton(m, text), m.KnownSuffix(), []
    for token in query:
        match = known.follow(match, token)
        found.append(told(known, match))
    return found


def check_suffixes(check: Checker, text: Sequence[int], query: Sequence[int], what: str) -> None:
    parts = [longest_suffix(text, query[: end + 1]) for end in range(len(query))]
    want = [[len(part), successors(text, part)] for part in parts]
    check(lambda m: followed(m, text, query), want, what=what)


@task("w3.7.2")
def test_the_longest_known_suffix_by_hand(check: Checker) -> None:
    """Of the query 1 2 3 4 9 2 3 1 2 2 3 5 in the text 1 2 3 1 2 4 2 3 4 5."""
    text, query = [1, 2, 3, 1, 2, 4, 2, 3, 4, 5], [1, 2, 3, 4, 9, 2, 3, 1, 2, 2, 3, 5]
    lengths = [1, 2, 3, 3, 0, 1, 2, 3, 4, 1, 2, 1]
    assert [len(longest_suffix(text, query[: end + 1])) for end in range(len(query))] == lengths
    check_suffixes(check, text, query, "[length, what may follow] behind each token")


@task("w3.7.2")
def test_random_texts(check: Checker) -> None:
    for seed in range(8):
        rng = Random(seed)
        size = 2 + seed % 3
        text = [rng.randrange(size) for _ in range(40)]
        query = [rng.randrange(size + (seed > 4)) for _ in range(40)]
        check_suffixes(check, text, query, "[length, what may follow] behind each token")


@task("w3.7.2")
def test_nothing_is_known_yet(check: Checker) -> None:
    check(lambda m: followed(m, [], [3, 3]), [[0, []], [0, []]], what="in an empty text")


@task("w3.7.2")
def test_a_match_from_before_the_text_grew(check: Checker) -> None:
    """The text grows behind each token of the query, so that states are split meanwhile.

    At first 2 is known behind 9 8 1 alone. Then 1 2 comes again: what stands behind 2 alone is another state's now.
    """

    def grown(m: Any, parts: Sequence[Sequence[int]], query: Sequence[int]) -> list[Any]:
        known, match, found = automaton(m, parts[0]), m.KnownSuffix(), []
        for token, more in zip(query, parts[1:], strict=True):
            match = known.follow(match, token)
            found.append(told(known, match))
            known.extend(more)
        return found

    def want(parts: Sequence[Sequence[int]], query: Sequence[int]) -> list[Any]:
        text, part, found = list(parts[0]), list[int](), []
        for token, more in zip(query, parts[1:], strict=True):
            part = longest_suffix(text, [*part, token])
            found.append([len(part), successors(text, part)])
            text += more
        return found

    cases = [([[9, 8, 1, 2, 3], [], [5, 1, 2, 4], []], [7, 2, 4])]
    assert want(*cases[0]) == [[0, [1, 2, 3, 8, 9]], [1, [3]], [2, []]]
    for seed in range(20):
        rng = Random(seed)
        parts = [[rng.randrange(2 + seed % 2) for _ in range(rng.randint(0, 5))] for _ in range(31)]
        cases.append((parts, [rng.randrange(2 + seed % 2) for _ in range(30)]))
    check_suffixes(check, [1, 2, 3, 1, 2, 4, 2, 3, 4, 5], [1, 2, 3, 4, 9, 2, 3, 1, 2, 2, 3, 5], "behind each token")
    check(lambda m: [grown(m, *case) for case in cases], [want(*case) for case in cases], what="while the text grows")


@task("w3.7.2")
def test_drafts_from_earlier_answers(check: Checker) -> None:
    """Through the engine: the same answers, and the second time most of them are known."""

    def call(m: Any) -> list[bool]:
        loop, drafter = new_loop(), m.SuffixDrafter(0.3)
        first, _ = answered(loop, drafter, most=6)
        second, counts = answered(loop, drafter, most=6)
        return [first == plain(), second == plain(), counts.accepted > 20]

    check(call, [True, True, True], what="equal? equal again? more than 20 guesses accepted then?")


def best_guess(text: Sequence[int], part: Sequence[int], limit: int, least: float, is_end: bool) -> Any:
    """The guess by counting in the text; None where two tokens are equally frequent, so that any is right."""
    seen = occurrences(text, part) - (is_end and bool(part))
    line, tokens, chance, expected = list(part), [], 1.0, 0.0
    while len(tokens) < limit:
        ranks = sorted(((occurrences(text, [*line, token]), token) for token in set(text)), reverse=True)
        if not ranks or not ranks[0][0]:
            break
        if len(ranks) > 1 and ranks[0][0] == ranks[1][0]:
            return None
        count, token = ranks[0]
        chance *= count / seen
        if chance < least or token < 0:
            break
        line, seen = [*line, token], count
        tokens.append(token)
        expected += chance
    return [tokens, round(expected, 6)]


def guessed(m: Any, text: Sequence[int], part: Sequence[int], *asked: Any) -> list[Any]:
    """What is guessed behind a part of a text, or with is_end behind its own end."""
    known = automaton(m, text)
    limit, least, is_end = asked
    match = known.repeated if is_end else at(m, known, part)
    tokens, expected = known.guess(match, limit, least, is_end=is_end)
    return [list(tokens), round(expected, 6)]


# behind 1 2 stand 7, 3, 3, 8, 3, 7, 3 and 6; behind 1 2 3 stand 4, 5, 4 and 4
BY_HAND = [1, 2, 7, 1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 8, 1, 2, 3, 4, 1, 2, 7, 1, 2, 3, 4, 1, 2, 6]


@task("w3.7.3")
def test_the_most_frequent_token_again_and_again(check: Checker) -> None:
    """Behind 1 2 stands 3 with ½, then 4 with ⅜ in all: the line ends where the product falls under `least`."""
    asked = [([1, 2], 8, 0.4, False), ([1, 2], 4, 0.375, False), ([1, 2], 8, 0.38, False), ([1, 2], 1, 0.0, False),
             ([1, 2], 3, 0.0, False), ([2, 3], 3, 0.0, False), ([5], 4, 0.0, False), ([6], 4, 0.0, False),
             ([1, 2], 0, 0.0, False)]  # fmt: skip
    want = [best_guess(BY_HAND, *one) for one in asked]
    assert want[:4] == [[[3], 0.5], [[3, 4, 1, 2], 1.625], [[3], 0.5], [[3], 0.5]] and None not in want
    check(lambda m: [guessed(m, BY_HAND, *one) for one in asked], want, what="[tokens, expected] of nine guesses")


@task("w3.7.3")
def test_the_end_of_the_text_has_nothing_behind_it(check: Checker) -> None:
    """1 2 stands at the end and twice before: 3 followed twice of two times, not of three."""
    texts = {
        (1, 2, 3, 1, 2, 3, 1, 2): 6,
        (7, 1, 4, 1, 5, 1, 4, 1, 4, 9, 1): 2,
        (3, 3, 3, 3): 6,
        (1, 2, 3, 4, 2, 3, 5, 2, 3, 4, 2): 6,
    }
    want = []
    for text, limit in texts.items():
        end = max(n for n in range(len(text)) if occurrences(text, text[len(text) - n :]) > 1)
        want.append(best_guess(text, text[len(text) - end :], limit, 0.2, True))
    assert want[0] == [[3, 1, 2], 3.0] and None not in want
    check(
        lambda m: [guessed(m, text, (), limit, 0.2, True) for text, limit in texts.items()],
        want,
        what="[tokens, expected]",
    )


@task("w3.7.3")
def test_no_guess_goes_on_from_one_answer_to_the_next(check: Checker) -> None:
    text = [1, 2, 3, -1, 1, 2, 3, -1, 1, 2, 4, -1]
    asked = [([1, 2], 6, 0.0, False), ([3], 6, 0.0, False), ([2], 6, 0.7, False)]
    want = [best_guess(text, *one) for one in asked]
    assert want[1] == [[], 0.0]
    check(lambda m: [guessed(m, text, *one) for one in asked], want, what="[tokens, expected] with -1 between answers")


TWOS = [1, 2, 3, 4, 2, 5, 2, 5, 6, 2, 3, 2, 5, 2, 7]


@task("w3.7.3")
def test_a_state_that_was_split(check: Checker) -> None:
    """A match that was found before: 2 alone, when it was only known behind 1."""

    def call(m: Any) -> list[Any]:
        known = automaton(m, [1, 2, 3])
        match = m.KnownSuffix(at(m, known, [1, 2]).state, 1)
        known.extend(TWOS[3:])
        tokens, expected = known.guess(match, 1, 0.0)
        return [list(tokens), round(expected, 6)]

    check(call, best_guess(TWOS, [2], 1, 0.0, False), what="[tokens, expected] behind 2")


@task("w3.7.3")
def test_of_equally_frequent_tokens_any(check: Checker) -> None:
    def call(m: Any) -> list[Any]:
        tokens, expected = guessed(m, [1, 2, 1, 3, 1, 2, 1, 3], [1], 1, 0.1, False)
        return [len(tokens), tokens[0] in (2, 3), expected]

    check(call, [1, True, 0.5], what="number, one of both?, expected")


@task("w3.7.3")
def test_guesses_in_random_texts(check: Checker) -> None:
    """Matches whose guesses are without ties, of any length; behind the empty match as well."""
    for seed in range(6):
        asked, want = [], []
        for text, part, limit, least in random_matches(seed):
            expected = best_guess(text, part, limit, least, False)
            if expected is not None:
                asked.append((text, part, limit, least, False))
                want.append(expected)
        assert len(asked) > 5
        check(lambda m, asked=asked: [guessed(m, *one) for one in asked], want, what="[tokens, expected]")


def random_matches(seed: int) -> Iterator[tuple[list[int], list[int], int, float]]:
    rng = Random(seed)
    text = [min(rng.randrange(3 + seed), rng.randrange(3 + seed)) for _ in range(50)]
    for _ in range(40):
        size, begin = rng.randint(0, 3), rng.randrange(40)
        yield text, text[begin : begin + size], rng.randint(1, 4), rng.choice([0.0, 0.2, 0.4])


@task("w3.7.3")
def test_drafts_from_a_prompt_that_repeats_itself(check: Checker) -> None:
    def call(m: Any) -> list[bool]:
        answers, counts = answered(new_loop(), m.SuffixDrafter(0.1), most=6)
        return [answers == plain(), counts.drafted > 0]

    check(call, [True, True], what="equal? any guesses?")


SIZE = 4


class Slots:
    """The oracle of `FilledBlocks`: which token lies in which slot, by which use of the block."""

    def __init__(self, pool: BlockPool):
        self.pool, self.slots = pool, dict[tuple[int, int], tuple[int, int]]()

    def note(self, table: Sequence[int], start: int, tokens: Sequence[int]) -> None:
        for position, token in enumerate(tokens, start):
            block, slot = table[position // SIZE], position % SIZE
            self.slots[block, slot] = (self.pool.uses[block], token)
            if position == start + len(tokens) - 1:  # what lay behind belongs to another text
                for later in range(slot + 1, SIZE):
                    self.slots.pop((block, later), None)

    def count(self, sequence: Running) -> int:
        for position, token in enumerate(sequence.tokens[:-1]):
            number, slot = divmod(position, SIZE)
            if number == len(sequence.block_table):
                return position
            block = sequence.block_table[number]
            if self.slots.get((block, slot)) != (self.pool.uses[block], token):
                return position
        return len(sequence.tokens) - 1


def sequence_of(tokens: Sequence[int], table: Sequence[int]) -> Running:
    made = Running(Request("one", tuple(tokens)))
    made.block_table = list(table)
    return made


def counted(m: Any, script: Callable[[Any, BlockPool, Running], Iterator[None]], tokens: Sequence[int]) -> list[int]:
    """The count after each part of a script; `m` is the module under test, or None for the oracle."""
    pool = BlockPool(8, SIZE)
    table = [pool.allocate() for _ in range(-(-len(tokens) // SIZE))]
    filled = Slots(pool) if m is None else m.FilledBlocks(pool)
    sequence = sequence_of(tokens, table)
    return [filled.count(sequence) for _ in script(filled, pool, sequence)]


def check_counts(check: Checker, script: Any, tokens: Sequence[int], want: list[int], what: str) -> None:
    assert counted(None, script, tokens) == want
    check(lambda m: counted(m, script, tokens), want, what=what)


def a_text(filled: Any, pool: BlockPool, sequence: Running) -> Iterator[None]:
    """Nothing, a part of a block, a whole one and a part, everything."""
    yield
    for begin, end in ((0, 3), (3, 6), (6, 10), (10, 11)):
        filled.note(sequence.block_table, begin, sequence.tokens[begin:end])
        yield


def a_rejected_guess(filled: Any, pool: BlockPool, sequence: Running) -> Iterator[None]:
    """After seven tokens come three guesses, across a border of blocks; the first is right, then the text goes on."""
    filled.note(sequence.block_table, 0, [*sequence.tokens[:7], sequence.tokens[7], 91, 92])
    yield
    filled.note(sequence.block_table, 8, sequence.tokens[8:9])
    yield
    filled.note(sequence.block_table, 9, [93])
    yield


def another_owner(filled: Any, pool: BlockPool, sequence: Running) -> Iterator[None]:
    """The second block is given away and comes back; the same tokens had lain in it."""
    filled.note(sequence.block_table, 0, sequence.tokens[:11])
    yield
    block = sequence.block_table[1]
    pool.free(block)
    assert pool.allocate() == block
    yield
    filled.note(sequence.block_table, 4, sequence.tokens[4:7])
    yield


def a_gap(filled: Any, pool: BlockPool, sequence: Running) -> Iterator[None]:
    """The second block is a new one; a table that is shorter than the text."""
    filled.note(sequence.block_table, 0, sequence.tokens[:11])
    sequence.block_table[1] = pool.allocate()
    yield
    sequence.block_table[1:] = []
    yield


TEXT = list(range(20, 31))  # eleven tokens, three blocks


@task("w3.7.4")
def test_a_text_that_is_computed_in_parts(check: Checker) -> None:
    """The last token is left to compute, since its logits are wanted."""
    check_counts(check, a_text, TEXT, [0, 3, 6, 10, 10], "computed of 11 tokens, blocks of 4")
    check_counts(check, a_text, TEXT[:1], [0, 0, 0, 0, 0], "computed of a single token")


@task("w3.7.4")
def test_rejected_guesses_are_missing(check: Checker) -> None:
    check_counts(check, a_text, TEXT, [0, 3, 6, 10, 10], "computed of 11 tokens, blocks of 4")
    check_counts(check, a_rejected_guess, TEXT, [8, 9, 9], "computed of 11 tokens, after guesses")


@task("w3.7.4")
def test_a_block_that_another_text_used(check: Checker) -> None:
    check_counts(check, a_rejected_guess, TEXT, [8, 9, 9], "computed of 11 tokens, after guesses")
    check_counts(check, another_owner, TEXT, [10, 4, 7], "computed, then the second block changes hands")
    check_counts(check, a_gap, TEXT, [4, 4], "computed, with a new block in the middle")


@task("w3.7.4")
def test_texts_with_one_beginning_share_it(check: Checker) -> None:
    """Three whole blocks; another text has the first in common, and half of the second in a block of its own."""

    def call(m: Any) -> list[int]:
        pool = BlockPool(8, SIZE)
        first, other = ([pool.allocate() for _ in range(3)] for _ in range(2))
        filled = m.FilledBlocks(pool)
        filled.note(first, 0, TEXT)
        words = [*TEXT[:6], 70, 71, 72]
        found = [filled.count(sequence_of(words, [first[0], *other[:2]]))]
        filled.note([first[0], *other[:2]], 4, words[4:7])
        found += [filled.count(sequence_of(words, [first[0], *other[:2]])), filled.count(sequence_of(words, first))]
        return [*found, filled.count(sequence_of(TEXT, first)), filled.count(sequence_of(TEXT[:9], first))]

    check(call, [4, 7, 6, 10, 8], what="computed of texts that share blocks")


@task("w3.7.4")
def test_acceptance_is_that_of_a_draft_model_that_forgets_nothing(check: Checker) -> None:
    """Through the engine: equal answers, and as many guesses accepted as when every text is computed anew."""

    def drafter(m: Any) -> tuple[Any, Any]:
        loop = new_loop()
        helper = near().model
        made = m.DraftModel(
            helper, store_like(loop.store, helper.config, helper), loop.scheduler.blocks, llm().config.vocab_size, 0.0
        )
        return loop, made

    def call(m: Any) -> list[Any]:
        answers, counts = answered(*drafter(m))
        return [answers == plain(), counts.accepted]

    check(call, [True, anew(*drafter(draft_model))], what="equal? guesses accepted")


def anew(loop: Any, made: Any) -> int:
    """The guesses accepted of a draft model that computes each text from its first token on."""
    propose = made.propose

    def forgetful(sequences: Any, limits: Any) -> Any:
        made.filled = draft_model.FilledBlocks(loop.scheduler.blocks)
        return propose(sequences, limits)

    made.propose = forgetful
    return answered(loop, made)[1].accepted

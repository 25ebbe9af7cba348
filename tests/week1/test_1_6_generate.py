"""1.6 Generating text, on a model that adds: the next token is the sum of all tokens so far plus their number."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from tiny_llm.course.check import Checker, task
from tiny_llm.decode.sampler import Sampled

VOCAB = 17


def following(tokens: Sequence[int]) -> int:
    return (sum(tokens) + len(tokens)) % VOCAB


class Cache:
    """Remembers the tokens themselves, and how many came in each step."""

    state = ()

    def __init__(self, held: Sequence[int] = ()):
        self.tokens, self.steps = list(held), list[int]()

    @property
    def offset(self) -> int:
        return len(self.tokens)


class Adder:
    """A model with no weights."""

    config = ops = None

    def hidden_states(self, tokens: mx.array, cache: Any) -> mx.array:
        """(T, VOCAB): 1 at the token that follows each."""
        before = list(cache.tokens) if isinstance(cache, Cache) else []
        new = tokens.tolist()
        if isinstance(cache, Cache):
            cache.tokens += new
            cache.steps.append(len(new))
        return mx.stack([mx.eye(VOCAB)[following([*before, *new[: i + 1]])] for i in range(len(new))])

    def __call__(self, tokens: mx.array, cache: Any, rows: Any = None) -> mx.array:
        x = self.hidden_states(tokens, cache)
        return x if rows is None else x[rows]


def continued(prompt: Sequence[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(following(tokens))
    return tokens[len(prompt) :]


@task("w1.6.1")
def test_one_token(check: Checker) -> None:
    """1 + 2 + 3 + 4 is 10, four tokens: 14."""
    check(lambda m: m.generate_naive(Adder(), [1, 2, 3, 4], 1), [14])


@task("w1.6.1")
def test_each_token_is_read_by_the_next_pass(check: Checker) -> None:
    check(lambda m: m.generate_naive(Adder(), [1, 2, 3, 4], 6), continued([1, 2, 3, 4], 6))
    check(lambda m: m.generate_naive(Adder(), [5], 0), [])


@task("w1.6.2")
def test_the_logits_of_the_last_token(check: Checker) -> None:
    want = np.eye(VOCAB)[[following([1, 2, 3, 4])]]
    check(lambda m: m.prefill(Adder(), [1, 2, 3, 4], Cache()), want, axes="R V")


def filled(m: Any, prompt: list[int], held: int, chunk: int) -> Cache:
    cache = Cache(prompt[:held])
    m.prefill(Adder(), prompt, cache, chunk)
    return cache


@task("w1.6.2")
def test_the_cache_holds_the_prompt_once(check: Checker) -> None:
    prompt = [3, 1, 4, 1, 5, 9, 2, 6]
    for held, chunk in ((0, 100), (3, 100), (0, 3), (2, 3), (7, 3), (2, 6)):
        what = f"tokens in the cache (of 8, {held} held, chunks of {chunk})"
        check(lambda m, held=held, chunk=chunk: filled(m, prompt, held, chunk).tokens, prompt, what=what)


@task("w1.6.2")
def test_no_step_is_longer_than_a_chunk(check: Checker) -> None:
    prompt = list(range(11))
    check(lambda m: max(filled(m, prompt, 0, 4).steps) <= 4, True, what="steps of at most 4 tokens")


@task("w1.6.2")
def test_logits_after_chunks(check: Checker) -> None:
    prompt = [3, 1, 4, 1, 5, 9, 2]
    want = np.eye(VOCAB)[[following(prompt)]]
    for held, chunk in ((0, 3), (2, 2), (6, 2)):
        call = lambda m, held=held, chunk=chunk: m.prefill(Adder(), prompt, Cache(prompt[:held]), chunk)  # noqa: E731
        check(call, want, axes="R V", what=f"logits ({held} held, chunks of {chunk})")


def sampler(logits: mx.array, positions: Sequence[int]) -> Sampled:
    """The likeliest token plus its position, so that a wrong position shows."""
    assert logits.shape == (1, VOCAB), f"the sampler got logits of shape {logits.shape}, expected (1, {VOCAB})"
    tokens = (mx.argmax(logits, axis=-1) + positions[0]) % VOCAB
    return Sampled(tokens.astype(mx.uint32), finite=mx.array([True]))


def sampled(prompt: Sequence[int], limit: int, stops: Sequence[int] = ()) -> list[int]:
    tokens = list(prompt)
    while len(tokens) < len(prompt) + limit:
        tokens.append((following(tokens) + len(tokens)) % VOCAB)
        if tokens[-1] in stops:
            break
    return tokens[len(prompt) :]


def generated(m: Any, prompt: Sequence[int], limit: int, stops: Sequence[int] = ()) -> list[int]:
    logits = mx.eye(VOCAB)[following(prompt)][None]
    tokens = m.generate_tokens(Adder(), logits, Cache(prompt), sampler, len(prompt), limit, frozenset(stops))
    return [token.id for token in tokens]


@task("w1.6.3")
def test_four_tokens(check: Checker) -> None:
    check(lambda m: generated(m, [1, 2, 3], 4), sampled([1, 2, 3], 4))


@task("w1.6.3")
def test_the_limit(check: Checker) -> None:
    for limit in (1, 2, 9):
        call = lambda m, limit=limit: generated(m, [5, 5], limit)  # noqa: E731
        check(call, sampled([5, 5], limit), what=f"tokens up to a limit of {limit}")


@task("w1.6.3")
def test_a_stop_token_is_the_last_one(check: Checker) -> None:
    whole = sampled([5, 5], 9)
    for place in (0, 1, 4, 8):
        stop = whole[place]
        call = lambda m, stop=stop: generated(m, [5, 5], 9, [stop])  # noqa: E731
        check(call, sampled([5, 5], 9, [stop]), what=f"tokens up to the stop token {stop}")


def fed(m: Any, stops: Sequence[str], *pieces: str) -> list[str]:
    """What is shown after each piece, "■" where the text ended, and at the end what was still held."""
    strings, shown = m.StopStrings(stops), []
    for piece in pieces:
        text, ended = strings.add(piece)
        shown.append(text + ("■" if ended else ""))
        if ended:
            break
    return [*shown, strings.finish()]


STOPS: tuple[tuple[list[str], list[str], list[str]], ...] = (
    (["END"], ["one", "two"], ["one", "two", ""]),
    (["END"], ["one END two"], ["one ■", ""]),
    (["END"], ["one E", "ND two"], ["one ", "■", ""]),
    (["END"], ["one E", "L", "EN", "D"], ["one ", "EL", "", "■", ""]),
    (["END"], ["one EN"], ["one ", "EN"]),
    (["late", "ear"], ["an ear is late"], ["an ■", ""]),
    (["ab", "aab"], ["xa", "a", "b"], ["x", "", "■", ""]),
    (["aaab"], ["aaa", "ab"], ["", "a■", ""]),
    (["\n\n"], ["one\n", "two\n", "\nthree"], ["one", "\ntwo", "■", ""]),
    ([], ["one", "two"], ["one", "two", ""]),
)


@task("w1.6.4")
def test_stop_strings(check: Checker) -> None:
    for stops, pieces, want in STOPS:
        call = lambda m, stops=stops, pieces=pieces: fed(m, stops, *pieces)  # noqa: E731
        check(call, want, what=f"shown of {pieces} up to {stops}")

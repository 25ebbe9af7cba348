"""What must hold of sampling, as plain functions, so that the same checks run on the code and on its mutants."""

import math
from collections.abc import Callable
from unittest import mock

import mlx.core as mx
import numpy as np

from tests.decode.sampling_oracle import chi_square, exact, grid, many, penalized, shares, softmax, some_logits
from tiny_llm.config import SamplingParams
from tiny_llm.decode import distribution, draw
from tiny_llm.decode.sampler import Sampler

PROMPT, OUTPUT = [1, 2, 3, 3], [5, 5, 7, 2]
TECHNIQUES = {
    "pure": SamplingParams(),
    "cold": SamplingParams(temperature=0.6),
    "hot": SamplingParams(temperature=3.0),
    "top-k": SamplingParams(top_k=5),
    "top-p": SamplingParams(top_p=0.8),
    "min-p": SamplingParams(min_p=0.15),
    "qwen": SamplingParams(temperature=0.6, top_k=20, top_p=0.95),
    "top-k, top-p": SamplingParams(top_k=4, top_p=0.7),
    "hot top-p, min-p": SamplingParams(temperature=2.0, top_p=0.9, min_p=0.2),
    "all truncations": SamplingParams(temperature=1.5, top_k=12, top_p=0.85, min_p=0.1),
    "bias": SamplingParams(logit_bias={3: 2.5, 0: -100, 8: -1.0}),
    "repetition": SamplingParams(repetition_penalty=1.8),
    "presence": SamplingParams(presence_penalty=1.5),
    "frequency": SamplingParams(frequency_penalty=0.7),
    "everything": SamplingParams(
        temperature=0.9,
        top_k=15,
        top_p=0.9,
        min_p=0.05,
        repetition_penalty=1.3,
        presence_penalty=-0.4,
        frequency_penalty=0.5,
        logit_bias={2: 1.0},
    ),
}
GREEDY_WAYS = {
    "temperature 0": SamplingParams(temperature=0),
    "temperature 1e-6": SamplingParams(temperature=1e-6),
    "temperature 1e-300": SamplingParams(temperature=1e-300),
    "top_k 1": SamplingParams(temperature=5.0, top_k=1),
    "top_p 0": SamplingParams(temperature=5.0, top_p=0.0),
    "top_p 1e-9": SamplingParams(temperature=5.0, top_p=1e-9),
    "min_p 1": SamplingParams(temperature=5.0, min_p=1.0),
}


def techniques_follow_the_exact_distribution() -> None:
    """With evenly spaced numbers in place of random ones the shares of tokens are their probabilities."""
    rows = 4096
    with mock.patch.object(draw, "uniforms", grid(rows)):
        for name, params in TECHNIQUES.items():
            logits = some_logits(1, 24, seed=len(name))[0]
            want = exact(logits, params, PROMPT, OUTPUT)
            assert want.margin > 1e-4
            got = shares(many(params, logits, rows, PROMPT, OUTPUT), 24)
            np.testing.assert_allclose(got, want.probabilities, atol=1.1 / rows, err_msg=name)
            assert not got[want.probabilities == 0].any()


def random_draws_follow_the_exact_distribution() -> None:
    """Over a small vocabulary, and over few tokens that lie here and there in a large one."""
    for name in ("pure", "qwen", "everything"):
        for vocab, rows in ((16, 20_000), (5000, 1000)):
            logits = some_logits(1, vocab, seed=3)[0]
            logits[np.arange(vocab) % 1600 >= 16] = -np.inf
            want = exact(logits, TECHNIQUES[name], PROMPT, OUTPUT).probabilities
            assert abs(chi_square(many(TECHNIQUES[name], logits, rows, PROMPT, OUTPUT), want)) < 4, (name, vocab)


def greedy_ways_agree_and_stay_finite() -> None:
    """Each extreme setting is the argmax, with and without masks, down to one token that is allowed."""
    for vocab in (1, 5, 40, 300):
        logits = some_logits(6, vocab)
        for row in range(1, 6):
            logits[
                row, np.random.default_rng(row).permutation(vocab)[: (0, vocab // 2, vocab - 2, vocab - 1)[row % 4]]
            ] = -np.inf
        logits[5] = -np.inf
        logits[5, vocab // 2] = -1e4
        best = np.argmax(logits, axis=1)
        for name, params in GREEDY_WAYS.items():
            sampler = Sampler([params] * 6, vocab, seeds=range(6))
            for position in range(3):
                got = np.array(sampler(mx.array(logits), [position] * 6).tokens)
                np.testing.assert_array_equal(got, best, err_msg=f"{name}, vocabulary {vocab}")


def masked_tokens_are_never_drawn() -> None:
    rows, vocab = 500, 200
    logits = some_logits(rows, vocab)
    logits[np.random.default_rng(0).random((rows, vocab)) < 0.9] = -np.inf
    logits[:, 77] = -3.0
    for name, params in TECHNIQUES.items():
        sampler = Sampler([params] * rows, vocab, [PROMPT] * rows, outputs=[OUTPUT] * rows, seeds=range(rows))
        tokens = np.array(sampler(mx.array(logits), [9] * rows).tokens)
        assert np.isfinite(logits[np.arange(rows), tokens]).all(), name


def extreme_uniforms_draw_possible_tokens() -> None:
    """0 and the largest float below 1 select the first and the last column of positive weight, never another."""
    highest = float(np.nextafter(np.float32(1), np.float32(0)))
    for columns in (1, 5, 64, 65, 4096, 4097):
        random = np.random.default_rng(columns)
        weights = ((random.random((50, columns)) + 0.01) * (random.random((50, columns)) < 0.3)).astype(np.float32)
        weights[:, columns // 2] = 1
        possible = [np.flatnonzero(row) for row in weights]
        for u, place in ((0.0, 0), (highest, -1)):
            got = np.array(draw.draw(mx.array(weights), mx.full((50, 2), u)))
            np.testing.assert_array_equal(got, [row[place] for row in possible])
            tiny = np.array(draw.draw(mx.array(weights**24), mx.full((50, 2), u)))
            assert (weights[np.arange(50), tiny] > 0).all()


def small_masses_are_not_lost() -> None:
    """One token has half of the mass, 150,000 others share the rest: sums must see them all."""
    tail = 150_000
    weights = np.full((1, tail + 1), 1 / tail, np.float32)
    weights[0, 0] = 1
    before = np.array(distribution.mass_before(mx.array(weights)))
    want = np.cumsum(weights.astype(np.float64)) - weights
    np.testing.assert_allclose(before, want, atol=2e-4)
    uniforms = mx.array(np.random.default_rng(0).random((400, 2), np.float32))
    tokens = np.array(draw.draw(mx.broadcast_to(mx.array(weights), (400, tail + 1)), uniforms))
    halves = np.bincount(np.minimum(2, 1 + 2 * tokens.astype(np.int64) // (tail + 1)) * (tokens > 0), minlength=3)
    assert abs(halves[0] - 200) < 50 and abs(halves[1] - 100) < 45 and abs(halves[2] - 100) < 45


def largest_is_the_sorted_prefix() -> None:
    """Through blocks or not, with ties and masked tokens."""
    for vocab, ks in ((1, [1]), (7, [1, 3, 7]), (640, [1, 4, 100]), (8192, [1, 20, 32, 64, 8192]), (8191, [32])):
        logits = some_logits(5, vocab)
        logits[1] = np.round(logits[1])
        logits[2, vocab // 2 :] = -np.inf
        logits[3, :-1] = -np.inf
        logits[4] = np.sort(logits[4])  # the largest are neighbours
        for k in ks:
            values, tokens = (np.array(part) for part in distribution.largest(mx.array(logits), k))
            np.testing.assert_array_equal(values, -np.sort(-logits, axis=1)[:, :k])
            np.testing.assert_array_equal(np.take_along_axis(logits, tokens, axis=1), values)
            assert all(len(set(row)) == k for row in tokens.tolist())


def penalties_match_the_oracle_step_by_step() -> None:
    """Greedy with penalties over a generated text: counts grow with the sampler's own tokens."""
    vocab, steps = 12, 40
    cases = [
        SamplingParams(temperature=0, repetition_penalty=1.3),
        SamplingParams(temperature=0, repetition_penalty=0.8),
        SamplingParams(temperature=0, presence_penalty=1.1),
        SamplingParams(temperature=0, frequency_penalty=0.6),
        SamplingParams(temperature=0, repetition_penalty=1.2, presence_penalty=0.5, frequency_penalty=0.35),
        SamplingParams(temperature=0, frequency_penalty=0.3, logit_bias={4: 1.5, 0: -2.0}),
        SamplingParams(temperature=0),
    ]
    prompts = [[0, 0, 0, 3], [1, 5], [2, 2, 2, 2], [3, 7, 7, 7], [4, 9, 9, 0], [], [8]]
    outputs: list[list[int]] = [[], [], [], [2, 2], [6, 1, 1], [], [5]]
    sampler = Sampler(cases, vocab, prompts, outputs=outputs)
    for step in range(steps):
        logits = some_logits(len(cases), vocab, seed=step)
        got = np.array(sampler(mx.array(logits), [step] * len(cases)).tokens)
        for row, params in enumerate(cases):
            want = penalized(logits[row], params, prompts[row], outputs[row])
            assert got[row] == np.argmax(want), (step, row)
            outputs[row] = [*outputs[row], int(got[row])]


def logprobs_are_of_the_raw_logits() -> None:
    vocab, counts = 200, [0, 3, None, 20, None]
    params = [
        SamplingParams(temperature=0.3, top_k=9, logprobs=n, repetition_penalty=1.7, logit_bias={5: 4.0})
        for n in counts
    ]
    logits = some_logits(len(params), vocab)
    logits[1, 10:] = -np.inf
    out = Sampler(params, vocab, [list(range(50))] * len(params), seeds=range(5))(mx.array(logits), [4] * 5)
    assert out.logprobs is not None and out.top_tokens is not None and out.top_logprobs is not None
    for row, count in enumerate(counts):
        if count is None:
            assert math.isnan(out.logprobs[row].item())
            continue
        want = np.log(np.maximum(softmax(logits[row].astype(np.float64)), 1e-300))
        assert abs(out.logprobs[row].item() - want[out.tokens[row].item()]) < 2e-5
        top = np.array(out.top_tokens[row])[:count]
        assert len(set(top.tolist())) == count
        finite = min(count, int(np.isfinite(logits[row]).sum()))
        np.testing.assert_array_equal(top[:finite], np.argsort(-logits[row], kind="stable")[:finite])
        np.testing.assert_allclose(np.array(out.top_logprobs[row])[:finite], want[top[:finite]], atol=2e-5)
        assert np.isneginf(np.array(out.top_logprobs[row])[finite:count]).all()


def rows_do_not_depend_on_neighbours() -> None:
    """A row of a mixed batch, at any place, gives what it gives alone: tokens and log-probabilities, bit for bit."""
    vocab, steps = 8192, 3
    batch = [*TECHNIQUES.values(), *GREEDY_WAYS.values()]
    batch = [SamplingParams(**{**p.__dict__, "logprobs": i % 3 if i % 2 else None}) for i, p in enumerate(batch)]
    order = np.random.default_rng(0).permutation(len(batch))
    prompts = [list(range(row)) for row in range(len(batch))]

    def run(rows: list[int]) -> list[tuple[object, ...]]:
        sampler = Sampler(
            [batch[r] for r in rows], vocab, [prompts[r] for r in rows], seeds=rows, samples=[1] * len(rows)
        )
        taken = []
        for step in range(steps):
            logits = some_logits(len(batch), vocab, seed=step)[rows]
            out = sampler(mx.array(logits), [r + step for r in rows])
            bits = out.logprobs.view(mx.uint32).tolist() if out.logprobs is not None else [None] * len(rows)
            shown = [b if batch[r].logprobs is not None else None for b, r in zip(bits, rows, strict=True)]
            taken.append(list(zip(out.tokens.tolist(), shown, strict=True)))
        return [tuple(step[i] for step in taken) for i in range(len(rows))]

    together = dict(zip(order.tolist(), run(order.tolist()), strict=True))
    for row in range(len(batch)):
        assert run([row]) == [together[row]], row


def streams_are_independent() -> None:
    """Numbers of neighbouring positions, seeds and samples are uniform, differ, and don't correlate."""
    n = 20_000
    walks = {
        "positions": (draw.stream_keys([7] * n, [0] * n), np.arange(n)),
        "seeds": (draw.stream_keys(range(n), [0] * n), np.full(n, 3)),
        "huge seeds": (draw.stream_keys([2**64 - 1 - i for i in range(n)], [0] * n), np.full(n, 3)),
        "high words": (draw.stream_keys([i << 32 for i in range(n)], [0] * n), np.full(n, 3)),
        "samples": (draw.stream_keys([7] * n, range(n)), np.full(n, 3)),
        "seed plus position": (draw.stream_keys(range(n), [0] * n), np.arange(n)[::-1]),
    }
    columns = []
    for name, (keys, positions) in walks.items():
        u = np.array(draw.uniforms(keys, positions), np.float64)
        assert u.min() >= 0 and u.max() < 1
        columns += [u[:, 0], u[:, 1]]
        for number in u.T:
            assert abs(number.mean() - 0.5) < 4.5 * math.sqrt(1 / 12 / n), name
            assert abs(number.var() - 1 / 12) < 4.5 * math.sqrt(1 / 180 / n), name
            for lag in (1, 2, 8):
                pairs = (number[:-lag] * 8).astype(int) * 8 + (number[lag:] * 8).astype(int)
                assert abs(chi_square(pairs, np.full(64, 1 / 64))) < 4.5, (name, lag)
    correlation = np.corrcoef(columns) - np.eye(len(columns))
    assert np.abs(correlation).max() < 5 / math.sqrt(n)


def seed_and_position_decide() -> None:
    """The same seed, sample and position repeat a draw; another of any of the three makes other draws."""
    vocab, rows = 64, 200
    logits = mx.array(some_logits(1, vocab, scale=0.5).repeat(rows, 0))

    def tokens(seed: int, sample: int, start: int) -> list[int]:
        sampler = Sampler([SamplingParams(seed=seed)] * rows, vocab, samples=[sample] * rows)
        return list(sampler(logits, range(start, start + rows)).tokens.tolist())

    first = tokens(1, 0, 0)
    assert first == tokens(1, 0, 0)
    assert tokens(1, 0, 50)[: rows - 50] == first[50:]
    for other in (tokens(2, 0, 0), tokens(1, 1, 0), tokens(1, 0, 1), tokens(1 + 2**32, 0, 0), tokens(1 + 2**63, 0, 0)):
        assert sum(a == b for a, b in zip(first, other, strict=True)) < rows / 4


CHECKS: list[Callable[[], None]] = [
    techniques_follow_the_exact_distribution,
    random_draws_follow_the_exact_distribution,
    greedy_ways_agree_and_stay_finite,
    masked_tokens_are_never_drawn,
    extreme_uniforms_draw_possible_tokens,
    small_masses_are_not_lost,
    largest_is_the_sorted_prefix,
    penalties_match_the_oracle_step_by_step,
    logprobs_are_of_the_raw_logits,
    rows_do_not_depend_on_neighbours,
    streams_are_independent,
    seed_and_position_decide,
]

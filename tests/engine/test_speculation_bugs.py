"""Bugs that engines with speculation have had: each, put into ours, changes an answer that the tests compare.

They are named after public reports on other engines. The same requests pass without the bug.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import mlx.core as mx
import pytest

from tests.engine.test_loop import GREEDY, alone, make_loop, request, run, summary
from tests.engine.test_speculation import DRAFTERS, Answers, answers_of, guessing, prompt
from tests.support import make_model
from tiny_llm import LLM, SamplingParams, load
from tiny_llm.config import Structured
from tiny_llm.decode.acceptance import DraftTree, accepted
from tiny_llm.decode.sampler import Sampler
from tiny_llm.decode.text import Delta
from tiny_llm.engine import choosers, scheduler
from tiny_llm.engine.choosers import Draw
from tiny_llm.engine.forms import Form
from tiny_llm.engine.request import Request, computed_after

Patch = pytest.MonkeyPatch
PENALTY = SamplingParams(max_tokens=30, temperature=0.8, seed=4, ignore_eos=True, frequency_penalty=1.5)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    return load(make_model(tmp_path_factory.mktemp("model")))


def requests_of(llm: LLM) -> list[Request]:
    """Greedy and sampled, with penalties, log-probabilities and a grammar; one prompt is eight tokens long."""
    form = Structured("regex", "[a-z]{2,4}( [0-9]{1,3}){3}")
    asked = [
        replace(GREEDY, max_tokens=30),
        PENALTY,
        replace(PENALTY, repetition_penalty=1.5, frequency_penalty=0.0, logprobs=2, seed=9),
        replace(PENALTY, frequency_penalty=-0.8, seed=3),  # repeats are likely
        SamplingParams(max_tokens=30, seed=2, structured=form),
    ]
    return [request(llm, f"{i}", prompt(i, 8 if i == 0 else 15), params) for i, params in enumerate(asked)]


@dataclass
class Expected:
    """The requests, and what they are answered without drafts and without a bug."""

    requests: list[Request]
    deltas: dict[str, list[Delta]]
    answers: Answers


@pytest.fixture(scope="module")
def expected(llm: LLM) -> Expected:
    requests = requests_of(llm)
    return Expected(requests, {one.id: alone(llm, one)[0] for one in requests}, answers_of(llm, requests))


def differs(llm: LLM, expected: Expected) -> bool:
    """Whether an answer is not the one without drafts, or the engine's integrity is broken, or a request fails."""
    requests, want = expected.requests, expected.deltas
    for drafter in ("mixed", "trees", "wrong"):
        loop = guessing(llm, DRAFTERS[drafter](expected.answers), max_draft=6)
        try:
            got = run(loop, requests, steps=300)
        except (AssertionError, ArithmeticError, ValueError, IndexError, KeyError):
            return True
        for one in requests:
            mine, theirs = got[one.id][0], want[one.id]
            if summary(mine) != summary(theirs):
                return True
            for a, b in zip(mine, theirs, strict=True):
                if a.logprobs and b.logprobs and abs(a.logprobs.logprob - b.logprobs.logprob) > 1e-3:
                    return True
    return False


def first_draft_never_verified(patch: Patch) -> None:
    def walk(tree: DraftTree, drawn: list[int]) -> list[int]:
        return accepted(tree, drawn) or tree.children(-1)[:1]

    patch.setattr(choosers, "accepted", walk)


def last_candidate_accepted_one_too_far(patch: Patch) -> None:
    def walk(tree: DraftTree, drawn: list[int]) -> list[int]:
        kept = accepted(tree, drawn)
        return [*kept, *tree.children(kept[-1] if kept else -1)[:1]]

    patch.setattr(choosers, "accepted", walk)


def a_row_of_the_neighbour(patch: Patch) -> None:
    whole = choosers._numbers_of

    def shifted(sampled):
        tokens, finite = whole(sampled)
        return [*tokens[1:], tokens[0]], finite

    patch.setattr(choosers, "_numbers_of", shifted)


def with_outputs(patch: Patch, change: Callable[[tuple[int, ...], tuple[int, ...]], tuple[int, ...]]) -> None:
    """Let penalties count change(verified tokens, drafted tokens) for each row."""
    made = Draw._sampler_for

    def sampler_for(self: Draw, paths) -> Sampler:
        if not any(path.tokens for path in paths):
            return made(self, paths)
        tracks = [self._tracks[path.sequence] for path in paths]
        return Sampler(
            [track.params for track in tracks],
            self.vocab_size,
            [track.prompt for track in tracks],
            outputs=[change(tuple(t.output), path.tokens) for t, path in zip(tracks, paths, strict=True)],
            samples=[path.sequence.number for path in paths],
        )

    patch.setattr(Draw, "_sampler_for", sampler_for)


def penalties_that_count_one_token_a_step(patch: Patch) -> None:
    with_outputs(patch, lambda output, path: (*output, *path[:1]))


def penalties_that_count_the_last_token_twice(patch: Patch) -> None:
    with_outputs(patch, lambda output, path: (*output, *output[-1:], *path))


def a_grammar_shared_by_reference(patch: Patch) -> None:
    def behind(self: Form, tokens) -> Form:
        for token in tokens:
            self.follow(token)
        return self

    patch.setattr(Form, "behind", behind)


def keys_of_the_bonus_token_missing(patch: Patch) -> None:
    def counted(share, result) -> int:
        return computed_after(share, result) + (share.wanted > 1)

    patch.setattr(scheduler, "computed_after", counted)


def rejected_keys_kept(patch: Patch) -> None:
    patch.setattr(scheduler, "computed_after", lambda share, result: share.end)


def a_chunk_of_eight_taken_for_a_verification(patch: Patch) -> None:
    made = scheduler.Scheduler._share

    def share(self, sequence, length):
        found = made(self, sequence, length)
        return found._replace(wanted=8) if length == 8 and found.wanted else found

    patch.setattr(scheduler.Scheduler, "_share", share)


def log_probabilities_after_penalties(patch: Patch) -> None:
    made = Sampler._report

    def report(self: Sampler, logits: mx.array, tokens: mx.array):
        return made(self, self._adjust(logits), tokens)

    patch.setattr(Sampler, "_report", report)


BUGS = [
    first_draft_never_verified,
    last_candidate_accepted_one_too_far,
    a_row_of_the_neighbour,
    penalties_that_count_one_token_a_step,
    penalties_that_count_the_last_token_twice,
    a_grammar_shared_by_reference,
    keys_of_the_bonus_token_missing,
    rejected_keys_kept,
    a_chunk_of_eight_taken_for_a_verification,
]


def test_the_requests_pass_without_a_bug(llm: LLM, expected: Expected) -> None:
    assert not differs(llm, expected)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_a_known_bug_is_found(llm: LLM, expected: Expected, bug: Callable[[Patch], None], monkeypatch: Patch) -> None:
    bug(monkeypatch)
    assert differs(llm, expected)


def test_log_probabilities_are_the_models_own(llm: LLM, monkeypatch: Patch) -> None:
    """Before penalties: with them, the log-probabilities of a request with penalties would differ from its rows'."""
    one = requests_of(llm)[2]
    want = [delta.logprobs.logprob for delta in alone(llm, one)[0]]
    log_probabilities_after_penalties(monkeypatch)
    (deltas,) = run(make_loop(llm), [one])[one.id].values()
    assert max(abs(delta.logprobs.logprob - logprob) for delta, logprob in zip(deltas, want, strict=True)) > 1e-3

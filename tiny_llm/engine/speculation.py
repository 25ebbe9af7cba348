"""Add drafts to the decodes of a step, and count afterwards how many guesses were right."""

import time
import warnings
from collections import Counter
from collections.abc import Callable
from collections.abc import Sequence as Row
from dataclasses import dataclass, field
from typing import NamedTuple

from tiny_llm.config.speculation import SpeculationConfig
from tiny_llm.decode.acceptance import DraftTree
from tiny_llm.engine.blocks import BlockPool
from tiny_llm.engine.controller import Controller, VerifiedStep
from tiny_llm.engine.drafters import Drafter, LearningDrafter, new_drafter
from tiny_llm.engine.helper import Helper
from tiny_llm.engine.profile import measured_profile
from tiny_llm.engine.request import Result, Seen, Sequence, SequenceId, Step
from tiny_llm.engine.runner import Running
from tiny_llm.engine.scheduler import Scheduler
from tiny_llm.engine.store import Store
from tiny_llm.model.qwen3 import Qwen3


@dataclass
class SpeculationCounts:
    """Counts since the start. `accepted_at[i]`: drafts whose guess number i was accepted, from 0 on."""

    drafts: int = 0
    drafted: int = 0
    accepted: int = 0
    accepted_at: Counter[int] = field(default_factory=Counter)

    @property
    def acceptance_rate(self) -> float:
        """The share of the guesses that were accepted."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def tokens_per_draft(self) -> float:
        """New tokens of a step that verifies a draft, on average: the accepted ones and one more."""
        return 1 + self.accepted / self.drafts if self.drafts else 1.0


@dataclass
class Drafting:
    """What the loops of one model share. `helper` has the drafter's own weights, if it needs any."""

    helper: Helper | None = None
    counts: SpeculationCounts = field(default_factory=SpeculationCounts)
    controller: Controller | None = None  # made by the first loop that needs one


class Attempt(NamedTuple):
    """The drafts of a step under way: their greatest length, the seconds that they took, and when they were ready."""

    choice: int = 0
    drafting: float = 0.0
    end: float = 0.0


class Speculation:
    """The drafter of a loop. One that raises is switched off, and the answers go on without it.

    `fault` is the error for which the drafter was switched off. With a `controller` the number of guesses is chosen for
    each step, without one it is the largest that the settings allow.
    """

    def __init__(
        self,
        config: SpeculationConfig,
        drafter: Drafter,
        counts: SpeculationCounts,
        controller: Controller | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.config, self.counts, self.controller, self.clock = config, counts, controller, clock
        self._attempt = Attempt()
        self.drafter: Drafter | None = drafter
        self._learner = drafter if isinstance(drafter, LearningDrafter) else None
        self.fault: Exception | None = None
        self._told = False

    def extend(self, step: Step, scheduler: Scheduler, max_context: int) -> Step:
        """Return the step with drafts behind its decodes, as far as token budget and available blocks allow."""
        if self.drafter is None:
            return step
        decoding = scheduler.decoding(step)
        most = self.config.most
        if self.controller is not None and decoding:
            most = self.controller.choose(len(decoding), step.num_tokens - len(decoding))
        begin = self.clock()
        extended = self._extended(step, scheduler, decoding, most, max_context)
        end = self.clock()
        self._attempt = Attempt(most, end - begin, end)
        return extended

    def next_is_plain(self, scheduler: Scheduler) -> bool:
        """Return whether the next step will surely have no drafts, if the same sequences go on."""
        if self.drafter is None:
            return True
        return self.controller is not None and self.controller.next_is_plain(len(scheduler.running))

    def _extended(self, step: Step, scheduler: Scheduler, decoding: Row[Sequence], most: int, max_context: int) -> Step:
        """Return the step with drafts of at most `most` tokens."""
        sequences: list[Sequence] = []
        limits: list[int] = []
        left = scheduler.config.token_budget - step.num_tokens
        for sequence in decoding:
            limit = min(most, left, room(sequence, max_context))
            if limit > 0:
                limit = scheduler.reserve(sequence, limit)
            if limit > 0:
                sequences.append(sequence)
                limits.append(limit)
                left -= limit
        if step.copies:
            self._copy_blocks(step)
        if self.drafter is None or not sequences:
            return step
        drafts = self._proposed(self.drafter, sequences, limits)
        return scheduler.with_drafts(step, drafts)

    def _copy_blocks(self, step: Step) -> None:
        if self._learner is not None:
            try:
                self._learner.copy_blocks(step.copies)
            except Exception as error:
                self._switch_off(error)

    def _proposed(self, drafter: Drafter, sequences: Row[Sequence], limits: Row[int]) -> dict[SequenceId, DraftTree]:
        try:
            drafts = drafter.propose(sequences, limits)
            found = {}
            for sequence, draft, limit in zip(sequences, drafts, limits, strict=True):
                found[sequence.id] = pruned(draft, sequence.request.stop_tokens, limit)
            return found
        except Exception as error:
            self._switch_off(error)
            return {}

    @property
    def taps(self) -> tuple[int, ...]:
        """The layers whose outputs the drafter reads."""
        return () if self._learner is None else self._learner.taps

    def observe(self, running: Running, results: Row[Result]) -> None:
        """Count the guesses of a step, and let the drafter learn from it."""
        self._count(running.step, results)
        if self.controller is not None:
            self._tell_controller(running, results)
        if self._learner is None:
            return
        try:
            self._learner.observe(_seen(running, results))
        except Exception as error:
            self._switch_off(error)

    def _tell_controller(self, running: Running, results: Row[Result]) -> None:
        """Give the controller the step's times, and what became of the guesses."""
        assert self.controller is not None
        step = self.clock() - self._attempt.end
        guesses: list[int] = []
        accepted: list[int] = []
        others = 0
        for share, result in zip(running.step.shares, results, strict=True):
            known = share.length - max(0, share.wanted - 1)
            if known == 1 and result.tokens:
                guesses.append(share.length - 1)
                accepted.append(len(result.tokens) - 1)
            else:
                others += share.length
        if guesses:
            verified = VerifiedStep(guesses, accepted, others, self._attempt.drafting, step)
            self.controller.note(self._attempt.choice, verified)

    def _count(self, step: Step, results: Row[Result]) -> None:
        counts = self.counts
        for share, result in zip(step.shares, results, strict=True):
            guesses = share.wanted - 1
            if guesses <= 0:
                continue
            right = len(result.tokens) - 1
            counts.drafts += 1
            counts.drafted += guesses
            counts.accepted += right
            counts.accepted_at.update(range(right))

    def forget(self, ended: Row[SequenceId]) -> None:
        """Drop the data of sequences that have ended or were preempted."""
        if self.drafter is None or not ended:
            return
        try:
            self.drafter.forget(ended)
        except Exception as error:
            self._switch_off(error)

    def tell_of_search(self) -> None:
        """Warn, the first time, that a beam search runs without drafts."""
        if not self._told:
            self._told = True
            words = "beam_width: a beam search runs without drafts; other requests keep theirs"
            warnings.warn(words, RuntimeWarning, stacklevel=4)

    def _switch_off(self, error: Exception) -> None:
        self.drafter, self._learner, self.fault = None, None, error
        name = self.config.drafter
        warnings.warn(f"drafter {name}: {error!r}; the engine goes on without drafts", RuntimeWarning, stacklevel=4)


def new_speculation(
    config: SpeculationConfig, drafting: Drafting, model: Qwen3, store: Store, blocks: BlockPool, token_budget: int
) -> Speculation | None:
    """Make the speculation of a loop; None where the settings name no drafter."""
    drafter = new_drafter(config, drafting.helper, store, blocks, model.config.vocab_size)
    if drafter is None:
        return None
    if config.adaptive and drafting.controller is None:
        drafting.controller = Controller(measured_profile(model, token_budget), config.most)
    return Speculation(config, drafter, drafting.counts, drafting.controller)


def _seen(running: Running, results: Row[Result]) -> list[Seen]:
    """Give each share its result and its rows of the features."""
    seen = []
    begin = 0
    for share, place in zip(running.batch.shares, running.batch.order, strict=True):
        end = begin + share.length
        features = None if running.features is None else running.features[begin:end]
        seen.append(Seen(share, results[place], features))
        begin = end
    return seen


def room(sequence: Sequence, max_context: int) -> int:
    """Return how many guesses may be accepted before the answer's last token, which no guess needs to be."""
    longest = min(sequence.num_prompt + sequence.request.params.max_tokens, max_context)
    return longest - len(sequence.tokens) - 1


def pruned(draft: DraftTree, stops: frozenset[int], limit: int) -> DraftTree:
    """Return the first `limit` nodes of a draft without tokens that end an answer, and without what follows these."""
    kept: dict[int, int] = {-1: -1}
    tokens: list[int] = []
    parents: list[int] = []
    for node, (token, parent) in enumerate(zip(draft.tokens, draft.parents, strict=True)):
        if token not in stops and parent in kept and len(tokens) < limit:
            kept[node] = len(tokens)
            tokens.append(token)
            parents.append(kept[parent])
    return DraftTree(tuple(tokens), tuple(parents))

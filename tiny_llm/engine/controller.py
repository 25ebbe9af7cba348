"""Choose how many tokens to draft, and how many tokens a step may hold, from measured times.

Verifying k guesses makes a step longer; it pays only if enough of them are right. The controller compares choices of k
by their expected tokens a second, which it knows from three measurements that it keeps up to date: T(rows), the time of
a step; how many tokens a step gives with k guesses; and the time to make the guesses.
"""

from bisect import bisect_left
from collections.abc import Sequence as Row
from dataclasses import dataclass, field
from typing import NamedTuple

CHOICES = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 63)
RECENT = 0.1  # weight of a new measurement in a mean
LATEST = 0.3  # the same, where a step must keep to a time
MARGIN = 1.03  # another choice must be so much better
HOPE = 0.5  # share of right guesses while nothing is known
FADING = 0.01  # how fast a place that is not drafted comes to be like the last one that is
PRIOR = 12  # steps that the belief in the prediction of survival counts
SLOW = 0.05  # least weight of a new guess in the share of right ones
FIRST_PAUSE, LAST_PAUSE = 24, 256  # steps between two trials: more after each trial that changed nothing
TRIAL = 4  # steps of a trial


class Profile:
    """T(rows): the seconds of a step by its number of tokens, in a straight line between the measured sizes."""

    def __init__(self, points: dict[int, float] | None = None):
        self.points = dict(points or {})
        self._confirmed: set[int] = set()  # sizes of which steps were timed since

    def seconds(self, rows: float) -> float:
        """Return the expected time of a step. Beyond the largest measured size it grows by the last slope."""
        sizes = sorted(self.points)
        assert sizes, "nothing is measured yet"
        if len(sizes) == 1:
            return self.points[sizes[0]]
        right = min(max(1, bisect_left(sizes, rows)), len(sizes) - 1)
        a, b = sizes[right - 1], sizes[right]
        slope = (self.points[b] - self.points[a]) / (b - a)
        return max(self.points[a] + slope * (rows - a), min(self.points.values()))

    def update(self, rows: int, seconds: float) -> None:
        """Take in the time of a step: it moves the measured size next to it, and those that no step has confirmed."""
        if not self.points:
            self.points[rows] = seconds
            return
        size = min(self.points, key=lambda size: abs(size - rows))
        ratio = min(seconds / self.seconds(rows), 2.0)
        self._confirmed.add(size)
        for other in self.points:
            if other == size or other not in self._confirmed:
                self.points[other] *= 1 + RECENT * (ratio - 1)

    def most_rows(self, seconds: float, least: int, most: int) -> int:
        """Return the largest number of tokens, from `least` to `most`, whose step takes at most so many seconds."""
        low, high = least, most
        while low < high:
            middle = (low + high + 1) // 2
            if self.seconds(middle) <= seconds:
                low = middle
            else:
                high = middle - 1
        return low


class Survival:
    """How often guesses are right: `odds[j]` is the share of guesses number j that were, of those that counted.

    A guess counts where all guesses before it were right. (For the beams of a tree a place is a depth.)
    """

    def __init__(self) -> None:
        self.odds: list[float] = []
        self.counts: list[int] = []

    def note(self, guesses: int, accepted: int) -> None:
        """Take in a draft with so many guesses, of which the first `accepted` were right."""
        for place in range(min(accepted + 1, guesses)):
            self._note_place(place, right=place < accepted)
        for place in range(max(1, guesses), len(self.odds)):  # nothing new is known of these: trust them less
            self.odds[place] += FADING * (self.odds[guesses - 1] - self.odds[place])

    def _note_place(self, place: int, right: bool) -> None:
        if place == len(self.odds):
            self.odds.append(self.odds[-1] if self.odds else HOPE)
            self.counts.append(0)
        self.counts[place] += 1
        weight = max(SLOW, 1 / (self.counts[place] + 1))
        self.odds[place] += weight * (right - self.odds[place])

    def tokens(self, guesses: int) -> float:
        """Return the expected number of new tokens of a draft with so many guesses: the accepted ones and one more."""
        together = total = 1.0
        for place in range(guesses):
            known = self.odds[min(place, len(self.odds) - 1)] if self.odds else HOPE
            together *= known
            total += together
        return total


class Pace:
    """Keeps steps to a time: the token budget is the largest number of tokens that T(rows) allows. (adaptive chunking)

    `most` tokens at most, and `least` even where they take longer: a token for each sequence. A chunk far inside a long
    prompt takes longer than T(rows), since its tokens look at more, and a machine may become slower: so the time that
    counts is T(rows) times the slowness of the last few steps.
    """

    def __init__(self, profile: Profile, seconds: float, least: int, most: int):
        self.profile, self.seconds, self.least, self.most = profile, seconds, least, most
        self._slowness = 1.0

    # ANCHOR: pace
    @property
    def token_budget(self) -> int:
        return self.profile.most_rows(self.seconds / self._slowness, self.least, self.most)

    def note(self, tokens: int, seconds: float) -> None:
        """Take in the time of a step."""
        slowness = seconds / self.profile.seconds(tokens)
        self._slowness += LATEST * (slowness - self._slowness)
        # ANCHOR_END: pace


@dataclass
class Arm:
    """What is known of a choice: how its steps differ from what is expected, each a mean over recent steps.

    `gain`: new tokens over those that survival predicts. `rows`: computed tokens of a sequence. `drafting`: seconds to
    make a sequence's guesses. `slowness`: the time of a step over T(rows). `steps`: how often it was tried.
    """

    rows: float
    gain: float = 1.0
    drafting: float = 0.0
    slowness: float = 1.0
    steps: int = 0

    def note(self, gain: float, rows: float, drafting: float, slowness: float) -> None:
        """Take in a step."""
        weight = max(RECENT, 1 / (self.steps + 1))
        cautious = max(RECENT / 4, 1 / (self.steps + PRIOR))
        slowness = min(slowness, 4.0)
        self.gain += cautious * (gain - self.gain)
        self.rows += weight * (rows - self.rows)
        self.drafting += weight * (drafting - self.drafting)
        self.slowness += weight * (slowness - self.slowness)
        self.steps += 1


@dataclass
class Load:
    """The arms at one level of load, by their number of guesses, and the choice that was best there."""

    arms: dict[int, Arm]
    choice: int
    survival: Survival = field(default_factory=Survival)
    pause: int = FIRST_PAUSE
    until_trial: int = 0
    left: int = 0  # steps of the present trial
    trial: int = 0


class VerifiedStep(NamedTuple):
    """A step as the controller sees it: of each sequence that decoded the guesses and how many of them were right.

    `others` are the tokens of prompts in the step. The times are in seconds.
    """

    guesses: Row[int]
    accepted: Row[int]
    others: int
    drafting: float
    step: float


class Controller:
    """Chooses k for each step by the number of sequences that decode, `most` at most. 0 is a choice.

    It changes where another choice is better by MARGIN. What it can't know without drafting, or without a step that
    drafts nothing, it tries now and then. For each number of sequences, to a factor of two, it learns apart.
    """

    def __init__(self, profile: Profile, most: int):
        self.profile = profile
        self.choices = [choice for choice in CHOICES if choice < most] + [most]
        self._loads: dict[int, Load] = {}

    def choose(self, sequences: int, others: int = 0) -> int:
        """Return how many tokens to draft for each of so many sequences. `others`: tokens of prompts in the step."""
        load = self._load(sequences)
        load.left = max(0, load.left - 1)
        if load.left:
            return load.trial
        best = self._best(load, self.choices, sequences, others)
        if self._value(load, best, sequences, others) > MARGIN * self._value(load, load.choice, sequences, others):
            load.choice = best
            load.pause = FIRST_PAUSE
        load.until_trial -= 1
        if load.until_trial <= 0:
            self._begin_trial(load, sequences, others)
        return load.trial if load.left else load.choice

    def _begin_trial(self, load: Load, sequences: int, others: int) -> None:
        """Try for a few steps what the present choice can't tell: no drafts, or drafts where there are none.

        Only choices are tried that would pay if all guesses were right.
        """
        load.until_trial = load.pause
        load.pause = min(LAST_PAUSE, 2 * load.pause)
        now = self._value(load, load.choice, sequences, others)
        worth = [
            choice
            for choice in self.choices[1:]
            if self._value(load, choice, sequences, others, tokens=1 + choice) > MARGIN * now
        ]
        if load.choice:
            place = self.choices.index(load.choice)
            worth = self.choices[place + 1 : place + 2] if load.trial == 0 else [0]  # in turn
        if worth:
            load.trial = self._best(load, worth, sequences, others)
            load.left = TRIAL

    def note(self, choice: int, verified: VerifiedStep) -> None:
        """Take in a step for which `choice` tokens were drafted for each sequence, or fewer."""
        sequences = len(verified.guesses)
        rows = sequences + sum(verified.guesses)
        tokens = sequences + sum(verified.accepted)
        load = self._load(sequences)
        gain = tokens / (sequences * load.survival.tokens(choice))
        slowness = verified.step / self.profile.seconds(rows + verified.others)
        load.arms[choice].note(gain, rows / sequences, verified.drafting / sequences, slowness)
        if choice == 0:
            self.profile.update(rows + verified.others, verified.step)
        for guesses, accepted in zip(verified.guesses, verified.accepted, strict=True):
            load.survival.note(guesses, accepted)

    def next_is_plain(self, sequences: int) -> bool:
        """Return whether the next step will surely draft nothing."""
        load = self._load(sequences)
        return load.choice == 0 and load.until_trial > 1 and load.left == 0

    def _value(self, load: Load, choice: int, sequences: int, others: int, tokens: float | None = None) -> float:
        """Return the expected new tokens a second of a step with this choice; `tokens` of a sequence if given."""
        arm = load.arms[choice]
        if tokens is None:
            tokens = arm.gain * load.survival.tokens(choice)
        # ANCHOR: value
        step = self.profile.seconds(sequences * arm.rows + others) * arm.slowness
        drafting = arm.drafting if arm.steps else self._drafting(load, choice)
        return sequences * tokens / (step + sequences * drafting)
        # ANCHOR_END: value

    def _drafting(self, load: Load, choice: int) -> float:
        """Return the time to draft with a choice that was never tried: in proportion to those that were."""
        known = [arm.drafting / guesses for guesses, arm in load.arms.items() if guesses and arm.steps]
        return choice * max(known, default=0.0)

    def _best(self, load: Load, choices: Row[int], sequences: int, others: int) -> int:
        return max(choices, key=lambda choice: self._value(load, choice, sequences, others))

    def _load(self, sequences: int) -> Load:
        level = max(1, sequences).bit_length()
        if level not in self._loads:
            self._loads[level] = Load({choice: Arm(1.0 + choice) for choice in self.choices}, choice=0)
        return self._loads[level]


def grid(most: int) -> Row[int]:
    """Return the sizes of steps to measure: powers of two up to `most`."""
    return [2**power for power in range(most.bit_length()) if 2**power <= most]

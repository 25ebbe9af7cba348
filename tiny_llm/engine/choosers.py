"""Choose tokens from logits.

Draw    draw the next token of each sequence from its own distribution, under its grammar if it has one
Beams   take in the log-probabilities of beams, and decide which beams the next ones extend; searches take no grammar
"""

from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Row
from dataclasses import dataclass
from typing import NamedTuple, cast

import mlx.core as mx

from tiny_llm.config import SamplingParams
from tiny_llm.decode.acceptance import DraftTree, accepted
from tiny_llm.decode.beam import Logprobs, Search, deltas_of_beams
from tiny_llm.decode.sampler import Sampled, Sampler
from tiny_llm.decode.structured import Grammars
from tiny_llm.decode.text import NOT_FINITE, Delta, Token, TokenLogprobs
from tiny_llm.engine.forms import Fault, Forms, Path
from tiny_llm.engine.request import Admission, EndReason, Request, Result, Sequence, SequenceId, Step
from tiny_llm.model.tokenizer import Tokenizer


@dataclass
class Track:
    """The data of an unfinished sequence that a draw needs."""

    params: SamplingParams
    prompt: tuple[int, ...]
    output: list[int]


class Verified(NamedTuple):
    """The rows of logits of one sequence: one for its next token, and one behind each node of its draft.

    `position` is that of its next token.
    """

    sequence: SequenceId
    position: int
    draft: DraftTree = DraftTree()


def _paths_of(verified: Verified) -> Iterator[tuple[tuple[int, ...], int]]:
    """Yield the path and the position of each row of a sequence: behind its text, then behind each node."""
    draft = verified.draft
    yield (), verified.position
    for node in range(len(draft.tokens)):
        path = tuple(draft.tokens[each] for each in draft.path(node))
        yield path, verified.position + len(path)


class Followed(NamedTuple):
    """A sequence's new tokens: those of the nodes `kept` of its draft, and one more. `drawn`: see `request.Result`."""

    tokens: list[Token]
    kept: list[int]
    drawn: list[int]


class Choice(NamedTuple):
    """The tokens chosen for each row of the sequences `verified`, and the sampler that has counted them."""

    sampled: Sampled
    sampler: Sampler
    verified: list[Verified]

    @property
    def rows(self) -> list[SequenceId]:
        """The sequence of each row."""
        return [one.sequence for one in self.verified for _ in range(1 + len(one.draft.tokens))]

    @property
    def has_drafts(self) -> bool:
        return any(one.draft.tokens for one in self.verified)


class Draw:
    """Draws the next token of each sequence from its own distribution, with its own random numbers.

    The sampler of the last step is kept while the rows stay the same, because it counts on the device the tokens that
    penalties depend on.
    """

    def __init__(self, grammars: Grammars, vocab_size: int):
        self.forms, self.vocab_size = Forms(grammars), vocab_size
        self._tracks: dict[SequenceId, Track] = {}
        self._sampler: Sampler | None = None
        self._rows: list[SequenceId] = []  # of the sampler

    def admit(self, admission: Admission) -> None:
        """Register a sequence with the tokens that it has so far."""
        prompt, output = admission.tokens[: admission.num_prompt], admission.tokens[admission.num_prompt :]
        self._tracks[admission.sequence] = Track(admission.params, prompt, list(output))
        if admission.params.has_rules:
            self.forms.admit(admission)

    def forget(self, sequence: SequenceId) -> None:
        """Drop the data of a sequence that has ended."""
        self._tracks.pop(sequence, None)
        self.forms.rules.pop(sequence, None)

    def searches(self, sequence: SequenceId) -> bool:
        """Return whether a sequence is a beam, for which nothing is drawn."""
        return self._tracks[sequence].params.beam_width > 1

    def depends_on_next(self, sequence: SequenceId) -> bool:
        """Return whether the token after the next may depend on the next one by a rule, not by the model alone."""
        return sequence in self.forms.rules and self.forms.may_restrict_after(sequence, 1)

    def adopt(self, choice: Choice | None) -> None:
        """Go on from a choice whose step is run."""
        if choice is not None and choice.has_drafts and choice.sampler.counts:
            self._sampler = None  # it has counted rejected tokens, too
        elif choice is not None:
            self._sampler, self._rows = choice.sampler, choice.rows

    def reset(self) -> None:
        """After a step that failed: drop the sampler, whose counts are made again from the tokens."""
        self._sampler = None

    def __call__(self, logits: mx.array, verified: list[Verified], state: Row[mx.array]) -> Choice:
        """Choose a token for each row of logits (R, V), of these sequences in their order; nothing is evaluated.

        The choice counts only when it is adopted: its step may be one that is predicted and never run. `state` are
        buffers that the device may compute while the host finds out what forms allow.
        """
        paths = [Path(one.sequence, *at) for one in verified for at in _paths_of(one)]
        if self.forms.rules:
            logits = self.forms.mask(logits, paths, state)
        sampler = self._sampler_for(paths)
        positions = [path.position for path in paths]
        return Choice(sampler(logits, positions), sampler, verified)

    def _sampler_for(self, paths: list[Path]) -> Sampler:
        """A sampler of these rows that has counted the tokens before each."""
        known = self._sampler
        rows = [path.sequence for path in paths]
        drafted = any(path.tokens for path in paths)
        if known is not None and not (drafted and known.counts):
            if rows == self._rows:
                return known.fork()
            if set(rows) <= set(self._rows):
                return known.select([self._rows.index(sequence) for sequence in rows])
        tracks = [self._tracks[sequence] for sequence in rows]
        return Sampler(
            [track.params for track in tracks],
            self.vocab_size,
            [track.prompt for track in tracks],
            outputs=[(*track.output, *path.tokens) for track, path in zip(tracks, paths, strict=True)],
            samples=[sequence.number for sequence in rows],
        )

    def read(self, choice: Choice) -> list[Followed]:
        """Wait for a choice. Returns the new tokens of each sequence, by rule A of `decode.acceptance`."""
        drawn, finite = _numbers_of(choice.sampled)
        begin = 0
        found = []
        # ANCHOR: read
        for sequence, _, draft in choice.verified:
            rows = range(begin, begin + 1 + len(draft.tokens))
            begin = rows.stop
            ids = [drawn[row].id for row in rows]
            kept = accepted(draft, ids) if draft.tokens else []
            followed = [rows[0], *(rows[1 + node] for node in kept)]
            tokens = [self._follow(sequence, drawn[row], finite[row]) for row in followed]
            found.append(Followed(tokens, kept, ids))
        # ANCHOR_END: read
        return found

    def _follow(self, sequence: SequenceId, token: Token, finite: bool) -> Token:
        """Take in a sequence's next token. Returns it as its request asks for it."""
        track = self._tracks[sequence]
        track.output.append(token.id)
        if finite and sequence in self.forms.rules:
            self.forms.follow(sequence, token.id)
        elif not finite:
            self.forms.faults.append(Fault(sequence.request, ArithmeticError(NOT_FINITE)))
        return _with_logprobs(token, track.params.logprobs)

    def take_faults(self) -> list[Fault]:
        """Return the faults found since the last call, and forget them."""
        found, self.forms.faults = self.forms.faults, []
        return found


def _numbers_of(sampled: Sampled) -> tuple[list[Token], list[bool]]:
    """Read a step's tokens, and whether the logits that each was chosen from were finite."""
    ids = cast(list[int], sampled.tokens.tolist())
    finite = cast(list[bool], sampled.finite.tolist())
    if sampled.logprobs is None:
        return [Token(token) for token in ids], finite
    chosen = cast(list[float], sampled.logprobs.tolist())
    tops = _tops_of(sampled, len(ids))
    logprobs = [TokenLogprobs(logprob, top) for logprob, top in zip(chosen, tops, strict=True)]
    return [Token(token, found) for token, found in zip(ids, logprobs, strict=True)], finite


def _tops_of(sampled: Sampled, rows: int) -> list[tuple[tuple[int, float], ...]]:
    """Read the likeliest tokens of each row with their log-probabilities; none where no request asks for them."""
    if sampled.top_tokens is None or sampled.top_logprobs is None:
        return [()] * rows
    tokens = cast(list[list[int]], sampled.top_tokens.tolist())
    logprobs = cast(list[list[float]], sampled.top_logprobs.tolist())
    return [tuple(zip(*row, strict=True)) for row in zip(tokens, logprobs, strict=True)]


def _with_logprobs(token: Token, asked: int | None) -> Token:
    """The token with the log-probabilities that its request asked for: a step has as many as any request wants."""
    if token.logprobs is None:
        return token
    if asked is None:
        return Token(token.id)
    return Token(token.id, TokenLogprobs(token.logprobs.logprob, token.logprobs.top[:asked]))


class Move(NamedTuple):
    """What a search does next: go on with these beams (a parent and a token each), or end with its best beams."""

    request: str
    beams: list[tuple[Sequence, int]]
    ended: Search | None = None

    @property
    def reason(self) -> EndReason:
        """Why an ended search ended."""
        assert self.ended is not None
        return "stop" if self.ended.best[0].finished else "length"


class Beams:
    """The unfinished beam searches. A search advances when the log-probabilities of all its live beams are there."""

    def __init__(self) -> None:
        self._searches: dict[str, Search] = {}
        self._rows: dict[SequenceId, Logprobs] = {}

    def add(self, request: Request) -> None:
        params = request.params
        self._searches[request.id] = Search(
            params.beam_width, params.max_tokens, request.stop_tokens, params.length_penalty
        )

    def __len__(self) -> int:
        return len(self._searches)

    def forget(self, request_id: str) -> None:
        self._searches.pop(request_id, None)
        self._rows = {sequence: row for sequence, row in self._rows.items() if sequence.request != request_id}

    def advance(self, step: Step, results: Row[Result], groups: Mapping[str, list[Sequence]]) -> list[Move]:
        """Take in the log-probabilities of a step, and return the searches that go on or end with them.

        `groups` has the beams of each unfinished request, in their order.
        """
        touched = dict[str, None]()
        for share, result in zip(step.shares, results, strict=True):
            name = share.sequence.request
            if result.row is not None and name in self._searches and name in groups:
                self._rows[share.sequence] = result.row
                touched[name] = None
        moves = []
        for name in touched:
            search = self._searches[name]
            live = groups[name][: len(search.live)]
            if not any(sequence.remaining for sequence in live):
                moves.append(self._advance(name, search, live))
        return moves

    def _advance(self, name: str, search: Search, live: Row[Sequence]) -> Move:
        parents = search.advance([self._rows.pop(sequence.id) for sequence in live])
        if not parents:
            self.forget(name)
            return Move(name, [], search)
        chosen = [(live[p], beam.tokens[-1]) for p, beam in zip(parents, search.live, strict=True)]
        return Move(name, chosen)


def texts_of(sequence: Sequence, search: Search, tokenizer: Tokenizer) -> Iterator[Delta]:
    """Return the deltas of an ended search: its n best beams."""
    return deltas_of_beams(search.best[: sequence.request.params.n], tokenizer)

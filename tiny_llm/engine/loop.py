"""The engine without threads: take in requests, run steps, return text. `LLM` and `Engine` both run on it.

A call of `step` waits for the running step, schedules and starts the next step, and turns the last step's tokens into
text while the device works. While it waits, it builds the step that will probably be next. An answer does not depend on
the other requests in its batch, because a token's random numbers are a function of the request's seed, the sample's
number and the token's position. (Rounding remains: where the two best logits differ by less than the error of keys and
values packed in few bits, another batch may choose the other token.)
"""

import secrets
import time
from collections import Counter
from collections.abc import Callable
from collections.abc import Sequence as Row
from dataclasses import dataclass, replace

from tiny_llm.cache.contiguous import ContiguousCache
from tiny_llm.cache.view import View
from tiny_llm.cache.whole import WholeCaches
from tiny_llm.config import EngineConfig
from tiny_llm.config.sampling import check_token_ids
from tiny_llm.config.serving import ServingConfig
from tiny_llm.decode.beam import all_finite
from tiny_llm.decode.structured import Grammars
from tiny_llm.decode.text import NOT_FINITE, Delta, Token, Writer, check_prompt
from tiny_llm.engine.choosers import Beams, Draw, texts_of
from tiny_llm.engine.events import Event, Guarded
from tiny_llm.engine.forms import Fault
from tiny_llm.engine.helper import bytes_beside
from tiny_llm.engine.ledger import check_request
from tiny_llm.engine.profile import new_pace
from tiny_llm.engine.recovery import Recovery, out_of_memory
from tiny_llm.engine.request import UNKNOWN, PrefixMiss, Request, Result, Sequence, SequenceId, Share, Step
from tiny_llm.engine.runner import Runner, Running
from tiny_llm.engine.scheduler import Scheduler
from tiny_llm.engine.speculation import Drafting, new_speculation
from tiny_llm.engine.store import Store, new_scheduler, new_store
from tiny_llm.engine.threads import clear_streams_at_end
from tiny_llm.model.qwen3 import Qwen3
from tiny_llm.model.tokenizer import Tokenizer

DIFFERING = 16  # tokens of a prompt that are shown where its prefix was not found


@dataclass(frozen=True)
class Output:
    """A request's part of a step's results: a piece of an answer, or an error. `ended`: the request's last output.

    `admitted`: when the answer's sequence first ran, in seconds on the loop's clock. `miss`: with a request's first
    piece, why no longer prefix of its prompt was found; None where all of it was, or no prefixes are kept.
    """

    request_id: str
    delta: Delta | None = None
    error: Exception | None = None
    cached_tokens: int = 0
    admitted: float | None = None
    ended: bool = False
    miss: PrefixMiss | None = None


@dataclass
class Answer:
    """A sequence, and the writer of its text."""

    sequence: Sequence
    writer: Writer


class Loop:
    """A model that answers requests, in the thread that calls it.

    `engine` sets the kind of cache and the longest context. `store` holds K and V. Without it the loop makes a store:
    a pool of pages, or a cache for each sequence where `engine` asks for rotating caches. `drafting`: see there.
    """

    def __init__(
        self,
        model: Qwen3,
        tokenizer: Tokenizer,
        config: ServingConfig | None = None,
        emit: Callable[[Event], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        engine: EngineConfig | None = None,
        store: Store | None = None,
        drafting: Drafting | None = None,
    ):
        clear_streams_at_end()
        self.model, self.tokenizer, self.clock = model, tokenizer, clock
        self.config = config or ServingConfig()
        self.engine = engine or EngineConfig()
        self.max_context = model.config.context(self.engine.max_context)
        drafting = drafting or Drafting()
        beside = bytes_beside(drafting.helper, model.weights["norm"]["weight"].dtype.size)
        self.store = store or new_store(model, self.engine, self.config, self.max_context, beside)
        self.scheduler = new_scheduler(model, self.store, self.config, emit and Guarded(emit))
        vocab_size = model.config.vocab_size
        self.runner = Runner(model, self.store, Draw(Grammars(tokenizer, vocab_size), vocab_size))
        self._answers: dict[SequenceId, Answer] = {}
        self._left: Counter[str] = Counter()  # answers of each request that have not ended
        self._beams = Beams()
        self._running: Running | None = None
        self._recovery = Recovery(self.scheduler, self.runner, self.store)
        budget, blocks = self.config.scheduler.token_budget, self.scheduler.blocks
        wanted = self.engine.speculation
        self.speculation = new_speculation(wanted, drafting, model, self.store, blocks, budget)
        self.pace = new_pace(model, self.config.scheduler)
        self._begun = 0.0

    @property
    def has_work(self) -> bool:
        return bool(self._answers or self._beams)

    def check(self, request: Request) -> None:
        """Raise ValueError for a request that can never run, and say by how much. Any thread may call it."""
        vocab_size = self.model.config.vocab_size
        check_prompt(request.tokens, self.max_context, vocab_size)
        longest = len(request.tokens) + request.params.max_tokens
        if longest > self.max_context:
            raise ValueError(
                f"prompt of {len(request.tokens)} tokens with max_tokens {request.params.max_tokens}: {longest} tokens "
                f"are more than the context of {self.max_context}; shorten the prompt or lower max_tokens"
            )
        check_token_ids(request.params, vocab_size)
        check_request(request, self.scheduler.configured, self.scheduler.blocks)
        if request.params.structured is not None:
            self.runner.draw.forms.check(request.params.structured)

    def add(self, request: Request) -> None:
        """Add a request to the waiting line. Raises ValueError as `check` does, and for the id of an unfinished one."""
        self.check(request)
        params = request.params
        if params.seed is None:
            params = replace(params, seed=secrets.randbits(64))
            request = replace(request, params=params)
        sequences = self.scheduler.add(request, self.clock())
        if request.searches:
            if self.speculation is not None:
                self.speculation.tell_of_search()
            self._beams.add(request)
            return
        for sequence in sequences:
            writer = Writer(
                self.tokenizer,
                params.stop,
                request.stop_tokens,
                params.max_tokens,
                sequence.index,
                request.in_thought,
                not params.skip_special_tokens,
            )
            self._answers[sequence.id] = Answer(sequence, writer)
        self._left[request.id] = len(sequences)

    def cancel(self, request_id: str) -> bool:
        """Cancel a request in any state. Returns whether it was unfinished."""
        self._forget(request_id)
        return self.scheduler.cancel(request_id, self.clock())

    def step(self) -> list[Output]:
        """Finish the running step and start the next. Returns the outputs of the finished one, errors included."""
        running, self._running = self._running, None
        if running is None:
            return self._start()
        try:
            self._prepare(running)
            results = self.runner.read(running)
            if self.pace is not None:
                self.pace.note(running.step.num_tokens, self.clock() - self._begun)
        except Exception as error:
            return self._after_failure(running.step, error) + self._start()
        outputs = self._finish(running, results)
        outputs += self._start()
        for share, result in zip(running.step.shares, results, strict=True):
            outputs += self._texts(share, result)
        return outputs

    def close(self) -> None:
        """Store the prefix tree's blocks for later runs, if the tree has a folder."""
        if self.scheduler.ledger.tree:
            self.scheduler.ledger.tree.save()

    def kept_cache(self) -> tuple[ContiguousCache, list[int]]:
        """Return the whole cache that was kept last, and the tokens in it; an empty one where none is kept."""
        kept, store = self.scheduler.ledger.kept, self.store
        assert kept is not None and isinstance(store, WholeCaches)
        if not kept.texts:
            return store.make(), []
        block, tokens = next(reversed(kept.texts.items()))
        cache = store.caches[block]
        cache.trim(cache.offset - len(tokens))
        return cache, list(tokens)

    def keep_cache(self, tokens: Row[int], cache: ContiguousCache) -> None:
        """Keep a cache that was filled elsewhere, for a request that begins with these tokens."""
        kept, store = self.scheduler.ledger.kept, self.store
        assert kept is not None and isinstance(store, WholeCaches)
        if tokens:
            store.put(kept.take_in(tokens), cache)

    def _prepare(self, running: Running) -> None:
        """Build the step that will probably be next, while the device works."""
        if self.config.disk_folder and self.scheduler.waiting:
            return  # admission may load blocks; a prepared step references the buffers, so MLX would copy them to write
        if self.speculation is not None and not self.speculation.next_is_plain(self.scheduler):
            return  # the next step's drafts depend on the tokens of this one
        guess = foresee(self.scheduler, running.step)
        if guess is not None:
            self.runner.prepare(guess, running)

    def _finish(self, running: Running, results: list[Result]) -> list[Output]:
        """Take in a step's results. Returns the outputs of searches that end and of requests that fail."""
        outputs: list[Output] = []
        step = running.step
        now = self.clock()
        self.scheduler.finish(step, results, now)
        if self.speculation is not None:
            self.speculation.observe(running, results)
        faults = self.runner.draw.take_faults()
        for share, result in zip(step.shares, results, strict=True):
            if result.row is not None and not all_finite(result.row):
                faults.append(Fault(share.sequence.request, ArithmeticError(NOT_FINITE)))
        for request_id, fault in faults:
            outputs += self._fail(request_id, fault)
        if self._beams:
            outputs += self._search(step, results, now)
        if self.scheduler.config is not self.scheduler.configured:
            self._recovery.after_success()
        return outputs

    def _search(self, step: Step, results: list[Result], now: float) -> list[Output]:
        """Advance the beam searches. Returns the answers of the searches that end."""
        outputs: list[Output] = []
        for move in self._beams.advance(step, results, self.scheduler.sequences.requests):
            if move.ended is None:
                self.scheduler.branch(move.request, move.beams, now)
                continue
            sequence = self.scheduler.end(move.request, move.reason, now)
            deltas = list(texts_of(sequence, move.ended, self.tokenizer))
            for number, delta in enumerate(deltas, 1):
                ended = number == len(deltas)
                miss = self._miss(sequence)
                outputs.append(Output(move.request, delta, None, sequence.cached, sequence.admitted, ended, miss))
        return outputs

    def _start(self) -> list[Output]:
        """Plan the next step and set it going."""
        if not self.scheduler.has_work:
            self._release(self.scheduler.sequences.take_ended())
            if isinstance(self.store, WholeCaches):
                self.store.drop_unused(self.scheduler.blocks.in_use)
            return []
        if self.pace is not None:
            self.scheduler.set_limits(self.pace.token_budget, self.config.scheduler.max_sequences)
        step = self.scheduler.schedule(self.clock())
        if self.speculation is not None:
            self.speculation.forget(step.ended)
            step = self.speculation.extend(step, self.scheduler, self.max_context)
            self.runner.taps = self.speculation.taps
        if not step.shares:  # nothing fits under the limits lowered after a failure: restore them
            self.runner.release(step.ended)
            self.scheduler.restore_limits()
            return []
        self._begun = self.clock()
        try:
            self._running = self.runner.launch(step)
        except Exception as error:
            return self._after_failure(step, error)
        return []

    def _release(self, ended: Row[SequenceId]) -> None:
        """Drop what is known of sequences that have ended, where no step tells it."""
        self.runner.release(ended)
        if self.speculation is not None:
            self.speculation.forget(ended)

    def _texts(self, share: Share, result: Result) -> list[Output]:
        """Turn a result's tokens into outputs. An error here ends only the sequence's own request."""
        outputs: list[Output] = []
        sequence = share.sequence
        origins = result.origins(share.draft)
        for token, logprobs, origin in zip(result.tokens, result.logprobs, origins, strict=True):
            if sequence not in self._answers:
                break  # cancelled, failed, or ended by a stop string while this step ran
            try:
                delta = self._answers[sequence].writer.add(Token(token, logprobs))
            except Exception as error:
                return outputs + self._fail(sequence.request, error)
            if origin is not None:
                delta = replace(delta, origin=origin, num_drafted=0 if outputs else len(share.draft.tokens))
            outputs.append(self._output(sequence, delta))
        return outputs

    def _output(self, name: SequenceId, delta: Delta) -> Output:
        """Make the output of a piece of an answer. The last piece ends the sequence, and perhaps its request."""
        sequence = self._answers[name].sequence
        if delta.finish_reason is not None:
            del self._answers[name]
            self._left[name.request] -= 1
            self.scheduler.stop(sequence, delta.finish_reason, self.clock())
        ended = not self._left[name.request]
        if ended:
            del self._left[name.request]
        return Output(name.request, delta, None, sequence.cached, sequence.admitted, ended, self._miss(sequence))

    def _miss(self, sequence: Sequence) -> PrefixMiss | None:
        """Return why a sequence's prefix was not found, with the prompt's text from there on. A second call: None."""
        miss, sequence.missed = sequence.missed, None
        if miss is None:
            return None
        differing = sequence.request.tokens[miss.position : miss.position + DIFFERING]
        return miss._replace(text=self.tokenizer.decode(differing, keep_special=True))

    def _fail(self, request_id: str, error: Exception) -> list[Output]:
        """End a request with an error. Returns no output where the request has ended already."""
        if request_id not in self.scheduler.sequences.requests and not self._left[request_id]:
            return []
        self._forget(request_id)
        for sequence in list(self.scheduler.sequences.requests.get(request_id, [])):
            self.scheduler.stop(sequence, "error", self.clock())
        return [Output(request_id, error=error, ended=True)]

    def _forget(self, request_id: str) -> None:
        self._beams.forget(request_id)
        self._left.pop(request_id, None)
        for name in [name for name in self._answers if name.request == request_id]:
            del self._answers[name]

    def _after_failure(self, step: Step, error: Exception) -> list[Output]:
        """Recover from a step that failed. Returns the error of the request that is given up, if any."""
        given_up = self._recovery.after_failure(step, error, self.clock())
        if given_up is None:
            return []
        if not out_of_memory(error):
            return self._fail(given_up, error)
        longest = max(share.end for share in step.shares)
        told = MemoryError(
            f"out of memory at {longest} tokens ({error}): use a smaller or quantized model, a shorter prompt or a "
            "smaller --max-context"
        )
        told.__cause__ = error
        return self._fail(given_up, told)


def foresee(scheduler: Scheduler, step: Step) -> Step | None:
    """Predict the step after this one, assuming that each sequence samples one token, none ends and none arrives.

    Returns None where that cannot hold: an unfinished prompt, a beam search, an answer at its last token, or no free
    block. Changes nothing. A stop token, an admission or a cancelled request makes the prediction wrong:
    `Scheduler.schedule` decides, and the runner discards a wrong prediction.
    """
    ends = {share.sequence: share.end for share in step.shares if share.wanted}
    blocks = scheduler.blocks
    shares: list[Share] = []
    new = 0
    for sequence in scheduler.running:  # in the order in which they are given blocks
        start = ends.get(sequence.id, -1)
        if start < 0 or not _goes_on(sequence, start):
            return None
        table = tuple(sequence.block_table)
        if start + 1 > len(table) * blocks.block_size:
            if new == blocks.num_free:
                return None
            table = (*table, blocks.upcoming(new))
            new += 1
        shares.append(Share(sequence.id, start, (UNKNOWN,), 1, View(table, start)))
    return Step(step.number + 1, tuple(shares)) if shares else None


def _goes_on(sequence: Sequence, end: int) -> bool:
    """Return whether the sequence samples one more token, is not ended by it, and no follower starts from it."""
    request = sequence.request
    last = end + 1 - sequence.num_prompt == request.params.max_tokens
    return not (last or sequence.followers or request.searches)

"""The serving engine without threads: requests in, steps run, text out.

A call of `step` waits for the step under way, plans and starts the next one, and makes text of the last one's tokens
while the device works. While it waits it builds the step that will probably be next. What a request gets does not
depend on who runs beside it: each token's random numbers are a function of the request's seed, the number of its
sample and the token's place alone. (What rounding leaves open remains: with packed keys and values, `kv_bits`, a
token whose two best logits lie within the packing's error may fall either way in another batch.)
"""

import secrets
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tiny_llm.cache.block_files import BlockFiles
from tiny_llm.cache.choose import block_nbytes, num_blocks_for
from tiny_llm.cache.packed import PackedPool
from tiny_llm.cache.paged import PagedPool
from tiny_llm.config.sampling import check_token_ids
from tiny_llm.config.serving import ServingConfig
from tiny_llm.decode.answer import AnswerStops
from tiny_llm.decode.beam import all_finite
from tiny_llm.decode.generate import NOT_FINITE, Delta, Token, check_prompt, deltas_of
from tiny_llm.decode.structured import Grammars
from tiny_llm.engine.admission import check_request
from tiny_llm.engine.ahead import foresee
from tiny_llm.engine.beams import Beams, texts_of
from tiny_llm.engine.blocks import BlockPool
from tiny_llm.engine.choosers import Draw
from tiny_llm.engine.events import Event, Guarded
from tiny_llm.engine.forms import Fault
from tiny_llm.engine.radix import RadixTree
from tiny_llm.engine.recovery import Recovery
from tiny_llm.engine.request import Request, Sequence, SequenceId
from tiny_llm.engine.runner import Runner, Running
from tiny_llm.engine.scheduler import Scheduler
from tiny_llm.engine.step import Result, Step
from tiny_llm.engine.threads import clear_streams_at_end
from tiny_llm.model.fingerprint import fingerprint
from tiny_llm.model.memory import available_bytes
from tiny_llm.model.qwen3 import Qwen3
from tiny_llm.model.tokenizer import Tokenizer

USUAL_CONTEXT = 4096  # tokens of a sequence that the default pool has room for


@dataclass(frozen=True)
class Output:
    """What a step gave a request: a piece of one of its answers, or why it failed. `ended`: nothing more comes."""

    request_id: str
    delta: Delta | None = None
    error: Exception | None = None
    cached_tokens: int = 0
    ended: bool = False


class Answer:
    """A sequence's tokens as text."""

    def __init__(self, sequence: Sequence, tokenizer: Tokenizer):
        self.sequence, self._tokens = sequence, deque[Token]()
        request = sequence.request
        strings = AnswerStops(request.params.stop, request.in_thought)
        tokens = iter(self._tokens.popleft, None)
        limit = request.params.max_tokens
        self._deltas = deltas_of(tokens, tokenizer, strings, request.stop_tokens, limit, sequence.index)

    def add(self, token: Token) -> Delta:
        self._tokens.append(token)
        return next(self._deltas)


class Loop:
    """A model that answers many requests at once. Everything happens in the thread that calls."""

    def __init__(
        self,
        model: Qwen3,
        tokenizer: Tokenizer,
        config: ServingConfig | None = None,
        emit: Callable[[Event], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        clear_streams_at_end()
        self.model, self.tokenizer, self.clock = model, tokenizer, clock
        self.config = config or ServingConfig()
        limits = self.config.scheduler
        self.max_context = model.config.context(limits.max_context)
        configured = replace(limits, max_context=self.max_context)
        self.pool = self._new_pool()
        blocks = BlockPool(self.pool.num_blocks, self.pool.block_size)
        tree = RadixTree(blocks, self._files()) if self.config.prefix_cache else None
        vocab_size = model.config.vocab_size
        self.scheduler = Scheduler(configured, blocks, tree, emit and Guarded(emit))
        self.runner = Runner(model, self.pool, Draw(Grammars(tokenizer, vocab_size), vocab_size))
        self._answers: dict[SequenceId, Answer] = {}
        self._left: Counter[str] = Counter()  # answers of each request that have not ended
        self._beams = Beams(self.scheduler)
        self._running: Running | None = None
        self._recovery = Recovery(self.scheduler, self.runner, self.pool)

    @property
    def has_work(self) -> bool:
        return bool(self._answers or self._beams)

    def check(self, request: Request) -> None:
        """Raise ValueError, with the numbers, for a request that can never run. Any thread may call it."""
        vocab_size = self.model.config.vocab_size
        check_prompt(request.tokens, self.max_context, vocab_size)
        check_token_ids(request.params, vocab_size)
        check_request(request, self.scheduler.configured, self.scheduler.blocks)
        self.runner.draw.forms.check(request)

    def add(self, request: Request) -> None:
        """Take in a request. Raises ValueError as `check` does, and for an id that is under way already."""
        self.check(request)
        if request.params.seed is None:
            request = replace(request, params=replace(request.params, seed=secrets.randbits(64)))
        sequences = self.scheduler.add(request, self.clock())
        if request.searches:
            self._beams.add(request)
            return
        for sequence in sequences:
            self._answers[sequence.id] = Answer(sequence, self.tokenizer)
        self._left[request.id] = len(sequences)

    def cancel(self, request_id: str) -> bool:
        """Forget a request in whatever state it is; whether there was one."""
        self._forget(request_id)
        return self.scheduler.cancel(request_id, self.clock())

    def step(self) -> list[Output]:
        """Finish the step under way and start the next; what the finished one gave, failures included."""
        running, self._running = self._running, None
        results: list[Result] = []
        outputs: list[Output] = []
        if running is not None:
            try:
                self._prepare(running)
                results = self.runner.read(running)
            except Exception as error:
                outputs += self._after_failure(running.step, error)
                running = None
            else:
                outputs += self._finish(running.step, results)
        outputs += self._start()
        if running is not None:
            for share, result in zip(running.step.shares, results, strict=True):
                outputs += self._texts(share.sequence, result)
        return outputs

    def _prepare(self, running: Running) -> None:
        """Build what will probably be the next step, while the device works."""
        if self.config.disk_folder and self.scheduler.waiting:
            return  # admission may load blocks from disk: a write, and a prepared step would turn it into a copy
        guess = foresee(self.scheduler, running.step)
        if guess is not None:
            self.runner.prepare(guess, running)

    def _finish(self, step: Step, results: list[Result]) -> list[Output]:
        """Take in what a step computed; returns the answers of ended searches, and the requests found at fault."""
        outputs, now = list[Output](), self.clock()
        self.scheduler.finish(step, results, now)
        faults = self.runner.draw.take_faults()
        for share, result in zip(step.shares, results, strict=True):
            if result.row is not None and not all_finite(result.row):
                faults.append(Fault(share.sequence.request, ArithmeticError(NOT_FINITE)))
        for request_id, fault in faults:
            outputs += self._fail(request_id, fault)
        for sequence, search in self._beams.advance(step, results, now):
            *first, last = texts_of(sequence, search, self.tokenizer)
            name, cached = sequence.request.id, sequence.cached
            outputs += [Output(name, delta, cached_tokens=cached) for delta in first]
            outputs.append(Output(name, last, cached_tokens=cached, ended=True))
        self._recovery.after_success()
        return outputs

    def _start(self) -> list[Output]:
        """Plan the next step and set it going."""
        if not self.scheduler.has_work:
            self.runner.release(self.scheduler.sequences.take_ended())
            return []
        step = self.scheduler.schedule(self.clock())
        if not step.shares:  # nothing fits under the limits lowered after a failure: restore them
            self.runner.release(step.ended)
            self.scheduler.config = self.scheduler.configured
            return []
        try:
            self._running = self.runner.launch(step)
        except Exception as error:
            return self._after_failure(step, error)
        return []

    def _texts(self, sequence: SequenceId, result: Result) -> list[Output]:
        """The text of a result's tokens; whatever goes wrong here goes wrong for its request alone."""
        outputs: list[Output] = []
        for token, logprobs in zip(result.tokens, result.logprobs, strict=True):
            if sequence not in self._answers:
                break  # cancelled, failed, or ended by a stop string while this step ran
            try:
                delta = self._answers[sequence].add(Token(token, logprobs))
            except Exception as error:
                return outputs + self._fail(sequence.request, error)
            outputs.append(self._output(sequence, delta))
        return outputs

    def _output(self, name: SequenceId, delta: Delta) -> Output:
        """A piece of an answer, which may be its last, and the last of its request."""
        sequence = self._answers[name].sequence
        if delta.finish_reason is not None:
            del self._answers[name]
            self._left[name.request] -= 1
            self.scheduler.stop(sequence, delta.finish_reason, self.clock())
        ended = not self._left[name.request]
        if ended:
            del self._left[name.request]
        return Output(name.request, delta, cached_tokens=sequence.cached, ended=ended)

    def _fail(self, request_id: str, error: Exception) -> list[Output]:
        """End a request with an error; nothing where it has ended already."""
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
        given_up = self._recovery.after_failure(step, error, self.clock())
        return [] if given_up is None else self._fail(given_up, error)

    def _files(self) -> BlockFiles | None:
        """Where the prefix tree's blocks go that the pool has no room for."""
        if self.config.disk_folder is None:
            return None
        name = fingerprint(self.model.config, self.model.weights)
        try:
            return BlockFiles(Path(self.config.disk_folder), self.config.disk_bytes, self.pool, name)
        except OSError as error:
            raise ValueError(f"disk_folder: {error}; name a folder that can be made, read and written") from error

    def close(self) -> None:
        """Keep for later runs what the prefix tree knows, if it has a folder for that."""
        if self.scheduler.ledger.tree:
            self.scheduler.ledger.tree.save()

    def _new_pool(self) -> PagedPool:
        config, size, bits = self.model.config, self.config.block_size, self.config.kv_bits
        dtype = self.model.weights["norm"]["weight"].dtype
        budget = self.config.kv_bytes
        if budget is None:
            context = -(-min(self.max_context, USUAL_CONTEXT) // size)
            budget = self.config.scheduler.max_sequences * context * block_nbytes(config, size, dtype, bits)
            free = available_bytes()
            budget = budget if free is None else min(budget, free // 4)
        shape = num_blocks_for(config, budget, size, dtype, bits), size, dtype
        return PackedPool(config, self.model.ops, *shape, bits) if bits else PagedPool(config, self.model.ops, *shape)

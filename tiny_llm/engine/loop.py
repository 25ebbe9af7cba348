"""The serving engine without threads: requests in, steps run, text out.

A call of `step` waits for the step under way, plans and starts the next one, and makes text of the last one's tokens
while the device works. While it waits it builds the step that will probably be next. What a request gets does not
depend on who runs beside it: each token's random numbers are a function of the request's seed, the number of its
sample and the token's place alone.
"""

import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx

from tiny_llm.cache.block_files import BlockFiles
from tiny_llm.cache.packed import PackedPool
from tiny_llm.cache.paged import PagedPool, block_nbytes, num_blocks_for
from tiny_llm.config.serving import ServingConfig
from tiny_llm.decode.beam import Logprobs
from tiny_llm.decode.generate import Delta, Token, check_prompt, deltas_of
from tiny_llm.decode.structured import Grammars
from tiny_llm.engine.ahead import foresee
from tiny_llm.engine.beams import Beams, texts_of
from tiny_llm.engine.blocks import BlockPool
from tiny_llm.engine.events import Event
from tiny_llm.engine.lifecycle import Entry, Step
from tiny_llm.engine.radix import RadixTree
from tiny_llm.engine.request import Request, Sequence, State
from tiny_llm.engine.runner import Runner, Running
from tiny_llm.engine.scheduler import Scheduler
from tiny_llm.model.fingerprint import fingerprint
from tiny_llm.model.memory import available_bytes
from tiny_llm.model.qwen3 import Qwen3
from tiny_llm.model.tokenizer import Tokenizer

USUAL_CONTEXT = 4096  # tokens of a sequence that the default pool has room for
GOOD_STEPS = 16  # after a failure: steps until the batch may double


@dataclass(frozen=True)
class Output:
    """What a step gave a request: a piece of one of its answers, or why it failed (nothing more comes then)."""

    request_id: str
    delta: Delta | None = None
    error: Exception | None = None
    cached_tokens: int = 0


class Answer:
    """A sequence's tokens as text."""

    def __init__(self, sequence: Sequence, tokenizer: Tokenizer):
        self.sequence, self._tokens = sequence, deque[Token]()
        params, stops = sequence.request.params, sequence.request.stop_tokens
        tokens = iter(self._tokens.popleft, None)
        self._deltas = deltas_of(tokens, tokenizer, params.stop, stops, params.max_tokens, sequence.index)

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
        self.model, self.tokenizer, self.clock = model, tokenizer, clock
        self.config = config or ServingConfig()
        limits = self.config.scheduler
        self.max_context = model.config.context(limits.max_context)
        self.limits = replace(limits, max_context=self.max_context)
        self.pool = self._new_pool()
        blocks = BlockPool(self.pool.num_blocks, self.pool.block_size)
        tree = RadixTree(blocks, self._files()) if self.config.prefix_cache else None
        self.scheduler = Scheduler(self.limits, blocks, tree, emit)
        self.runner = Runner(model, self.pool, Grammars(tokenizer, model.config.vocab_size))
        self._answers: dict[tuple[str, int], Answer] = {}
        self._beams = Beams(self.scheduler)
        self._running: Running | None = None
        self._good = 0

    @property
    def has_work(self) -> bool:
        return bool(self._answers or self._beams)

    def add(self, request: Request) -> None:
        """Take in a request. Raises ValueError, with the numbers, for what can never run."""
        check_prompt(request.tokens, self.max_context, self.model.config.vocab_size)
        if request.params.structured is not None:
            self.runner.grammars.matcher(request.params.structured)
        if request.params.seed is None:
            request = replace(request, params=replace(request.params, seed=secrets.randbits(64)))
        sequences = self.scheduler.add(request, self.clock())
        if request.searches:
            self._beams.add(request)
            return
        for sequence in sequences:
            self._answers[request.id, sequence.index] = Answer(sequence, self.tokenizer)

    def cancel(self, request_id: str) -> bool:
        """Forget a request in whatever state it is; whether there was one."""
        self._forget(request_id)
        return self.scheduler.cancel(request_id, self.clock())

    def step(self) -> list[Output]:
        """Finish the step under way and start the next; what the finished one gave, failures included."""
        running, self._running = self._running, None
        tokens: list[Token | None] = []
        outputs: list[Output] = []
        if running is not None:
            try:
                self._prepare(running)
                tokens, rows = self.runner.read(running), running.rows()
            except Exception as error:
                outputs += self._after_failure(running.step, error)
                running = None
            else:
                outputs += self._finish(running.step, tokens, rows)
        outputs += self._start()
        if running is not None:
            for entry, token in zip(running.step.entries, tokens, strict=True):
                if token is not None:
                    outputs += self._texts(entry, token)
        return outputs

    def _prepare(self, running: Running) -> None:
        """Build what will probably be the next step, while the device works."""
        if self.config.disk_folder and self.scheduler.waiting:
            return  # who comes in may bring blocks from the disk, written in place only while nothing is prepared
        plan = foresee(self.scheduler, running.step)
        if plan:
            self.runner.prepare(plan, running)

    def _finish(self, step: Step, tokens: list[Token | None], rows: dict[int, Logprobs]) -> list[Output]:
        """Take in what a step computed; the searches that ended, and the requests found at fault."""
        outputs, now = list[Output](), self.clock()
        self.scheduler.finish(step, [None if token is None else token.id for token in tokens], now)
        for sequence, search in self._beams.advance(step, rows, now):
            for delta in texts_of(sequence, search, self.tokenizer):
                outputs.append(Output(sequence.request.id, delta, cached_tokens=sequence.cached))
        self._grow()
        faults, self.runner.faults = self.runner.faults, []
        for request_id, fault in faults:
            outputs += self._fail(request_id, fault)
        return outputs

    def _start(self) -> list[Output]:
        """Plan the next step and set it going."""
        if not self.scheduler.has_work:
            return []
        step = self.scheduler.schedule(self.clock())
        if not step.entries:  # a request needs more than the batch has shrunk to, and nobody runs beside it
            self.scheduler.config = self.limits
            return []
        try:
            self._running = self.runner.launch(step)
        except Exception as error:
            return self._after_failure(step, error)
        return []

    def _texts(self, entry: Entry, token: Token) -> list[Output]:
        """A token's text; whatever goes wrong here goes wrong for its request alone."""
        sequence = entry.sequence
        key = sequence.request.id, sequence.index
        if key not in self._answers:
            return []  # cancelled, failed, or ended by a stop string while this step ran
        try:
            delta = self._answers[key].add(token)
        except Exception as error:
            return self._fail(sequence.request.id, error)
        if delta.finish_reason is not None:
            del self._answers[key]
            self.scheduler.stop(sequence, delta.finish_reason, self.clock())
        return [Output(key[0], delta, cached_tokens=sequence.cached)]

    def _fail(self, request_id: str, error: Exception) -> list[Output]:
        self._forget(request_id)
        for sequence in list(self.scheduler.requests.get(request_id, [])):
            self.scheduler.stop(sequence, "error", self.clock())
        return [Output(request_id, error=error)]

    def _forget(self, request_id: str) -> None:
        self._beams.forget(request_id)
        for key in [key for key in self._answers if key[0] == request_id]:
            del self._answers[key]

    def _after_failure(self, step: Step, error: Exception) -> list[Output]:
        """Go on with half of the batch; a request that fails alone, and can't be cut smaller, is given up."""
        alive = [entry for entry in step.entries if entry.sequence.state is State.RUNNING]
        self._recover(step)
        small = len(alive) == 1 and (alive[0].length == 1 or not out_of_memory(error))
        beams = len(alive) > 1 and alive[0].sequence.request.searches  # they can't go on without each other
        if small or (beams and len({entry.sequence.request.id for entry in alive}) == 1):
            return self._fail(alive[0].sequence.request.id, error)
        half = self.scheduler.config
        fewer = max(1, min(half.max_sequences, len(alive)) // 2)
        budget = max(fewer, min(half.token_budget, step.num_tokens) // 2)
        self.scheduler.config = replace(half, max_sequences=fewer, token_budget=budget)
        self._good = 0
        return []

    def _recover(self, step: Step) -> None:
        """Put scheduler and pool in order after a step that ended half-way."""
        self.runner.reset()
        now = self.clock()
        try:
            mx.eval(self.pool.state)
        except Exception:  # the writes themselves can't be done: everything is computed again
            self.pool.clear()
            running = [Entry(sequence, 0, 0, False) for sequence in self.scheduler.running]
            step = Step(step.number, running, [(0, block) for block in range(self.pool.num_blocks)])
        self.scheduler.abandon(step, now)
        if self.scheduler.tree and not self.scheduler.running:
            self.scheduler.tree.forget()

    def _grow(self) -> None:
        """Back towards the limits, GOOD_STEPS after GOOD_STEPS."""
        self._good += 1
        config = self.scheduler.config
        if config != self.limits and self._good % GOOD_STEPS == 0:
            fewer = min(self.limits.max_sequences, 2 * config.max_sequences)
            budget = max(fewer, min(self.limits.token_budget, 2 * config.token_budget))
            self.scheduler.config = replace(config, max_sequences=fewer, token_budget=budget)

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
        if self.scheduler.tree:
            self.scheduler.tree.save()

    def _new_pool(self) -> PagedPool:
        config, size, bits = self.model.config, self.config.block_size, self.config.kv_bits
        dtype = self.model.weights["norm"]["weight"].dtype
        budget = self.config.kv_bytes
        if budget is None:
            context = -(-min(self.max_context, USUAL_CONTEXT) // size)
            budget = self.limits.max_sequences * context * block_nbytes(config, size, dtype, bits)
            free = available_bytes()
            budget = budget if free is None else min(budget, free // 4)
        shape = num_blocks_for(config, budget, size, dtype, bits), size, dtype
        return PackedPool(config, self.model.ops, *shape, bits) if bits else PagedPool(config, self.model.ops, *shape)


def out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "alloc" in str(error).lower())

"""A small random model that answers through the whole engine, with and without guesses."""

import functools
import tempfile
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import mlx.core as mx

from tests.support import make_model
from tiny_llm import LLM, SamplingParams, load
from tiny_llm.config import EngineConfig, SchedulerConfig
from tiny_llm.config.serving import ServingConfig
from tiny_llm.config.speculation import SpeculationConfig
from tiny_llm.decode.acceptance import DraftTree
from tiny_llm.engine.loop import Loop
from tiny_llm.engine.request import Request, SequenceId
from tiny_llm.engine.request import Sequence as Running
from tiny_llm.engine.speculation import Speculation, SpeculationCounts

GREEDY = SamplingParams(temperature=0.0, max_tokens=14, ignore_eos=True)
SAMPLED = SamplingParams(temperature=1.0, max_tokens=14, ignore_eos=True, seed=7)
Answers = dict[SequenceId, list[int]]


@functools.cache
def llm() -> LLM:
    with tempfile.TemporaryDirectory() as folder:
        return load(make_model(Path(folder)), config=EngineConfig(kernels="mlx"))


@functools.cache
def near() -> LLM:
    """A draft model that is often right: the model with changed weights."""
    with tempfile.TemporaryDirectory() as folder:
        found = load(make_model(Path(folder)), config=EngineConfig(kernels="mlx"))
    for number, layer in enumerate(found.model.weights["layers"]):
        old = layer["down_proj"]["weight"]
        noise = mx.random.normal(old.shape, key=mx.random.key(number))
        layer["down_proj"]["weight"] = old + 0.15 * mx.abs(old).mean() * noise
    return found


def requests() -> list[Request]:
    """A greedy and a sampled one side by side, and one whose prompt repeats itself."""
    rng = Random(3)
    once = tuple(rng.randrange(300) for _ in range(18))
    return [Request("greedy", once, GREEDY), Request("sampled", once, SAMPLED), Request("again", once[:6] * 3, GREEDY)]


def new_loop() -> Loop:
    slot = 2 * llm().config.num_hidden_layers * llm().config.num_key_value_heads * llm().config.head_dim * 4
    serving = ServingConfig(100 * 4 * slot, 4, scheduler=SchedulerConfig(token_budget=40, max_sequences=8))
    return Loop(llm().model, llm().tokenizer, serving, engine=EngineConfig(kernels="mlx"))


def answered(loop: Loop, drafter: Any = None, most: int = 4) -> tuple[Answers, SpeculationCounts]:
    """The tokens of each request, and what was counted. A drafter that raises is not switched off but seen."""
    counts = SpeculationCounts()
    if drafter is not None:
        loop.speculation = Speculation(SpeculationConfig("suffix", most), drafter, counts)
    found: Answers = {}
    for one in requests():
        loop.add(one)
    for _ in range(100):
        if not loop.has_work:
            break
        for output in loop.step():
            if output.error:
                raise output.error
            found.setdefault(SequenceId(output.request_id, output.delta.index), []).append(output.delta.token)
        if loop.speculation is not None and loop.speculation.fault is not None:
            raise loop.speculation.fault
    return found, counts


@functools.cache
def plain() -> Answers:
    return answered(new_loop())[0]


class Scripted:
    """Guesses what a function of a sequence and its limit says."""

    def __init__(self, guess: Callable[[Running, int], DraftTree]):
        self.guess = guess

    def propose(self, sequences: Sequence[Running], limits: Sequence[int]) -> list[DraftTree]:
        return [self.guess(sequence, limit) for sequence, limit in zip(sequences, limits, strict=True)]

    def forget(self, ended: Sequence[SequenceId]) -> None:
        pass


def following(sequence: Running, limit: int) -> list[int]:
    """The tokens that will follow."""
    begin = len(sequence.output)
    return plain()[sequence.id][begin : begin + limit]


def half_right(sequence: Running, limit: int) -> DraftTree:
    """A tree: what will follow, for some tokens, among other guesses at every level."""
    rng = Random(len(sequence.tokens))
    line = following(sequence, rng.randint(0, limit - 1))
    lines = [[*line[:at], rng.randrange(300)] for at in range(len(line) + 1)]
    lines.insert(rng.randint(0, len(lines)), line)
    return DraftTree.merged(lines)


@contextmanager
def in_place(module: Any, name: str, value: Any) -> Any:
    """Within it the engine's module has the function under test."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)

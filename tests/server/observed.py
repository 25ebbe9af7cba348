"""A small random model that answers a few requests, for the tests of metrics, traces and dashboards."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tiny_llm import SamplingParams
from tiny_llm.config import EngineConfig, SchedulerConfig
from tiny_llm.config.serving import ServingConfig
from tiny_llm.config.speculation import SpeculationConfig
from tiny_llm.engine.events import Event
from tiny_llm.engine.serving import Engine
from tiny_llm.server.metrics import ModelMetrics

GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
SERVING = ServingConfig(kv_bytes=2**20, block_size=8, scheduler=SchedulerConfig(token_budget=64, max_sequences=8))
REPEATING = [5, 6, 7, 8] * 6


def new_engine(path: Path, emit: Callable[[Event], None], speculate: bool = False) -> Engine:
    speculation = SpeculationConfig("suffix", 4, adaptive=False) if speculate else SpeculationConfig()
    config = EngineConfig(kernels="mlx", speculation=speculation)
    return Engine(path, config=config, serving=SERVING, emit=emit)


def serve_some(path: Path, model: ModelMetrics, events: list[Event]) -> list[str]:
    """Answer five requests: two with the same prompt, one with two answers, one cancelled, one beam search.

    Returns the ids of the requests. The two with the same prompt come first.
    """

    def emit(event: Event) -> None:
        events.append(event)
        model.event(event)

    names = []
    with new_engine(path, emit, speculate=True) as engine:
        for params in (GREEDY, GREEDY, replace(GREEDY, n=2, temperature=1.0, seed=1)):
            stream = engine.stream(REPEATING, params)
            assert sum(1 for _ in stream) == 12 * params.n
            model.finished(stream.stats)
            names.append(stream.request_id)
        stream = engine.stream([3] * 20, replace(GREEDY, max_tokens=400))
        next(stream)
        stream.close()
        model.finished(stream.stats)
        names.append(stream.request_id)
        stream = engine.stream([4] * 20, replace(GREEDY, beam_width=3, max_tokens=4))
        assert list(stream)
        model.finished(stream.stats)
        names.append(stream.request_id)
    return names

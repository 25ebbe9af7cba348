"""Measure the time of a step by its number of tokens, when an engine starts."""

import time

import mlx.core as mx

from tiny_llm.cache.contiguous import ContiguousCache
from tiny_llm.config import SchedulerConfig
from tiny_llm.engine.controller import Pace, Profile, grid
from tiny_llm.model.qwen3 import Qwen3

LONGEST = 0.25  # seconds of a step; beyond, a straight line goes on
TRIES = 3


def measured_profile(model: Qwen3, most: int) -> Profile:
    """Time steps of 1, 2, 4, … up to `most` tokens, each a few times on an empty cache, and keep the best times."""
    points: dict[int, float] = {}
    for size in grid(min(most, model.config.max_position_embeddings)):
        times = [_seconds(model, size) for _ in range(TRIES)]
        points[size] = min(times)
        if points[size] > LONGEST:
            break
    return Profile(points)


def new_pace(model: Qwen3, config: SchedulerConfig) -> Pace | None:
    """Measure the machine for a scheduler that keeps steps to a time; None where its settings name no time."""
    if config.step_seconds is None:
        return None
    profile = measured_profile(model, config.token_budget)
    return Pace(profile, config.step_seconds, config.max_sequences, config.token_budget)


def _seconds(model: Qwen3, size: int) -> float:
    cache = ContiguousCache(model.config, model.ops)
    begin = time.perf_counter()
    mx.eval(model(mx.zeros((size,), mx.int32), cache))
    return time.perf_counter() - begin

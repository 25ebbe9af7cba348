"""Everything that is set before a model runs: its shape, the engine's options, a request's sampling.

All classes are frozen; each checks itself when it is made and refuses what it does not know.
"""

from tiny_llm.config.engine import EngineConfig
from tiny_llm.config.model import ModelConfig, QuantizationConfig, context_within
from tiny_llm.config.rope import RopeConfig
from tiny_llm.config.sampling import SamplingParams
from tiny_llm.config.scheduler import SchedulerConfig
from tiny_llm.config.structured import Structured

__all__ = [
    "EngineConfig",
    "ModelConfig",
    "QuantizationConfig",
    "RopeConfig",
    "SamplingParams",
    "SchedulerConfig",
    "Structured",
    "context_within",
]

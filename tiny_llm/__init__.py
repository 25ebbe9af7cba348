"""tiny-llm: an LLM inference engine on MLX, small enough to read and fast enough to use.

from tiny_llm import SamplingParams, load

llm = load("qwen3-0.6b")
print(llm.generate("What is a KV cache?", SamplingParams(max_tokens=100)).text)
"""

from tiny_llm import _start

if _start.is_program():
    _start.end_quietly()

from typing import TYPE_CHECKING, Any

from tiny_llm import _blas

_blas.activate()  # a faster BLAS counts only if it is in the process before mlx

if TYPE_CHECKING:
    from tiny_llm.config import SamplingParams
    from tiny_llm.engine.llm import LLM, load

__all__ = ["LLM", "SamplingParams", "load"]


def __getattr__(name: str) -> Any:
    """Import on first use, so that `tiny-llm --help` need not wait for mlx."""
    if name in ("LLM", "load"):
        from tiny_llm.engine import llm

        return getattr(llm, name)
    if name == "SamplingParams":
        from tiny_llm.config import SamplingParams

        return SamplingParams
    raise AttributeError(f"module 'tiny_llm' has no attribute {name!r}")

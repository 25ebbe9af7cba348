"""Answer requests by the loop of week 1, `decode.generate`, so that a learner's own loop runs the chat."""

from collections.abc import Iterator, Sequence

from tiny_llm.cache.choose import new_cache
from tiny_llm.cache.contiguous import ContiguousCache
from tiny_llm.config import EngineConfig
from tiny_llm.decode import generate
from tiny_llm.engine.kept import common_prefix
from tiny_llm.engine.loop import Output
from tiny_llm.engine.request import Request
from tiny_llm.model.qwen3 import Qwen3
from tiny_llm.model.tokenizer import Tokenizer


class Lesson:
    """Runs one sequence at a time in one cache, and keeps the cache for the next request."""

    def __init__(self, model: Qwen3, tokenizer: Tokenizer, config: EngineConfig):
        self.model, self.tokenizer, self.config = model, tokenizer, config
        self.forget()

    def can_answer(self, request: Request) -> bool:
        """Return whether the loop of week 1 can run a request: it has neither beam search nor grammars."""
        return not request.searches and request.params.structured is None

    def outputs(self, request: Request) -> Iterator[Output]:
        """Yield a request's answers, one after the other."""
        cached = self._reuse(request.tokens)
        deltas = generate.stream(
            self.model,
            self.tokenizer,
            request.tokens,
            request.params,
            self.cache,
            in_thought=request.in_thought,
            prefill_chunk=self.config.prefill_chunk,
            max_context=self.config.max_context,
        )
        left = request.params.n
        try:
            for delta in deltas:
                left -= delta.finish_reason is not None
                if delta.index == request.params.n - 1 and delta.token is not None:
                    self.tokens.append(delta.token)
                yield Output(request.id, delta, cached_tokens=cached, ended=not left)
        except GeneratorExit:
            raise  # the caller stopped between two steps, when the cache is complete
        except BaseException:
            self.forget()
            raise

    def kept(self) -> tuple[ContiguousCache, list[int]]:
        """Return the cache, and the tokens in it."""
        return self.cache, self.tokens[: self.cache.offset]

    def take_in(self, tokens: Sequence[int], cache: ContiguousCache) -> None:
        """Go on from a cache that was filled elsewhere, with these tokens."""
        self.cache, self.tokens = cache, list(tokens)

    def forget(self) -> None:
        """Drop what the cache holds."""
        self.take_in([], new_cache(self.model.config, self.model.ops, self.config))

    def _reuse(self, tokens: tuple[int, ...]) -> int:
        """Trim the cache to its common prefix with the prompt, without the prompt's last token; return its length."""
        common = common_prefix(tokens, self.tokens, min(len(tokens) - 1, self.cache.offset))
        if self.cache.offset - common > self.cache.trimmable:
            common = 0  # the window has already overwritten the tokens before
        self.cache.trim(self.cache.offset - common)
        self.tokens = list(tokens)
        return common

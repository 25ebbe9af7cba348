"""Generate text from a prompt: fill the cache, then compute one token a step.

prefill          prompt → cache, logits of the last token
generate_tokens  logits → token → logits → …; the next step is built before the last token is read
stream           tokens → text, with stop tokens, stop strings and finish reasons
"""

from collections.abc import Collection, Iterator, Sequence
from typing import cast

import mlx.core as mx

from tiny_llm.cache.base import KVCache
from tiny_llm.cache.recompute import RecomputeCache
from tiny_llm.config import SamplingParams
from tiny_llm.config.sampling import check_token_ids
from tiny_llm.course import NotDone
from tiny_llm.decode.sampler import Sampled, Sampler
from tiny_llm.decode.text import NOT_FINITE, Delta, Token, TokenLogprobs, Writer, check_prompt, stop_tokens
from tiny_llm.decode.thinking_budget import BudgetedSampler, ThinkingBudget, end_of_thought
from tiny_llm.model.qwen3 import Qwen3
from tiny_llm.model.tokenizer import Tokenizer

LAST = slice(-1, None)


def generate_naive(model: Qwen3, prompt: Sequence[int], num_tokens: int) -> list[int]:
    """Decode greedily by running the whole text again for each token. Tests compare every faster way with this one."""
    # YOUR CODE (w1.6.1): the whole text again for each token
    raise NotDone("w1.6.1")


def prefill(model: Qwen3, prompt: Sequence[int], cache: KVCache, chunk: int = 2048) -> mx.array:
    """Compute the part of the prompt that the cache does not hold yet, `chunk` tokens a step.

    Returns the logits after the last token, (1, V), not evaluated yet.
    """
    # YOUR CODE (w1.6.2): fill the cache, chunk by chunk
    raise NotDone("w1.6.2")


def generate_tokens(
    model: Qwen3,
    logits: mx.array,
    cache: KVCache,
    sampler: Sampler,
    position: int,
    limit: int,
    stops: Collection[int] = (),
) -> Iterator[Token]:
    """Sample a token from logits (1, V), run the model on it, and repeat, for `limit` tokens or until one in `stops`.

    `position` is the first sampled token's place in the sequence. The next step is built before this step's token is
    read; after `limit` tokens no step is built.
    """
    # YOUR CODE (w1.6.3): sample, feed back, sample again
    raise NotDone("w1.6.3")


def _runs_ahead() -> bool:
    """Return whether a step starts before the last step's token is read.

    On a GPU it does. On a CPU a step starts when the last step has finished: only then does the cache alone reference
    its buffers, so that MLX writes them in place instead of copying them (see bench/decode.py).
    """
    return mx.default_device() == mx.gpu


def _start(sampled: Sampled) -> None:
    mx.async_eval(*(array for array in sampled if array is not None))  # type: ignore[no-untyped-call]


def _read(sampled: Sampled) -> Token:
    """Wait for a step and read its token. Raises ArithmeticError where the logits were not finite."""
    if not sampled.finite.item():
        raise ArithmeticError(NOT_FINITE)
    token = cast(int, sampled.tokens.item())
    if sampled.logprobs is None:
        return Token(token)
    top: tuple[tuple[int, float], ...] = ()
    if sampled.top_tokens is not None and sampled.top_logprobs is not None:
        ids = cast(list[int], sampled.top_tokens[0].tolist())
        top = tuple(zip(ids, cast(list[float], sampled.top_logprobs[0].tolist()), strict=True))
    return Token(token, TokenLogprobs(cast(float, sampled.logprobs.item()), top))


def stream(
    model: Qwen3,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    params: SamplingParams,
    cache: KVCache,
    *,
    in_thought: bool = False,
    prefill_chunk: int = 2048,
    max_context: int | None = None,
) -> Iterator[Delta]:
    """Yield the answer piece by piece; with n > 1 one answer after the other, all from the same prefill.

    `cache` may hold a prefix of the prompt already. `in_thought`: the prompt ends inside a thought, in which stop
    strings do not count. `prefill_chunk`: tokens of the prompt per step. `max_context`: the most tokens of a sequence,
    None for the model's maximum. Raises ValueError for an empty prompt, a prompt that leaves no room for a token, and
    ids outside the vocabulary.
    """
    context = model.config.context(max_context)
    check_prompt(prompt, context, model.config.vocab_size)
    check_token_ids(params, model.config.vocab_size)
    limit = min(params.max_tokens, context - len(prompt))
    logits = prefill(model, prompt, cache, prefill_chunk)
    stops = stop_tokens(tokenizer, params)
    for index in range(params.n):
        branch = cache if index == params.n - 1 else cache.fork()
        sampler = Sampler([params], model.config.vocab_size, [prompt], samples=[index])
        if params.thinking_budget is not None:
            budget = ThinkingBudget(tokenizer, params.thinking_budget, end_of_thought(tokenizer), in_thought)
            sampler = cast(Sampler, BudgetedSampler(sampler, budget))
        tokens = generate_tokens(model, logits, branch, sampler, len(prompt), limit, stops)
        writer = Writer(tokenizer, params.stop, stops, limit, index, in_thought, not params.skip_special_tokens)
        yield from writer.write(tokens)

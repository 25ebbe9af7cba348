"""Generation without running ahead."""

import mlx.core as mx

from tiny_llm.cache.recompute import RecomputeCache
from tiny_llm.decode.generate import LAST, _read


def generate_naive(model, prompt, num_tokens):
    answer = []
    while len(answer) < num_tokens:
        tokens = mx.array([*prompt, *answer])
        logits = model(tokens, RecomputeCache(model.config, model.ops), LAST)
        answer.append(int(logits.argmax()))
    return answer


def prefill(model, prompt, cache, chunk=2048):
    logits = None
    for begin in range(cache.offset, len(prompt), chunk):
        logits = model(mx.array(prompt[begin : begin + chunk]), cache, LAST)
        mx.eval(logits, cache.state)
    return logits


def generate_tokens(model, logits, cache, sampler, position, limit, stops=()):
    for count in range(limit):
        sampled = sampler(logits, [position + count])
        token = _read(sampled)
        yield token
        if token.id in stops or count == limit - 1:
            return
        logits = model(sampled.tokens, cache)

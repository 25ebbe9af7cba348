"""Generation with explicit lists of what is left."""

import mlx.core as mx

from tiny_llm.cache.recompute import RecomputeCache
from tiny_llm.decode.generate import LAST, _read


def generate_naive(model, prompt, num_tokens):
    tokens = mx.array(prompt)
    for _ in range(num_tokens):
        logits = model(tokens, RecomputeCache(model.config, model.ops))
        tokens = mx.concatenate([tokens, mx.argmax(logits, axis=-1)[-1:].astype(tokens.dtype)])
    return tokens[len(prompt) :].tolist()


def prefill(model, prompt, cache, chunk=2048):
    left = list(prompt)[cache.offset :]
    while len(left) > chunk:
        step, left = left[:chunk], left[chunk:]
        model(mx.array(step), cache)
    return model(mx.array(left), cache)[LAST]


def generate_tokens(model, logits, cache, sampler, position, limit, stops=()):
    given = 0
    while given < limit:
        choice = sampler(logits, [position])
        token, given, position = _read(choice), given + 1, position + 1
        yield token
        if token.id in stops:
            break
        if given < limit:
            logits = model(mx.array([token.id]), cache)

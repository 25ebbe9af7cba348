"""Mixture of experts, by products with one-hot matrices."""

import mlx.core as mx

from tiny_llm.model.moe import Routing, mlp_of_rows


def route(logits, config, bias=None):
    wide = logits.astype(mx.float32)
    p = mx.exp(wide - mx.logsumexp(wide, axis=1, keepdims=True))
    count = p.shape[1] - config.experts_per_token
    scores = p if bias is None else p + bias
    experts = mx.argpartition(scores, count, axis=1)[:, count:] if count else mx.argsort(scores, axis=1)
    one_hot = (experts[..., None] == mx.arange(p.shape[1])).astype(mx.float32)
    shares = mx.einsum("tke,te->tk", one_hot, p)
    total = mx.einsum("tk->t", shares)[:, None]
    return Routing(experts, shares / total if config.normalize else shares)


def sorted_experts(x, routing, w, ops):
    num_tokens, per_token = routing.experts.shape
    experts = routing.experts.T.reshape(num_tokens * per_token)  # all first choices, then all second ones
    order = mx.argsort(experts)
    rows = mx.take(x, order % num_tokens, axis=0)
    y = mlp_of_rows(rows, mx.take(experts, order), w, ops, True)
    back = mx.zeros(order.shape, mx.uint32)
    back[order] = mx.arange(order.size, dtype=mx.uint32)
    y = mx.take(y, back, axis=0).reshape(per_token, num_tokens, x.shape[1])
    return mx.einsum("ktd,tk->td", y, routing.shares.astype(y.dtype))


def balance_loss(logits, experts):
    num_tokens, num_experts = logits.shape
    p = mx.exp(logits - mx.logsumexp(logits, axis=1, keepdims=True))
    one_hot = mx.eye(num_experts)[experts]
    return mx.einsum("tke,se->", one_hot, p) * num_experts / (num_tokens * experts.size)

"""Mixture of experts, expert by expert and token by token."""

import mlx.core as mx

from tiny_llm.model.moe import Routing, expert_of, mlp


def route(logits, config, bias=None):
    experts, shares = [], []
    for row in logits.astype(mx.float32):
        e = mx.exp(row - row.max())
        p = (e / e.sum()).tolist()
        scores = [value + (0.0 if bias is None else bias[i].item()) for i, value in enumerate(p)]
        left, chosen = set(range(len(p))), []
        while len(chosen) < config.experts_per_token:
            chosen.append(max(left, key=lambda i: scores[i]))
            left.remove(chosen[-1])
        total = sum(p[i] for i in chosen) if config.normalize else 1.0
        experts.append(chosen)
        shares.append([p[i] / total for i in chosen])
    return Routing(mx.array(experts, mx.uint32), mx.array(shares))


def sorted_experts(x, routing, w, ops):
    choices = [(e, t, k) for t, row in enumerate(routing.experts.tolist()) for k, e in enumerate(row)]
    out = mx.zeros(x.shape, x.dtype)
    for expert in sorted({e for e, _, _ in choices}):
        tokens = mx.array([t for e, t, _ in choices if e == expert])
        places = mx.array([k for e, _, k in choices if e == expert])
        y = mlp(x[tokens], expert_of(w, expert), ops)
        out = out.at[tokens].add(y * routing.shares[tokens, places][:, None].astype(x.dtype))
    return out


def balance_loss(logits, experts):
    counts, p = {}, mx.softmax(logits, axis=1)
    for row in experts.tolist():
        for expert in row:
            counts[expert] = counts.get(expert, 0) + 1
    total = mx.array(0.0)
    for expert in range(logits.shape[1]):
        total = total + counts.get(expert, 0) / experts.size * p[:, expert].mean()
    return total * logits.shape[1]

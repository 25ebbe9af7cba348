"""The walk by one pass over the nodes: a child's number is larger than its parent's."""

import numpy as np


def accepted(tree, drawn):
    kept = [-1]
    for node, (parent, token) in enumerate(zip(tree.parents, tree.tokens, strict=True)):
        if parent == kept[-1] and drawn[parent + 1] == token:
            kept.append(node)
    return tuple(kept[1:])


def residual(p, q):
    left = np.where(p > q, p - q, 0)
    return left / left.sum() if left.any() else p.copy()


def without(q, token):
    others = q * (np.arange(len(q)) != token)
    return others / others.sum() if others.any() else q


def accepted_of_drawn(tree, p, q, uniform):
    def walk(kept, siblings, left, guesses):
        if not siblings:
            return kept, left
        child, *others = siblings
        token = tree.tokens[child]
        if 1 - uniform(child) > 1 - left[token] / guesses[token]:
            return walk([*kept, child], tree.children(child), p(child), q(child))
        return walk(kept, others, residual(left, guesses), without(guesses, token))

    return walk([], tree.children(-1), p(-1), q(-1))

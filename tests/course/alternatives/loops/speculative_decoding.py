"""The walk with an index for the row."""

import numpy as np


def accepted(tree, drawn):
    kept, row = [], 0
    searching = True
    while searching:
        searching = False
        for node in range(len(tree.tokens)):
            if tree.parents[node] == row - 1 and tree.tokens[node] == drawn[row]:
                kept.append(node)
                row = node + 1
                searching = True
                break
    return kept


def residual(p, q):
    above = [a - b if a > b else 0 for a, b in zip(p, q, strict=True)]
    total = sum(above)
    if total == 0:
        return p
    return np.array([x / total for x in above])


def without(q, token):
    rest = [x if other != token else 0 for other, x in enumerate(q)]
    total = sum(rest)
    if total == 0:
        return q
    return np.array([x / total for x in rest])


def accepted_of_drawn(tree, p, q, uniform):
    kept, node = [], -1
    while True:
        left, guesses = p(node), q(node)
        found = False
        for child in tree.children(node):
            token = tree.tokens[child]
            if min(1, left[token] / guesses[token]) > uniform(child):
                kept.append(child)
                node, found = child, True
                break
            left, guesses = residual(left, guesses), without(guesses, token)
        if not found:
            return kept, left

"""The walk by one pass over the nodes: a child's number is larger than its parent's."""


def accepted(tree, drawn):
    kept = [-1]
    for node, (parent, token) in enumerate(zip(tree.parents, tree.tokens, strict=True)):
        if parent == kept[-1] and drawn[parent + 1] == token:
            kept.append(node)
    return tuple(kept[1:])

"""The walk with an index for the row."""


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

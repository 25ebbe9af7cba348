"""The best of all candidates, searched again for each node."""

from tiny_llm.decode.acceptance import DraftTree


def likeliest_tree(places, limit, least):
    tokens, parents, sums, depths, next_rank = [], [], [], [], {-1: 0}
    while len(tokens) < limit:
        best = None
        for parent, rank in next_rank.items():
            depth = 0 if parent < 0 else depths[parent] + 1
            if depth >= len(places) or rank >= len(places[depth].tokens):
                continue
            score = (0.0 if parent < 0 else sums[parent]) + places[depth].log_q[rank]
            if score >= least and (best is None or score > best[0]):
                best = score, parent, depth, rank
        if best is None:
            break
        score, parent, depth, rank = best
        tokens.append(places[depth].tokens[rank])
        parents.append(parent)
        sums.append(score)
        depths.append(depth)
        next_rank[parent] = rank + 1
        next_rank[len(tokens) - 1] = 0
    return DraftTree(tuple(tokens), tuple(parents))


def rows_of_text(share, result):
    guesses = share.wanted - 1 if share.wanted > 1 else 0
    rows = []
    row = 0
    while row < share.length - guesses:
        rows.append(row)
        row += 1
    kept = list(result.kept)
    while kept:
        rows.append(row + kept.pop(0))
    return rows

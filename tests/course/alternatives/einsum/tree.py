"""All lines with their sums, sorted; the rows as a filter."""

from tiny_llm.decode.acceptance import DraftTree


def likeliest_tree(places, limit, least):
    from itertools import product

    lines = []
    for depth in range(len(places)):
        for ranks in product(*(range(len(place.tokens)) for place in places[: depth + 1])):
            total = 0.0
            for place, rank in zip(places, ranks, strict=False):
                total += place.log_q[rank]
            lines.append((total, ranks))
    kept = [ranks for total, ranks in sorted(lines, key=lambda line: (-line[0], len(line[1]))) if total >= least]
    kept = kept[:limit]
    number = {(): -1} | {ranks: node for node, ranks in enumerate(kept)}
    tokens = [places[len(ranks) - 1].tokens[ranks[-1]] for ranks in kept]
    return DraftTree(tuple(tokens), tuple(number[ranks[:-1]] for ranks in kept))


def rows_of_text(share, result):
    known = share.length - len(share.draft.tokens)
    return [row for row in range(share.length) if row < known or row - known in result.kept]

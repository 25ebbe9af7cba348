"""With running sums and arrays."""

from tiny_llm.apps.rag.steps import MARK, SENTENCE_END, Citation
from tiny_llm.apps.rag.words import content_words


def windows(lengths, size, overlap):
    import numpy as np

    sums = np.concatenate([[0], np.cumsum(lengths, dtype=int)])
    spans, begin, count = [], 0, len(lengths)
    while begin < count:
        end = max(begin + 1, int(np.searchsorted(sums, sums[begin] + size, side="right")) - 1)
        spans.append((begin, end))
        if end >= count:
            break
        least = max(sums[end] - overlap, sums[end + 1] - size)
        begin = min(max(begin + 1, int(np.searchsorted(sums, least))), end)
    return spans


def fuse(rankings, k=60):
    import numpy as np

    items = list(dict.fromkeys(item for ranking in rankings for item in ranking))
    number = {item: i for i, item in enumerate(items)}
    scores = np.zeros(len(items))
    for ranking in rankings:
        np.add.at(scores, [number[item] for item in ranking], 1 / (k + 1 + np.arange(len(ranking))))
    order = np.argsort(-scores, kind="stable")
    return [(items[i], float(scores[i])) for i in order]


def pack(costs, budget, most, places):
    taken = {}
    for number, cost in enumerate(costs):
        if len(taken) < most and cost <= budget - sum(taken.values()):
            taken[number] = cost
    return [number for _, number in sorted((places[number], number) for number in taken)]


def check_citations(answer, passages):
    def citation(number, claim):
        words = frozenset(content_words(claim))
        if not 1 <= number <= len(passages):
            return Citation(number, claim, False, 0.0)
        common = words.intersection(content_words(passages[number - 1]))
        return Citation(number, claim, True, len(common) / (len(words) or 1))

    found = []
    for mark in MARK.finditer(answer):
        text = MARK.split(answer[: mark.start()])[-1].strip(" .,;:")
        claim = SENTENCE_END.split(text)[-1] if text else found[-1].claim if found else ""
        found.append(citation(int(mark[1]), claim))
    return found

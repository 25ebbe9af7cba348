"""With loops that try out, and lists instead of tables."""

from tiny_llm.apps.rag.steps import MARK, SENTENCE_END, Citation
from tiny_llm.apps.rag.words import content_words


def windows(lengths, size, overlap):
    spans, begin = [], 0
    while begin < len(lengths):
        end = len(lengths)
        while end > begin + 1 and sum(lengths[begin:end]) > size:
            end -= 1
        spans.append((begin, end))
        if end == len(lengths):
            return spans
        start = begin + 1
        while start < end and (sum(lengths[start:end]) > overlap or sum(lengths[start : end + 1]) > size):
            start += 1
        begin = start
    return spans


def fuse(rankings, k=60):
    items = []
    for ranking in rankings:
        items += [item for item in ranking if item not in items]
    scored = []
    for item in items:
        total = 0.0
        for ranking in rankings:
            if item in ranking:
                total += 1 / (k + list(ranking).index(item) + 1)
        scored.append((item, total))
    scored.sort(key=lambda pair: pair[1], reverse=True)
    return scored


def pack(costs, budget, most, places):
    chosen = []
    for number in range(len(costs)):
        if len(chosen) < most and sum(costs[i] for i in chosen) + costs[number] <= budget:
            chosen.append(number)
    chosen.sort(key=places.__getitem__)
    return chosen


def check_citations(answer, passages):
    found, claim = [], ""
    parts = MARK.split(answer)
    for before, digits in zip(parts[::2], parts[1::2], strict=False):
        text = before.strip(" .,;:")
        if text:
            claim = SENTENCE_END.split(text)[-1]
        number, common = int(digits), 0
        words = list(dict.fromkeys(content_words(claim)))
        exists = 0 < number < len(passages) + 1
        for word in words:
            if exists and word in content_words(passages[number - 1]):
                common += 1
        found.append(Citation(number, claim, exists, common / max(1, len(words))))
    return found

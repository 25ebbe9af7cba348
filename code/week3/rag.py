"""The four steps of retrieval that decide its quality, as functions of plain numbers and texts.

windows           divide a text into overlapping chunks of a bounded number of tokens
fuse              merge several rankings into one by reciprocal rank
pack              choose the passages that fit into a prompt's token budget
check_citations   find the numbers that an answer cites, and measure whether the passages support it
"""

import re
from collections.abc import Hashable, Sequence
from typing import NamedTuple, TypeVar

from tiny_llm.apps.rag.words import content_words
from tiny_llm.course import NotDone

Item = TypeVar("Item", bound=Hashable)
K = 60  # of reciprocal rank fusion: the larger, the less a first place counts (Cormack et al., SIGIR 2009)
MARK = re.compile(r"\[(\d{1,3})\]")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


class Citation(NamedTuple):
    """A number that an answer cites for a claim. `overlap`: the share of the claim's words that the passage has.

    `exists` is False where no passage has the number; the overlap is then 0.
    """

    number: int
    claim: str
    exists: bool
    overlap: float


def windows(lengths: Sequence[int], size: int, overlap: int) -> list[tuple[int, int]]:
    """Return the begin and end of each chunk of a text whose units (sentences or lines) have these numbers of tokens.

    A chunk takes units while they have at most `size` tokens together, and at least one unit. The next chunk begins
    with as many of the last units as have at most `overlap` tokens together, but never with all units of the chunk
    before, and only while the first new unit fits behind them. [4, 4, 4, 4], size 8, overlap 4 → (0, 2), (1, 3), (2, 4)
    """
    # YOUR CODE (w3.12.1): chunks that overlap, and always advance
    raise NotDone("w3.12.1")


def fuse(rankings: Sequence[Sequence[Item]], k: int = K) -> list[tuple[Item, float]]:
    """Merge rankings, best item first, into one: an item scores the sum of 1 / (k + rank) over its rankings.

    Ranks count from 1. The result is sorted by falling score; among equal scores the item that was seen first stands
    first: the rankings are read in their order. An item stands at most once in a ranking.
    """
    # YOUR CODE (w3.12.2): reciprocal ranks, summed
    raise NotDone("w3.12.2")


def pack(costs: Sequence[int], budget: int, most: int, places: Sequence[int]) -> list[int]:
    """Return the numbers of the passages to put into a prompt, in the order in which they stand there.

    `costs`: the tokens of each passage, best passage first. Passages are taken in this order while they are at most
    `most`; a passage that does not fit into what is left of `budget` is left out, and the next one is tried. The chosen
    passages are then sorted by `places`, their places in the documents: two questions that find the same passages in
    another order then have the same prompt up to the question, which the prefix cache has computed.
    """
    # YOUR CODE (w3.12.3): the best that fit, in the order of the documents
    raise NotDone("w3.12.3")


def check_citations(answer: str, passages: Sequence[str]) -> list[Citation]:
    """Return the citations of an answer, in their order: "It opened in 1907 [2]." cites passage 2, counted from 1.

    A citation's claim is the text before its mark: from the end of the mark or the sentence before. A mark with no
    words before it has the claim of the mark before it: "1907 [1][3]." The overlap is the share of the claim's
    different content words (`content_words`) that are content words of the passage, 0 for a claim without any.
    """
    # YOUR CODE (w3.12.4): which number, for which words, with what support
    raise NotDone("w3.12.4")

"""Score how well documents answer a query, in the format of Qwen3-Reranker.

The model is asked whether a document fits, and its next token would be yes or no: the score is the probability of yes
among the two. (https://huggingface.co/Qwen/Qwen3-Reranker-0.6B)
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from tiny_llm.config.fields import require, shown
from tiny_llm.decode.text import NOT_FINITE
from tiny_llm.engine.embed import TOKEN_BUDGET, Vectors, batches_of, join_vectors, last_states
from tiny_llm.model.qwen3 import Qwen3
from tiny_llm.model.rendered import Rendered
from tiny_llm.model.tokenizer import Tokenizer

INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


class NoRankerError(ValueError):
    """A model has no tokens for yes and no, so it can't rank."""


class RankInput(NamedTuple):
    """The tokens of a prompt for each document, and the tokens of the answers no and yes."""

    rows: list[list[int]]
    answers: tuple[int, int]


def rank(
    model: Qwen3,
    tokenizer: Tokenizer,
    query: str,
    documents: Sequence[str],
    instruction: str | None = None,
    *,
    max_context: int | None = None,
    token_budget: int = TOKEN_BUDGET,
) -> list[float]:
    """Return a score from 0 to 1 for each document: how well it answers the query, by the instruction.

    `instruction` None is the one for a web search. A batch has at most `token_budget` tokens, or one longer document.
    Raises ValueError as `rank_input` does.
    """
    given = rank_input(tokenizer, query, documents, instruction, model.config.context(max_context))
    return scores_of(list(rank_batches(model, given, token_budget)))


def rank_input(tokenizer: Tokenizer, query: Any, documents: Any, instruction: Any, max_context: int) -> RankInput:
    """Return the prompts as tokens.

    Raises ValueError for a value that is not a text, for a document that is too long for the context with its query,
    and for a vocabulary without the tokens yes and no.
    """
    is_list = isinstance(documents, Sequence) and not isinstance(documents, str | bytes | bytearray)
    require(is_list, f"documents: expected a list of texts, found {shown(documents)}")
    task = INSTRUCTION if instruction is None else instruction
    for name, text in (("query", query), ("instruction", task)):
        require(isinstance(text, str), f"{name}: expected a text, found {shown(text)}")
    no, yes = (_answer_token(tokenizer, word) for word in ("no", "yes"))
    prefix, suffix = tokenizer.encode(PREFIX), tokenizer.encode(SUFFIX)
    rows = []
    for place, document in enumerate(documents):
        name = f"documents[{place}]"
        require(isinstance(document, str), f"{name}: expected a text, found {shown(document)}")
        body = f"<Instruct>: {task}\n<Query>: {query}\n<Document>: {document}"
        row = prefix + _plain_tokens(tokenizer, body, name) + suffix
        words = f"{name}: expected at most {max_context} tokens (the context) with the query, found {len(row)}"
        require(len(row) <= max_context, f"{words}; split the document")
        rows.append(row)
    return RankInput(rows, (no, yes))


def _plain_tokens(tokenizer: Tokenizer, text: str, name: str) -> list[int]:
    """Return the tokens of a text in which control tokens are spelled by letters: it must not end its own turn."""
    try:
        return tokenizer.encode(Rendered(text, controls=()))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _answer_token(tokenizer: Tokenizer, word: str) -> int:
    token: int | None = tokenizer.backend.token_to_id(word)
    words = f"rank: expected a vocabulary with the tokens yes and no, found none for {word!r}"
    if token is None:
        raise NoRankerError(f"{words}; use a model that was trained to rank, such as Qwen3-Reranker")
    return token


def rank_batches(model: Qwen3, given: RankInput, token_budget: int = TOKEN_BUDGET) -> Iterator[Vectors]:
    """Yield the scores (R, 1) of the prompts, a batch at a time. Raises ArithmeticError where a logit is not finite."""
    for batch in batches_of(given.rows, token_budget):
        logits = model.logits(last_states(model, batch))  # (R, V)
        pairs = logits[:, mx.array(given.answers)].astype(mx.float32)
        scores = np.array(mx.softmax(pairs, axis=1)[:, 1:])
        if not np.isfinite(scores).all():
            raise ArithmeticError(NOT_FINITE)
        yield scores


def scores_of(parts: Sequence[Vectors]) -> list[float]:
    """Join the scores of all batches."""
    scores: list[float] = join_vectors(parts, 1)[:, 0].tolist()
    return scores

"""A sentence of context before each chunk, written by a model that has the whole document before it.

All prompts of a document begin with its text. The cache of the prompt before is kept, so the document is computed once
and each chunk adds only its own tokens. (Contextual retrieval: Anthropic, 2024)
"""

from collections.abc import Sequence

from tiny_llm.apps.rag.chunks import Chunk
from tiny_llm.apps.rag.forms import fenced
from tiny_llm.engine.llm import LLM

PROMPT = (
    "<document>\n{document}\n</document>\n\nHere is a part of the document:\n<part>\n{part}\n</part>\n\n"
    "Say in one short sentence what the part is about and where in the document it stands. Reply with the "
    "sentence alone."
)
MAX_TOKENS = 48
SHARE = 2  # a document may fill one part in so many of the context; a longer one is cut


class Situator:
    """Writes context by a model, and counts the prompts' tokens and those that the prefix cache had."""

    def __init__(self, llm: LLM):
        self.llm = llm
        self.prompt_tokens = self.cached_tokens = 0

    def __call__(self, document: str, chunks: Sequence[Chunk]) -> list[str]:
        """Return a sentence for each chunk of a document."""
        text = fenced(self._cut(document))
        template = {"enable_thinking": False}
        sentences = []
        for chunk in chunks:
            content = PROMPT.format(document=text, part=fenced(chunk.text))
            prompt = [{"role": "user", "content": content}]
            completion = self.llm.generate(prompt, template=template, temperature=0.0, max_tokens=MAX_TOKENS)
            assert not isinstance(completion, list)
            self.prompt_tokens += completion.stats.prompt_tokens
            self.cached_tokens += completion.stats.cached_tokens
            sentences.append(" ".join(completion.text.split()))
        return sentences

    def _cut(self, document: str) -> str:
        """Return the beginning of a document that leaves room for a chunk and the answer."""
        tokens = self.llm.tokenizer.encode(document)
        limit = self.llm.max_context // SHARE
        return document if len(tokens) <= limit else self.llm.tokenizer.decode(tokens[:limit])

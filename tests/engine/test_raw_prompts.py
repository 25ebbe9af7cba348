"""A raw text begins as the model saw texts in training; what is no prompt is named."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors

from tests.support import make_model, make_tokenizer
from tiny_llm.engine.llm import LLM, load


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    directory: Path = make_model(tmp_path_factory.mktemp("model"))
    tokenizer = make_tokenizer()
    begin = ("<|endoftext|>", tokenizer.token_to_id("<|endoftext|>"))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{begin[0]} $A", special_tokens=[begin])
    tokenizer.save(str(directory / "tokenizer.json"))
    return load(directory)


def test_a_raw_text_begins_with_the_tokenizers_own_token_and_a_chat_with_the_templates(llm: LLM) -> None:
    """Raw prompts began in the middle of a text: benchmarks and perplexity ran on what the model never saw."""
    begin = llm.tokenizer.backend.token_to_id("<|endoftext|>")
    assert llm.encode("hello") == [begin, *llm.tokenizer.encode("hello")]
    assert llm.encode("<|endoftext|>hello") == llm.encode("hello")
    chat = [{"role": "user", "content": "hello"}]
    assert begin not in llm.encode(chat) and llm.encode(llm.tokenizer.render(chat)) == llm.encode(chat)


@pytest.mark.parametrize("prompt", [None, 3, 2.5, b"hi", {"role": "user"}, ["a", 1], [1.5]])
def test_what_is_no_prompt_is_named(llm: LLM, prompt: Any) -> None:
    """Bytes ran as token ids, and None ended in a TypeError."""
    with pytest.raises(ValueError, match=r"^prompt: expected a text, chat messages or token ids, found"):
        llm.generate(prompt, max_tokens=1)

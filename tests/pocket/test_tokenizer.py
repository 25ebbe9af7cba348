"""The pocket tokenizer: complete, loss-free, the same from prose to JSON, and read alike by others."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tiny_llm.pocket.data_tools import tool_lesson
from tiny_llm.pocket.dialogue import render
from tiny_llm.pocket.tokenizer import SPECIAL, TAGS, VOCAB_SIZE, shipped_tokenizer, template_phrases, train_tokenizer
from tiny_llm.pocket.words import Words

WEIGHTS = Path(__file__).parents[2] / "tiny_llm" / "pocket" / "weights"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return shipped_tokenizer()


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.decode([i], skip_special_tokens=False) for i in tokenizer.encode(text).ids]


def test_it_has_2048_entries_with_qwens_special_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.get_vocab_size() == VOCAB_SIZE == 2048
    for text in (*SPECIAL, *TAGS):
        assert pieces(tokenizer, text) == [text]


@given(st.text(max_size=60))
def test_any_text_comes_back(text: str) -> None:
    tokenizer = shipped_tokenizer()
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_a_name_has_the_same_tokens_everywhere(tokenizer: Tokenizer) -> None:
    for seed in range(50):
        name = Words(seed, "test").name()
        alone = pieces(tokenizer, name)
        for text in (f"Where is {name}?", f'{{"city": "{name}"}}', f"({name})", f"\n{name}\n", f"[1] {name} is"):
            found = pieces(tokenizer, text)
            assert any(found[i : i + len(alone)] == alone for i in range(len(found))), (text, found)


def test_digits_stand_alone(tokenizer: Tokenizer) -> None:
    assert pieces(tokenizer, "2048, 17.5") == ["2", "0", "4", "8", ",", " ", "1", "7", ".", "5"]


def test_what_the_template_repeats_around_tools_is_single_tokens(tokenizer: Tokenizer) -> None:
    (dialogue,) = tool_lesson(Words(3), 1)
    bare = render(dialogue.messages[:1])
    with_tools = render(dialogue.messages[:1], dialogue.tools)
    assert all(len(tokenizer.encode(phrase).ids) == 1 for phrase in template_phrases())
    extra = len(tokenizer.encode(with_tools).ids) - len(tokenizer.encode(bare).ids)
    assert extra < 50 * len(dialogue.tools) + 10


def test_training_it_again_gives_the_same() -> None:
    assert train_tokenizer(60).to_str() == train_tokenizer(60).to_str()


def test_target_and_draft_share_it() -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (WEIGHTS / "target" / name).read_bytes() == (WEIGHTS / "draft" / name).read_bytes()


def test_transformers_reads_it_alike(tokenizer: Tokenizer) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(str(WEIGHTS / "target"))
    dialogue = tool_lesson(Words(3), 1)[0]
    text = render(dialogue.messages, dialogue.tools)
    assert theirs.encode(text, add_special_tokens=False) == tokenizer.encode(text, add_special_tokens=False).ids
    rendered = theirs.apply_chat_template(list(dialogue.messages), tools=list(dialogue.tools), tokenize=False)
    assert rendered == text
    assert theirs.eos_token == "<|im_end|>"


def test_the_config_names_what_readers_look_for() -> None:
    config = json.loads((WEIGHTS / "target" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["eos_token"] == "<|im_end|>"
    assert "enable_thinking" in config["chat_template"]

"""The pocket tokenizer: complete, loss-free, the same from prose to JSON, and read alike by others."""

import json
from pathlib import Path

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tiny_llm.pocket.lessons.dialogue import render
from tiny_llm.pocket.lessons.tool_calls import tool_lesson
from tiny_llm.pocket.lessons.tools import schema_words
from tiny_llm.pocket.lessons.words import Words
from tiny_llm.pocket.tokenizer import SPECIAL, TAGS, VOCAB_SIZE, shipped_tokenizer, template_phrases, train_tokenizer
from tiny_llm.train.vocabulary import translated

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


def test_words_of_schemas_and_made_up_words_have_the_same_tokens_in_prose_and_in_names(tokenizer: Tokenizer) -> None:
    """Without exception would need a list of words; a few begin with a frequent word, like " no|te"."""
    made_up = [Words(seed).name().lower() for seed in range(300)]
    for words in (sorted(schema_words()), made_up):
        same = sum(pieces(tokenizer, f" {word}") == [" ", *pieces(tokenizer, f"_{word}")[1:]] for word in words)
        assert same > 0.95 * len(words)


def test_frequent_words_take_their_space_along(tokenizer: Tokenizer) -> None:
    assert pieces(tokenizer, "the model is of no use") == ["the", " ", "model", " is", " of", " no", " use"]


def test_digits_stand_alone(tokenizer: Tokenizer) -> None:
    assert pieces(tokenizer, "2048, 17.5") == ["2", "0", "4", "8", ",", " ", "1", "7", ".", "5"]


def test_what_the_template_repeats_around_tools_is_single_tokens(tokenizer: Tokenizer) -> None:
    assert all(len(tokenizer.encode(phrase).ids) == 1 for phrase in template_phrases())
    extra = number = 0
    for seed in range(50):
        (dialogue,) = tool_lesson(Words(seed), 1)
        texts = (render(dialogue.messages[:1], dialogue.tools), render(dialogue.messages[:1]))
        with_tools, bare = (len(tokenizer.encode(text).ids) for text in texts)
        extra, number = extra + with_tools - bare, number + len(dialogue.tools)
    assert extra < 35 * number


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


def test_an_embedding_is_carried_over_to_another_tokenizer() -> None:
    old, new = train_tokenizer(30), train_tokenizer(60)
    embedding = mx.random.normal((old.get_vocab_size(), 4), key=mx.random.key(0))
    assert mx.array_equal(translated(embedding, old, old), embedding)
    found, known = translated(embedding, old, new), old.get_vocab()
    spelled = 0
    for token, index in new.get_vocab().items():
        if token in known:
            assert mx.array_equal(found[index], embedding[known[token]])
        else:
            spelled += 1
            pair = old.encode(new.decode([index])).ids
            assert len(pair) > 1
            assert mx.allclose(found[index], sum(embedding[i] for i in pair) / len(pair), atol=1e-6)
    assert spelled > 10

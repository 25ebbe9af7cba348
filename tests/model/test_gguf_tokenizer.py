"""Tokenizers of GGUF files: ids of each splitting rule and of SentencePiece, special tokens, and what is refused."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import regex
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from tests.gguf_files import TOKEN_TYPES, pack, tokenizer_metadata, write_gguf
from tests.model.test_llama import LLAMA3
from tests.support import CORPUS, PRE_TOKENIZER, SPECIAL, make_tokenizer
from tiny_llm.model.gguf_tokenizer import SPLITTINGS
from tiny_llm.model.tokenizer import Tokenizer

MODEL = {  # the least that a model must say
    "general.architecture": "llama",
    "llama.context_length": 512,
    "llama.embedding_length": 4,
    "llama.block_count": 1,
    "llama.feed_forward_length": 4,
    "llama.attention.head_count": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-6,
}
TEXTS = (
    "",
    "hello there, the quick brown fox",
    "  tabs\tand   spaces \r\n\n\n 12345678 it's we'LL IT'S",
    "naïve cafe\u0301 — 你好，世界 🙂👩‍👩‍👧‍👦 \u200d\ufe0f",
    "Здравствуй, мир! שלום עולם مرحبا بالعالم नमस्ते दुनिया こんにちは 안녕하세요 ٣٤٥ Ⅻ ½ x²",
    "def f(x):\n    return {'a': [x**2, -1.5e-3]}  # <|im_start|>\n",
    "$+<=>^~| ...!? #1 a|b 2024-11-30 1,000,000 1000 100",
    "\ud7ff\ue000\U0010ffff\x00\x7f\xa0\u3000",
)


def file_of(tmp_path: Path, vocabulary: dict[str, Any], **keys: Any) -> Path:
    """A file with these keys of a tokenizer; names in `keys` lack their tokenizer.ggml."""
    added = {f"tokenizer.ggml.{name}": value for name, value in keys.items()}
    metadata = {**MODEL, **vocabulary, **added}
    count = len(vocabulary.get("tokenizer.ggml.tokens", "x"))
    table = {"token_embd.weight": pack("F16", np.zeros((count, 4)))}
    return write_gguf(tmp_path / "x.gguf", {k: v for k, v in metadata.items() if v is not None}, table)


def read(tmp_path: Path, vocabulary: dict[str, Any], **keys: Any) -> Tokenizer:
    return Tokenizer.from_dir(file_of(tmp_path, vocabulary, **keys))


def byte_level(*steps: Any, normalizer: Any = None, ignore_merges: bool = False) -> Backend:
    """A tokenizer as the makers of a model have it, trained on a few sentences."""
    backend = Backend(models.BPE(ignore_merges=ignore_merges))
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(list(steps))
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([*CORPUS, *TEXTS], trainer)
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    return backend


BYTES, WORDS = pre_tokenizers.ByteLevel(False, use_regex=False), pre_tokenizers.ByteLevel(False, use_regex=True)
MAKERS = {  # as in the tokenizer.json of GPT-2, SmolLM2, Qwen2.5, DeepSeek's distillations and Llama 3
    "gpt-2": lambda: byte_level(WORDS),
    "smollm": lambda: byte_level(pre_tokenizers.Digits(True), WORDS),
    "qwen2": lambda: byte_level(
        pre_tokenizers.Split(Regex(PRE_TOKENIZER), "isolated"), BYTES, normalizer=normalizers.NFC()
    ),
    "deepseek-r1-qwen": lambda: byte_level(pre_tokenizers.Split(Regex(PRE_TOKENIZER), "isolated"), BYTES),
    "llama-bpe": lambda: byte_level(pre_tokenizers.Split(Regex(LLAMA3), "isolated"), BYTES, ignore_merges=True),
}


@pytest.fixture(scope="module", params=MAKERS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Backend]:
    backend = MAKERS[request.param]()
    vocabulary = tokenizer_metadata(backend, request.param)
    return read(tmp_path_factory.mktemp("x"), vocabulary, add_bos_token=False), backend


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_the_makers_tokenizer(pair: tuple[Tokenizer, Backend], text: str) -> None:
    ours, theirs = pair
    tokens = ours.encode(text)
    assert tokens == theirs.encode(text).ids
    assert ours.decode(tokens, keep_special=True) == theirs.decode(tokens, skip_special_tokens=False)


@given(text=st.text(max_size=60))
@settings(derandomize=True, max_examples=200, deadline=None)
def test_ids_of_any_text_are_those_of_the_makers_tokenizer(pair: tuple[Tokenizer, Backend], text: str) -> None:
    ours, theirs = pair
    assert ours.encode(text) == theirs.encode(text).ids


@pytest.mark.parametrize("text", TEXTS)
def test_the_default_rule_splits_as_llama_cpp_does(tmp_path: Path, text: str) -> None:
    """By four patterns in turn: each splits the pieces that the one before left into matches and the rest."""
    patterns = (
        r"[\p{P}\$\+<=>\^~\|]+",
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
        r"\p{N}+",
        r"[0-9][0-9][0-9]",
    )
    pieces = [text]
    for pattern in patterns:
        pieces = [part for piece in pieces for part in regex.split(f"({pattern})", piece) if part]
    for pre in ("default", None):
        ours = read(tmp_path, tokenizer_metadata(make_tokenizer()), pre=pre)
        assert ours.backend.pre_tokenizer is not None
        words = [text[begin:end] for _, (begin, end) in ours.backend.pre_tokenizer.pre_tokenize_str(text)]
        assert words == pieces


def test_names_for_one_rule_are_the_same_rule() -> None:
    assert SPLITTINGS["llama3"] == SPLITTINGS["llama-v3"] == SPLITTINGS["llama-bpe"]


def test_types_decide_which_tokens_are_special(tmp_path: Path) -> None:
    vocabulary = tokenizer_metadata(make_tokenizer())
    tokens = vocabulary["tokenizer.ggml.tokens"]
    tokens += ["<odd>", "[PAD321]"]
    vocabulary["tokenizer.ggml.token_type"] += [TOKEN_TYPES["user"], TOKEN_TYPES["unused"]]
    ours = read(tmp_path, vocabulary)
    text = "the<odd><|im_end|>[PAD321]<think>"
    ids = ours.encode(text)
    assert [i for i in ids if i > 310] == [tokens.index("<odd>"), 313, tokens.index("<think>")]
    assert tokens.index("[PAD321]") not in ids
    assert ours.decode(ids) == "the<odd>[PAD321]<think>"
    assert ours.decode(ids, keep_special=True) == text
    assert ours.decode([tokens.index("[PAD321]")]) == ""  # an id of the model that no text has
    chat = ours.backend.get_added_tokens_decoder()
    assert {token.content for token in chat.values() if token.special} == set(SPECIAL)


@pytest.mark.parametrize(
    ("keys", "before", "behind"),
    [
        ({}, [], []),
        ({"pre": "llama-bpe"}, [], []),  # no bos_token_id
        ({"pre": "llama-bpe", "bos_token_id": 311}, [311], []),
        ({"pre": "llama-bpe", "bos_token_id": 311, "add_bos_token": False}, [], []),
        ({"bos_token_id": 311}, [], []),
        ({"bos_token_id": 311, "add_bos_token": True}, [311], []),
        ({"eos_token_id": 313, "add_eos_token": True}, [], [313]),
        ({"bos_token_id": 311, "add_bos_token": True, "eos_token_id": 313, "add_eos_token": True}, [311], [313]),
    ],
    ids=str,
)
def test_ends_of_a_plain_text(tmp_path: Path, keys: dict[str, Any], before: list[int], behind: list[int]) -> None:
    ours = read(tmp_path, tokenizer_metadata(make_tokenizer()), **keys)
    bare = ours.encode("the fox")
    assert ours.encode("the fox", add_special_tokens=True) == [*before, *bare, *behind]
    assert bare == make_tokenizer().encode("the fox").ids


def test_end_tokens_are_all_that_the_file_and_its_vocabulary_name(tmp_path: Path) -> None:
    vocabulary = tokenizer_metadata(make_tokenizer())
    assert read(tmp_path, vocabulary).eos_token_ids == {311, 313}  # <|endoftext|> and <|im_end|>
    keys = {"eos_token_id": 5, "eot_token_id": 6, "eom_token_id": 7}
    assert read(tmp_path, vocabulary, **keys).eos_token_ids == {5, 6, 7, 311, 313}
    kinds = [TOKEN_TYPES["normal"]] * len(vocabulary["tokenizer.ggml.tokens"])
    assert read(tmp_path, vocabulary, token_type=kinds).eos_token_ids == frozenset()
    assert read(tmp_path, vocabulary, token_type=kinds, eos_token_id=5).eos_token_ids == {5}


def test_special_texts_and_templates_by_name(tmp_path: Path) -> None:
    keys = {
        "tokenizer.chat_template": "{{ bos_token }}{{ messages[0].content }}",
        "tokenizer.chat_template.tool_use": "{{ tools[0].function.name }}",
        "tokenizer.chat_templates": ["tool_use"],
    }
    ours = read(tmp_path, {**tokenizer_metadata(make_tokenizer()), **keys}, bos_token_id=312, unknown_token_id=0)
    assert ours.special == {"bos_token": "<|im_start|>", "unk_token": "!"}
    question = [{"role": "user", "content": "hi"}]
    assert ours.render(question) == "<|im_start|>hi"
    assert ours.render(question, [{"type": "function", "function": {"name": "f"}}]) == "f"


@pytest.fixture(scope="module")
def spm() -> Any:
    """A small SentencePiece BPE with Llama's settings."""
    model = io.BytesIO()
    sentences = [*CORPUS * 20, "Ünïcode wörds and 12345 numbers 中文 字", "ÄÖ   spaces  "]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        user_defined_symbols=["<tool>"],
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def spm_metadata(spm: Any) -> dict[str, Any]:
    ids = range(spm.get_piece_size())
    kinds = [
        TOKEN_TYPES["unknown"]
        if spm.is_unknown(i)
        else TOKEN_TYPES["control"]
        if spm.is_control(i)
        else TOKEN_TYPES["byte"]
        if spm.is_byte(i)
        else TOKEN_TYPES["user"]
        if spm.id_to_piece(i) == "<tool>"
        else TOKEN_TYPES["normal"]
        for i in ids
    ]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [spm.id_to_piece(i) for i in ids],
        "tokenizer.ggml.scores": [float(spm.get_score(i)) for i in ids],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


SPM_TEXTS = [text for text in TEXTS if text and "<|" not in text]


@pytest.mark.parametrize("text", SPM_TEXTS)
def test_ids_are_those_of_sentencepiece(tmp_path: Path, spm: Any, text: str) -> None:
    """Also of characters that no token has: they are written by their bytes."""
    ours = read(tmp_path, spm_metadata(spm))
    tokens = ours.encode(text)
    assert tokens == spm.encode(text)
    assert ours.decode(tokens) == spm.decode(tokens) == text
    assert ours.encode(text, add_special_tokens=True) == [1, *tokens]
    stream = ours.detokenizer()
    assert "".join(map(stream.add, tokens)) + stream.finish() == text


@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00▁"), min_size=1, max_size=40))
@settings(derandomize=True, max_examples=200, deadline=None)
def test_ids_of_any_text_are_those_of_sentencepiece(
    spm: Any, text: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    ours = read(tmp_path_factory.getbasetemp(), spm_metadata(spm))
    assert ours.encode(text) == spm.encode(text)


def test_sentencepiece_without_its_leading_space(tmp_path: Path, spm: Any) -> None:
    plain = read(tmp_path, spm_metadata(spm), add_space_prefix=False)
    prefixed = read(tmp_path, spm_metadata(spm))
    assert plain.encode(" the fox") == prefixed.encode("the fox")
    assert plain.decode(plain.encode("the  fox ")) == "the  fox "


def test_special_tokens_of_sentencepiece(tmp_path: Path, spm: Any) -> None:
    """After a special token a space is put, too, as in transformers' tokenizers of that time and in llama.cpp."""
    ours = read(tmp_path, spm_metadata(spm))
    tool = spm.piece_to_id("<tool>")
    assert ours.encode("<s>the</s><tool>the") == [1, *spm.encode("the"), 2, tool, *spm.encode("the")]
    assert ours.eos_token_ids == {2}
    assert ours.decode([1, tool, 2]) == "<tool>"


BAD = [
    ({"model": "bert"}, r'tokenizer.ggml.model: expected one of gpt2, llama, found "bert"'),
    ({"model": None}, r"tokenizer.ggml.model: expected one of gpt2, llama, found nothing"),
    ({"pre": "tekken"}, r'tokenizer.ggml.pre: expected one of default, gpt-2, smollm, qwen2, .*llama3, found "tekken"'),
    ({"pre": 3}, r"tokenizer.ggml.pre: expected one of .*, found 3"),
    ({"tokens": None}, r"tokenizer.ggml.tokens: expected a list of str, found None"),
    ({"tokens": [1, 2]}, r"tokenizer.ggml.tokens: expected a list of str, found \[1, 2\]"),
    ({"tokens": ["a"] * 320}, r"tokenizer.ggml.tokens: expected each token once, found 'a'"),
    ({"token_type": [1, 2]}, r"tokenizer.ggml.token_type: expected 320 types, found 2"),
    ({"token_type": "no"}, r"tokenizer.ggml.token_type: expected a list of int, found 'no'"),
    ({"merges": None}, r"tokenizer.ggml.merges: expected a list of str, found None"),
    ({"merges": ["ab"]}, r"tokenizer.ggml.merges: expected two tokens with a space between them, found 'ab'"),
    ({"merges": [" ab"]}, r"tokenizer.ggml.merges: expected two tokens with a space between them, found ' ab'"),
    ({"merges": ["q zzz"]}, r"tokenizer.ggml.merges: expected merges of the tokens, found: .*"),
    ({"eos_token_id": 320}, r"tokenizer.ggml.eos_token_id: expected an integer from 0 to 319, found 320"),
    ({"bos_token_id": "x", "add_bos_token": True}, r"tokenizer.ggml.bos_token_id: expected an integer .*, found \"x\""),
    (
        {"add_bos_token": True},
        r"tokenizer.ggml.bos_token_id: expected an id, because add_bos_token is true, found 'nothing'",
    ),
    ({"add_bos_token": 3}, r"tokenizer.ggml.add_bos_token: expected true or false, found 3"),
]


@pytest.mark.parametrize(("keys", "message"), BAD, ids=str)
def test_a_vocabulary_that_makes_no_sense_is_refused(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    file = file_of(tmp_path, tokenizer_metadata(make_tokenizer()), **keys)
    with pytest.raises(ValueError, match=message) as error:
        Tokenizer.from_dir(file)
    assert str(error.value).startswith(str(file))


BAD_SPM = [
    ({"scores": None}, r"tokenizer.ggml.scores: expected a list of float, found None"),
    ({"scores": [0.0]}, r"tokenizer.ggml.scores: expected 400 scores, found 1"),
    ({"remove_extra_whitespaces": True}, r"remove_extra_whitespaces: expected no such normalization, .*, found True"),
    ({"precompiled_charsmap": [1, 2]}, r"precompiled_charsmap: expected no such normalization, .*, found \[1, 2\]"),
]


@pytest.mark.parametrize(("keys", "message"), BAD_SPM, ids=str)
def test_a_sentencepiece_vocabulary_of_another_kind_is_refused(
    tmp_path: Path, spm: Any, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, spm_metadata(spm), **keys)


def test_a_sentencepiece_vocabulary_without_bytes_is_refused(tmp_path: Path, spm: Any) -> None:
    vocabulary = spm_metadata(spm)
    tokens = [token.replace("<0x0A>", "<newline>") for token in vocabulary["tokenizer.ggml.tokens"]]
    with pytest.raises(ValueError, match=r"tokens: expected a token for each byte, found \"none for \['<0x0A>'\]\""):
        read(tmp_path, {**vocabulary, "tokenizer.ggml.tokens": tokens})


def test_a_template_that_is_no_text_is_refused(tmp_path: Path) -> None:
    vocabulary = {**tokenizer_metadata(make_tokenizer()), "tokenizer.chat_template": 3}
    with pytest.raises(ValueError, match=r"tokenizer.chat_template: expected a text, found 3"):
        read(tmp_path, vocabulary)

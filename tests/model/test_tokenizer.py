"""Tokenizer and chat templates against transformers; streamed text against decoding all at once."""

import copy
import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors
from transformers import AutoTokenizer

from tests.support import FIXTURES, make_model, make_tokenizer, write_json
from tiny_llm.model.tokenizer import Tokenizer

TEXTS = (
    "",
    "hello there, the quick brown fox",
    "<|im_start|>user\nwhat is <think>that</think>?<|im_end|>\n",
    "naïve cafe\u0301 — 你好，世界 🙂👩‍👩‍👧‍👦 \u200d\ufe0f",
    "  tabs\tand   spaces \r\n\n\n 12345 it's we'LL",
    "\ud7ff\ue000\U0010ffff\x00\x7f",
)
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "<b>é</b> & 'more'", "parameters": {"type": "object"}},
}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich", "days": 2}}}
CHATS: dict[str, list[dict[str, Any]]] = {
    "one question": [{"role": "user", "content": "Hi"}],
    "system": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "  Hi\n"}],
    "thoughts of earlier turns": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "<think>\nwhat?\n</think>\n\nHello"},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello", "reasoning_content": "\nagain\n"},
    ],
    "tools": [
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": "", "reasoning_content": "look", "tool_calls": [CALL, CALL]},
        {"role": "tool", "content": '{"rain": true}'},
        {"role": "tool", "content": "<sun>"},
        {"role": "assistant", "content": "Yes", "tool_calls": [CALL["function"]]},
        {"role": "tool", "content": "late"},
    ],
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> Tokenizer:
    return Tokenizer.from_dir(directory)


@pytest.fixture(scope="module")
def oracle(directory: Path) -> Any:
    return AutoTokenizer.from_pretrained(str(directory))


def with_template(source: Path, target: Path, template: Any) -> Tokenizer:
    """The tokenizer of `source` with another chat template, from the directory `target`."""
    (target / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    config = json.loads((source / "tokenizer_config.json").read_text())
    write_json(target / "tokenizer_config.json", {**config, "chat_template": template})
    return Tokenizer.from_dir(target)


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_transformers(tokenizer: Tokenizer, oracle: Any, text: str) -> None:
    assert tokenizer.encode(text) == oracle.encode(text)


@given(text=st.text(max_size=60))
@settings(derandomize=True, max_examples=150, deadline=None)
def test_ids_of_any_text_are_those_of_transformers(tokenizer: Tokenizer, oracle: Any, text: str) -> None:
    assert tokenizer.encode(text) == oracle.encode(text)


@given(tokens=st.lists(st.integers(0, 319), max_size=40), keep_special=st.booleans())
@settings(derandomize=True, max_examples=150, deadline=None)
def test_text_of_any_ids_is_that_of_transformers(
    tokenizer: Tokenizer, oracle: Any, tokens: list[int], keep_special: bool
) -> None:
    expected = oracle.decode(tokens, skip_special_tokens=not keep_special, clean_up_tokenization_spaces=False)
    assert tokenizer.decode(tokens, keep_special=keep_special) == expected


def test_special_tokens_are_shown_on_request_and_tags_always(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("<think>a</think><|im_end|>")
    assert tokenizer.decode(tokens) == "<think>a</think>"
    assert tokenizer.decode(tokens, keep_special=True) == "<think>a</think><|im_end|>"
    assert [tokenizer.token(token) for token in tokens] == ["<think>", "a", "</think>", "<|im_end|>"]


def test_ids_beyond_the_vocabulary_are_no_text(tokenizer: Tokenizer) -> None:
    """Models pad their vocabulary, so such an id can be sampled."""
    assert tokenizer.vocab_size == 320
    assert tokenizer.decode([72, 151_935, 73]) == tokenizer.decode([72, 73])
    stream = tokenizer.detokenizer()
    assert [stream.add(token) for token in (72, 151_935, 73)] == [tokenizer.token(72), "", tokenizer.token(73)]


@pytest.mark.parametrize("template", ["qwen3.jinja", "qwen2.5.jinja"])
@pytest.mark.parametrize("chat", CHATS.values(), ids=CHATS)
@pytest.mark.parametrize("tools", [None, [WEATHER, WEATHER]], ids=["plain", "tools"])
@pytest.mark.parametrize("options", [{}, {"enable_thinking": False}, {"add_generation_prompt": False}], ids=str)
def test_prompts_are_those_of_transformers(
    directory: Path, tmp_path: Path, oracle: Any, template: str, chat: list[Any], tools: Any, options: dict[str, Any]
) -> None:
    text = (FIXTURES / template).read_text(encoding="utf-8")
    ours = with_template(directory, tmp_path, text).render(chat, tools, **options)
    options = {"add_generation_prompt": True, **options}
    assert ours == oracle.apply_chat_template(chat, tools, chat_template=text, tokenize=False, **options)


def test_a_whole_prompt(tokenizer: Tokenizer) -> None:
    chat = [*CHATS["system"], {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHo"}, *CHATS["one question"]]
    assert tokenizer.render(chat, enable_thinking=False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n  Hi\n<|im_end|>\n<|im_start|>assistant\nHo"
        "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )


@pytest.mark.parametrize("tools", [None, [WEATHER]], ids=["plain", "tools"])
def test_the_head_ends_where_the_users_words_begin(directory: Path, tmp_path: Path, tools: Any) -> None:
    tokenizer = with_template(directory, tmp_path, (FIXTURES / "qwen3.jinja").read_text(encoding="utf-8"))
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "the fox"}]
    tokens = tokenizer.encode(tokenizer.render(chat, tools))
    head = tokenizer.decode(tokens[: tokenizer.head(chat, tools=tools)], keep_special=True)
    assert head == tokenizer.render(chat, tools).partition("the fox")[0] and head.endswith("<|im_start|>user\n")
    assert tokenizer.head([chat[0], {"role": "assistant", "content": "Ho"}]) == 0
    assert with_template(directory, tmp_path, "{{ raise_exception('no') }}").head(chat) == 0


@pytest.mark.parametrize(
    "template",
    [
        "  {% if true %}\n  x\n  {% endif %}\n y {{- eos_token }}{{ bos_token }}|{{ pad_token }}",
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
        "{{ {'b': 'é<&>', 'a': [1, none]} | tojson }}{{ [1] | tojson(indent=2) }}{{ 'é' | tojson(ensure_ascii=true) }}",
        "{% generation %}{{ messages[0].content }}{% endgeneration %}.",
        "{{ strftime_now('%Y') }}{{ tools is none }}{{ documents is none }}{{ missing is defined }}",
    ],
)
def test_the_template_language_is_that_of_transformers(
    directory: Path, tmp_path: Path, oracle: Any, template: str
) -> None:
    chat = [{"role": "user", "content": "Hi"}, {"role": "user", "content": "Ho"}]
    ours = with_template(directory, tmp_path, template).render(chat)
    assert ours == oracle.apply_chat_template(chat, chat_template=template, tokenize=False, add_generation_prompt=True)


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% if %}",
        "{{ 1 / 0 }}",
        "{{ messages[0].content + 1 }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
    ],
)
def test_a_template_that_fails_or_reaches_out_is_a_value_error(directory: Path, tmp_path: Path, template: str) -> None:
    with pytest.raises(ValueError, match="the chat template (failed|was stopped): "):
        with_template(directory, tmp_path, template).render(CHATS["one question"])


STOPPED = [
    ("{% for i in range(10 ** 9) %}{% endfor %}", "failed: "),
    ("{{ 'a' * 10 ** 9 }}", r"was stopped: it made too much text or too long lists \(limit \d+ characters\); shorten"),
    ("{{ 2 ** 20000 }}", r"was stopped: it made too large an integer \(limit \d+ bits\); shorten"),
    ("{{ '%99999d' % 1 }}", r"was stopped: it made too wide a field \(limit \d+ characters\); shorten"),
    ("x" * 200_000, r"was stopped: it has 200000 characters \(limit 100000\); shorten the messages, or correct"),
    ("{{ raise_exception('no system prompt') }}", "refuses the messages: no system prompt$"),
    ("{% if %}", "failed: Expected an expression"),
]


@pytest.mark.parametrize(("template", "message"), STOPPED, ids=[template[:30] for template, _ in STOPPED])
def test_the_error_says_whether_a_template_refuses_is_stopped_or_fails(
    directory: Path, tmp_path: Path, template: str, message: str
) -> None:
    """Our own limits and Jinja's syntax errors were reported as the template's refusal of the messages."""
    with pytest.raises(ValueError, match=f"the chat template {message}"):
        with_template(directory, tmp_path, template).render(CHATS["one question"])


def test_a_setting_with_a_reserved_name_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="template settings: the name 'messages' is reserved; rename the setting"):
        tokenizer.render(CHATS["one question"], messages=1)


def test_named_templates(directory: Path, tmp_path: Path) -> None:
    names = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "with tools"}]
    tokenizer = with_template(directory, tmp_path, names)
    assert tokenizer.render(CHATS["one question"]) == "plain"
    assert tokenizer.render(CHATS["one question"], [WEATHER]) == "with tools"


def test_a_template_file_comes_before_the_config(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("from the file")
    assert with_template(directory, tmp_path, "from the config").render(CHATS["one question"]) == "from the file"


def test_named_template_files_are_those_of_transformers(directory: Path, tmp_path: Path) -> None:
    """transformers writes one file a template; tools vanished, because only chat_template.jinja was read."""
    (tmp_path / "chat_template.jinja").write_text("plain {{ messages[0].content }}")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("with tools {{ messages[0].content }}")
    ours = with_template(directory, tmp_path, "from the config")
    theirs = AutoTokenizer.from_pretrained(str(tmp_path))
    for tools in (None, [WEATHER]):
        expected = theirs.apply_chat_template(CHATS["one question"], tools=tools, tokenize=False)
        assert ours.render(CHATS["one question"], tools) == expected


def test_a_template_file_that_is_no_text_is_named(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"additional_chat_templates/rag.jinja: expected UTF-8 text"):
        with_template(directory, tmp_path, None)


def test_a_model_with_other_templates_only_says_which(directory: Path, tmp_path: Path) -> None:
    tokenizer = with_template(directory, tmp_path, [{"name": "rag", "template": "x"}])
    with pytest.raises(ValueError, match=r"expected a chat template, found only rag"):
        tokenizer.render(CHATS["one question"])


def test_without_a_template_only_rendering_fails(directory: Path, tmp_path: Path) -> None:
    tokenizer = with_template(directory, tmp_path, None)
    assert tokenizer.decode(tokenizer.encode("the fox")) == "the fox"
    with pytest.raises(ValueError, match=rf"{tmp_path}: expected a chat template, found none; .*chat_template.jinja"):
        tokenizer.render(CHATS["one question"])


@pytest.mark.parametrize("template", [1, {"default": "x"}, ["x"], [{"name": "default"}], [{"template": "x"}]])
def test_a_malformed_template_entry_is_a_value_error(directory: Path, tmp_path: Path, template: Any) -> None:
    with pytest.raises(ValueError, match=r"tokenizer_config.json: chat_template: expected a text or a list"):
        with_template(directory, tmp_path, template)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("Hi", r"messages: expected a list of at least one message, found 'Hi'"),
        ([], r"messages: expected a list of at least one message, found \[\]"),
        ({"role": "user", "content": "Hi"}, r"messages: expected a list"),
        (["Hi"], r"messages\[0\]: expected role and content, found 'Hi'"),
        ([{"content": "Hi"}], r"messages\[0\]: role: expected one of system, user, assistant, tool, found None"),
        ([{"role": "user", "content": "Hi"}, {"role": "bot", "content": ""}], r"messages\[1\]: role: .*found 'bot'"),
        ([{"role": ["user"], "content": "Hi"}], r"messages\[0\]: role"),
        ([{"role": "user"}], r"messages\[0\]: content: expected a text, found None"),
        ([{"role": "user", "content": 3}], r"messages\[0\]: content: expected a text, found 3"),
        ([{"role": "assistant", "content": None}], r"messages\[0\]: content: expected a text, found None"),
    ],
)
def test_a_bad_message_is_named(tokenizer: Tokenizer, messages: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tokenizer.render(messages)


def test_a_tool_call_needs_no_content_and_reasoning_has_two_names(tokenizer: Tokenizer) -> None:
    """Clients send `content: null` with tool calls, and thoughts as `reasoning` or `reasoning_content`."""
    chat = [*CHATS["one question"], {"role": "assistant", "content": None, "reasoning": "look", "tool_calls": [CALL]}]
    prompt = tokenizer.render(chat, add_generation_prompt=False)
    assert prompt.endswith(
        '<|im_start|>assistant\n<think>\nlook\n</think>\n\n<tool_call>\n{"name": "weather", "arguments": '
        '{"city": "Zürich", "days": 2}}\n</tool_call><|im_end|>\n'
    )


def test_no_content_is_an_empty_one_to_the_template(directory: Path, tmp_path: Path) -> None:
    """Older templates join texts and fail on None."""
    tokenizer = with_template(directory, tmp_path, "{{ messages[0].content + '.' }}")
    for message in ({"content": None}, {}):
        assert tokenizer.render([{"role": "assistant", "tool_calls": [CALL], **message}]) == "."


@given(tokens=st.lists(st.integers(0, 330), max_size=60), keep_special=st.booleans())
@settings(derandomize=True, max_examples=300, deadline=None)
def test_streamed_bytes_are_the_whole_text(tokenizer: Tokenizer, tokens: list[int], keep_special: bool) -> None:
    stream = tokenizer.detokenizer(keep_special=keep_special)
    pieces = [stream.add(token) for token in tokens]
    assert "".join(pieces) + stream.finish() == tokenizer.decode(tokens, keep_special=keep_special)


@given(text=st.text(max_size=40) | st.sampled_from(TEXTS))
@settings(derandomize=True, max_examples=200, deadline=None)
def test_streamed_text_is_the_whole_text_and_never_half_a_character(tokenizer: Tokenizer, text: str) -> None:
    tokens = tokenizer.encode(text)
    stream = tokenizer.detokenizer(keep_special=True)
    pieces = [stream.add(token) for token in tokens]
    whole = tokenizer.decode(tokens, keep_special=True)
    assert "".join(pieces) + stream.finish() == whole
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


def test_text_streams_at_once_and_a_cut_character_comes_at_the_end(tokenizer: Tokenizer) -> None:
    stream = tokenizer.detokenizer()
    tokens = tokenizer.encode("the fox 🙂")
    pieces = [stream.add(token) for token in tokens[:-1]]
    assert pieces == [*(tokenizer.token(token) for token in tokens[:-4]), "", "", ""]
    assert stream.finish() == "\ufffd"
    assert tokenizer.decode(tokens[:-1]) == "the fox \ufffd"


def eos_tokenizer(directory: Path, target: Path, files: dict[str, dict[str, Any]]) -> Tokenizer:
    (target / "tokenizer.json").write_bytes((directory / "tokenizer.json").read_bytes())
    for name, data in files.items():
        write_json(target / f"{name}.json", data)
    return Tokenizer.from_dir(target)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"generation_config": {"eos_token_id": [5, 6]}, "config": {"eos_token_id": 7}}, {5, 6}),
        ({"generation_config": {}, "config": {"eos_token_id": 7}, "tokenizer_config": {"eos_token": "a"}}, {7}),
        ({"config": {"eos_token_id": None}, "tokenizer_config": {"eos_token": "<|im_end|>"}}, {313}),
        ({"tokenizer_config": {"eos_token": {"content": "<|endoftext|>", "special": True}}}, {311}),
        ({"tokenizer_config": {"eos_token": "no such token"}}, set()),
        ({}, set()),
    ],
)
def test_end_tokens(directory: Path, tmp_path: Path, files: dict[str, Any], expected: set[int]) -> None:
    assert eos_tokenizer(directory, tmp_path, files).eos_token_ids == expected


@pytest.mark.parametrize("value", ["<|im_end|>", [], [1, "2"], True, -1, 1.0, {}])
def test_a_bad_end_token_is_named(directory: Path, tmp_path: Path, value: Any) -> None:
    with pytest.raises(ValueError, match=r"generation_config.json: eos_token_id: expected a token id or a list"):
        eos_tokenizer(directory, tmp_path, {"generation_config": {"eos_token_id": value}})


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff\xfe", b'{"model": {"type": "Nonsense"}}'])
def test_a_broken_tokenizer_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"{tmp_path}/tokenizer.json: expected a (file|tokenizer), found"):
        Tokenizer.from_dir(tmp_path)


def adding(directory: Path, target: Path, single: str, config: dict[str, Any]) -> Tokenizer:
    """A tokenizer whose post-processor makes `single` of each text."""
    stored = make_tokenizer()
    special = [(text, stored.token_to_id(text)) for text in ("<|endoftext|>", "<|im_end|>")]
    if single:
        stored.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    stored.save(str(target / "tokenizer.json"))
    fields = json.loads((directory / "tokenizer_config.json").read_text())
    names = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    write_json(target / "tokenizer_config.json", {**fields, **names, **config})
    return Tokenizer.from_dir(target)


@pytest.mark.parametrize("single", ["", "$A", "<|endoftext|> $A", "$A <|im_end|>", "<|endoftext|> $A <|im_end|>"])
@pytest.mark.parametrize(
    "config", [{}, {"add_bos_token": True}, {"add_bos_token": False, "add_eos_token": True}, {"add_eos_token": False}]
)
@pytest.mark.parametrize("text", ["hello", "", "<think> é"])
def test_a_raw_text_gets_what_transformers_adds(
    directory: Path, tmp_path: Path, single: str, config: dict[str, Any], text: str
) -> None:
    """tokenizer.json's post-processor alone decides, as in transformers; add_bos_token is for models without it."""
    ours = adding(directory, tmp_path, single, config)
    theirs = AutoTokenizer.from_pretrained(str(tmp_path))
    assert ours.encode(text, add_special_tokens=True) == theirs(text).input_ids
    assert ours.encode(text) == theirs(text, add_special_tokens=False).input_ids


def test_nothing_is_added_twice_or_to_a_rendered_text(directory: Path, tmp_path: Path) -> None:
    ours = adding(directory, tmp_path, "<|endoftext|> $A <|im_end|>", {})
    once = ours.encode("hello", add_special_tokens=True)
    assert ours.encode("<|endoftext|>hello", add_special_tokens=True) == once
    assert ours.encode("hello<|im_end|>", add_special_tokens=True) == once
    rendered = ours.render(CHATS["one question"])
    assert ours.encode(rendered, add_special_tokens=True) == ours.encode(rendered) == ours.encode(str(rendered))


@pytest.mark.parametrize("prompt", [None, 3, 2.5, b"hi", ["hi"], {"a": 1}])
def test_a_prompt_that_is_no_text_is_named(tokenizer: Tokenizer, prompt: Any) -> None:
    with pytest.raises(ValueError, match=r"prompt: expected a text, found"):
        tokenizer.encode(prompt)


def test_half_a_character_is_named(tokenizer: Tokenizer) -> None:
    """The library called it a TextInputSequence that must be str."""
    with pytest.raises(ValueError, match=r"prompt: expected text, found half a character .*U\+D800\) at character 2"):
        tokenizer.encode("ab\ud800")


def test_a_text_that_is_too_long_is_refused_before_it_is_tokenized(tokenizer: Tokenizer) -> None:
    start = time.thread_time()
    with pytest.raises(ValueError, match=r"prompt: expected at most 512 tokens, found at least \d+; shorten"):
        tokenizer.encode("the fox " * 1_250_000, limit=512)
    assert time.thread_time() - start < 2  # tokenizing takes more than ten


@given(text=st.text(max_size=60) | st.sampled_from(TEXTS) | st.just("e\u0301" * 30) | st.just("<|im_start|>" * 9))
@settings(derandomize=True, max_examples=150, deadline=None)
def test_the_limit_is_exact(tokenizer: Tokenizer, text: str) -> None:
    """Also where normalization makes the text shorter."""
    count = len(tokenizer.encode(text))
    assert tokenizer.encode(text, limit=count) == tokenizer.encode(text)
    if count:
        with pytest.raises(ValueError, match=rf"expected at most {count - 1} tokens"):
            tokenizer.encode(text, limit=count - 1)


def test_truncation_and_padding_of_the_file_do_not_count(directory: Path, tmp_path: Path) -> None:
    """Some published tokenizer.json files still hold the settings of a training run."""
    stored = json.loads((directory / "tokenizer.json").read_text())
    stored["truncation"] = {"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    write_json(tmp_path / "tokenizer.json", stored)
    tokenizer = Tokenizer.from_dir(tmp_path)
    assert tokenizer.decode(tokenizer.encode("the quick brown fox")) == "the quick brown fox"


def test_a_copied_stream_goes_on_alone_and_shares_the_vocabulary(tmp_path: Path) -> None:
    """A copy of the library's tokenizer came with each: milliseconds for a small vocabulary, seconds for a large."""
    tokenizer = Tokenizer.from_dir(make_model(tmp_path))
    first, *rest = tokenizer.encode("🙂")
    stream = tokenizer.detokenizer()
    assert stream.add(first) == ""
    other = copy.deepcopy(stream)
    assert other.pieces is stream.pieces
    for each in (stream, other):
        assert "".join(each.add(token) for token in rest) == "🙂"

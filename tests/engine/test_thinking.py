"""A chat template that opens a thought: stop strings and grammars bind behind it, in every way to an answer."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support import make_model, tokenizer_config, write_json
from tiny_llm import LLM, SamplingParams, load
from tiny_llm.config import Structured
from tiny_llm.decode.thought import CLOSE
from tiny_llm.engine.serving import Engine

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
CHAT = [{"role": "user", "content": "hello"}]
DIGITS = Structured("regex", "[0-9]{4}")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make_model(tmp_path_factory.mktemp("model"))
    write_json(path / "tokenizer_config.json", tokenizer_config(512) | {"chat_template": TEMPLATE})
    return path


@pytest.fixture(scope="module")
def llm(path: Path) -> LLM:
    return load(path)


def ways(llm: LLM, path: Path, params: SamplingParams) -> list[tuple[str, str]]:
    """Text and finish reason: alone, as a list, from the engine."""
    answers = [llm.generate(CHAT, params), *llm.generate([CHAT], params)]
    with Engine(path) as engine:
        answers += engine.generate([CHAT], params)[0]
    return [(answer.text, answer.finish_reason) for answer in answers]


def test_a_stop_string_in_the_thought_does_not_end_the_answer(llm: LLM, path: Path) -> None:
    params = SamplingParams(max_tokens=60, temperature=0.0, ignore_eos=True)
    thought = llm.generate(CHAT, params).text
    stop = next(thought[i : i + 3] for i in range(6, 60) if thought[i : i + 3].isascii())
    assert ways(llm, path, replace(params, stop=(stop,))) == [(thought, "length")] * 3
    raw = llm.generate(llm.encode(CHAT), replace(params, stop=(stop,)))  # token ids: nobody knows of a thought
    assert raw.finish_reason == "stop" and stop not in raw.text


def test_a_stop_string_behind_the_thought_ends_the_answer(llm: LLM, path: Path) -> None:
    close = llm.encode(CLOSE)[0]
    params = SamplingParams(max_tokens=60, seed=3, ignore_eos=True, logit_bias={close: 9.0}, stop=("e", "a", "t"))
    texts = ways(llm, path, params)
    assert len(set(texts)) == 1 and texts[0][1] == "stop"
    _, tag, answer = texts[0][0].partition(CLOSE)
    assert tag and not set(answer) & set("eat")


def test_a_form_binds_behind_the_thought(llm: LLM, path: Path) -> None:
    """It bound from the first token: a model that thinks had to answer without a thought."""
    pytest.importorskip("llguidance")
    close = llm.encode(CLOSE)[0]
    params = SamplingParams(max_tokens=400, seed=5, structured=DIGITS, logit_bias={close: 4.0})
    texts = ways(llm, path, params)
    assert len(set(texts)) == 1 and texts[0][1] == "stop"
    thought, tag, answer = texts[0][0].partition(CLOSE)
    assert tag and thought and not thought.isdigit()
    assert answer.isdigit() and len(answer) == 4


def test_a_thought_does_not_end_the_text_before_its_form(llm: LLM, path: Path) -> None:
    pytest.importorskip("llguidance")
    eos = dict.fromkeys(llm.tokenizer.eos_token_ids, 100.0)
    params = SamplingParams(max_tokens=30, seed=5, structured=DIGITS, logit_bias=eos)
    assert [reason for _, reason in ways(llm, path, params)] == ["length"] * 3


def test_white_space_of_json_ends(path: Path) -> None:
    """A model that likes line breaks wrote them to the end of its tokens, and no JSON."""
    pytest.importorskip("llguidance")
    plain = load(make_model(path.parent / "plain"))
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}, "b": {"type": "array", "items": {"const": 1}}}}
    schema |= {"required": ["a"], "additionalProperties": False}
    for character in "\n \t\r":
        token = plain.encode(character)[0]
        form = Structured("json_schema", json.dumps(schema))
        answer = plain.generate("x", SamplingParams(max_tokens=200, seed=1, logit_bias={token: 100.0}, structured=form))
        assert answer.finish_reason == "stop", answer.text
        assert isinstance(json.loads(answer.text), dict)
    own = Structured("json_schema", json.dumps(schema | {"x-guidance": {"whitespace_flexible": False}}))
    assert not set("\n ") & set(plain.generate("x", SamplingParams(max_tokens=90, seed=1, structured=own)).text)

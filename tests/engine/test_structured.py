"""Structured output: every answer of a random model has the form that was asked for."""

import json
import re
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

pytest.importorskip("llguidance")

from tests.engine.test_loop import make_loop, outputs_of, request, run, summary
from tests.support import make_model
from tiny_llm import LLM, SamplingParams, load
from tiny_llm.config import Structured
from tiny_llm.decode.structured import Grammars, mask_logits

SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["fox", "dog"]}, "legs": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["name", "legs"],
    "additionalProperties": False,
}
ANIMAL = Structured("json_schema", json.dumps(SCHEMA))
DATE = Structured("regex", r"\d{4}-\d\d")
SUM = Structured("lark", 'start: NUMBER ("+" NUMBER)+\nNUMBER: /[0-9]{1,3}/')


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    return load(make_model(tmp_path_factory.mktemp("model")))


def asks(form: Structured | None, seed: int = 0, **settings) -> SamplingParams:
    return SamplingParams(max_tokens=60, seed=seed, structured=form, **settings)


def fits(form: Structured | None, text: str) -> bool:
    if form is ANIMAL:
        value = json.loads(text)
        return value["name"] in ("fox", "dog") and 1 <= value["legs"] <= 9 and len(value) == 2
    pattern = {DATE: r"\d{4}-\d\d", SUM: r"\d{1,3}(\+\d{1,3})+"}[form]
    return re.fullmatch(pattern, text) is not None


def test_every_form_beside_others_and_beside_none(llm: LLM) -> None:
    forms = [ANIMAL, DATE, SUM, None]
    requests = [request(llm, f"{i}", range(i, i + 9), asks(forms[i % 4], i, n=1 + i % 2)) for i in range(12)]
    got = run(make_loop(llm), requests)
    ended = 0
    for i, one in enumerate(requests):
        for deltas in got[one.id].values():
            _, text, reason = summary(deltas)
            if forms[i % 4] is not None and reason == "stop":
                ended += 1
                assert fits(forms[i % 4], text), text
    assert ended >= 8


@pytest.mark.parametrize("blocks", [12, 200])
def test_the_same_seed_gives_the_same_form_whatever_happens(llm: LLM, blocks: int) -> None:
    """Also after a preemption, which sends the sequence through the pool again and its matcher not."""
    mine = request(llm, "mine", range(8), asks(ANIMAL, 3))
    others = [request(llm, f"n{i}", range(i, i + 8), asks(None, i)) for i in range(3)]
    blocks = max(blocks, 20)
    together = run(make_loop(llm, blocks=blocks), [*others, mine])["mine"][0]
    assert summary(together) == summary(run(make_loop(llm), [mine])["mine"][0])


def test_one_prompt_alone(llm: LLM) -> None:
    answer = llm.generate("the quick", asks(DATE, 1, temperature=0.5))
    assert answer.finish_reason == "stop" and fits(DATE, answer.text)
    assert llm.last_stats.generated_tokens == len(answer.tokens)
    both = llm.generate(["the quick", "the lazy"], asks(DATE, 1, logprobs=2))
    assert all(fits(DATE, one.text) for one in both)
    assert all(np.isfinite(step.logprob) for one in both for step in one.logprobs)


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        ("json_schema", '{"type": 5}', "faulty one: type must be"),
        ("json_schema", '{"type"', "found no JSON"),
        ("regex", "(a", "(?s)expected a regex.*unclosed group"),
        ("lark", "start: nobody", "expected a lark"),
        ("yaml", "a", "one of json_schema, regex, lark, found 'yaml'"),
        ("regex", "", "expected a text"),
    ],
)
def test_faulty_forms_are_refused_at_admission(llm: LLM, kind: str, text: str, words: str) -> None:
    loop = make_loop(llm)
    with pytest.raises(ValueError, match=words):
        loop.add(request(llm, "bad", range(5), asks(Structured(kind, text))))
    assert not loop.has_work


def test_contradictory_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="ignore_eos: a structured answer ends"):
        asks(DATE, ignore_eos=True)
    with pytest.raises(ValueError, match="structured: beam search"):
        SamplingParams(beam_width=2, structured=DATE)
    with pytest.raises(ValueError, match="structured: expected a Structured, found 'json'"):
        SamplingParams(structured="json")


def test_a_matcher_at_fault_fails_its_request_alone(llm: LLM) -> None:
    loop = make_loop(llm)
    loop.add(request(llm, "bad", range(5), asks(SUM)))
    loop.add(request(llm, "good", range(9), replace(asks(None), ignore_eos=True)))
    outputs = [output for _ in range(4) for output in loop.step()]
    (form,) = loop.runner.draw.forms.rules.values()
    form.matcher.consume_token(7)
    outputs += outputs_of(loop)
    (error,) = [output for output in outputs if output.error]
    assert error.request_id == "bad" and "can't go on" in str(error.error)
    assert len([output for output in outputs if output.request_id == "good"]) == 60


def test_the_mask_is_that_of_the_bits() -> None:
    logits = mx.random.normal((3, 70), key=mx.random.key(0))
    allowed = np.random.default_rng(0).random((3, 96)) < 0.5
    bits = np.packbits(allowed, axis=1, bitorder="little").view(np.int32)
    got = np.array(mask_logits(logits, mx.array(bits)))
    np.testing.assert_array_equal(got, np.where(allowed[:, :70], np.array(logits), -np.inf))


def test_without_the_library_it_says_what_to_install(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(ValueError, match=r'pip install "tiny-llm\[structured\]"'):
        Grammars(llm.tokenizer, llm.config.vocab_size).matcher(DATE)

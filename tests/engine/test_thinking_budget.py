"""A thought that has used up its budget is closed by force, in every way to an answer, and the answer goes on."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.engine.test_loop import make_loop, run, summary
from tests.support import make_model, tokenizer_config, write_json
from tiny_llm import LLM, SamplingParams, load
from tiny_llm.config import EngineConfig, Structured
from tiny_llm.config.speculation import SpeculationConfig
from tiny_llm.decode.thinking_budget import end_of_thought
from tiny_llm.engine.request import Request
from tiny_llm.engine.serving import Engine

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
CHAT = [{"role": "user", "content": "hello"}]
CLOSED = "\n</think>\n\n"
FREE = SamplingParams(max_tokens=40, seed=5, ignore_eos=True, logit_bias={}, temperature=1.0)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make_model(tmp_path_factory.mktemp("model"))
    write_json(path / "tokenizer_config.json", tokenizer_config(512) | {"chat_template": TEMPLATE})
    return path


@pytest.fixture(scope="module")
def llm(path: Path) -> LLM:
    return load(path)


def asked(llm: LLM, name: str, params: SamplingParams) -> Request:
    return llm.builder.request(name, CHAT, params)


def thought_of(llm: LLM, tokens: list[int]) -> list[int]:
    """The tokens before the ending, which the answer must have."""
    ending = list(end_of_thought(llm.tokenizer).closing)
    for place in range(len(tokens)):
        if tokens[place : place + len(ending)] == ending:
            return tokens[:place]
    raise AssertionError(f"no ending in {tokens}")


def test_the_ending_is_that_of_the_template(llm: LLM) -> None:
    end = end_of_thought(llm.tokenizer)
    assert llm.tokenizer.decode(end.closing) == CLOSED
    assert llm.tokenizer.decode(end.closing_empty) == f"\n{CLOSED}"
    assert end_of_thought(replace(llm.tokenizer, templates={})) == end


@pytest.mark.parametrize("budget", [0, 1, 2, 7])
def test_a_thought_has_as_many_tokens_as_its_budget(llm: LLM, budget: int) -> None:
    free = llm.generate(CHAT, FREE)
    bound = llm.generate(CHAT, replace(FREE, thinking_budget=budget))
    assert "</think>" not in free.text
    assert thought_of(llm, bound.tokens) == free.tokens[:budget]
    assert len(bound.tokens) == 40 and bound.text.count("</think>") == 1


def test_a_thought_that_ends_before_is_left_alone(llm: LLM) -> None:
    close = llm.encode("</think>")[0]
    params = replace(FREE, logit_bias={close: 8.0})
    free = llm.generate(CHAT, params)
    assert close in free.tokens[:20]
    assert llm.generate(CHAT, replace(params, thinking_budget=30)).tokens == free.tokens


def test_a_thought_that_the_model_opens_is_bound(llm: LLM) -> None:
    open_, close = (llm.tokenizer.encode(tag)[0] for tag in ("<think>", "</think>"))
    prompt = llm.encode("hello")
    params = replace(FREE, logit_bias={open_: 50.0, close: -100.0}, max_tokens=12)
    bound = llm.generate(prompt, replace(params, thinking_budget=3))
    ending = list(end_of_thought(llm.tokenizer).closing)
    assert bound.tokens[0] == open_ and bound.tokens[4 : 4 + len(ending)] == ending
    empty = llm.generate(prompt, replace(params, thinking_budget=0))
    assert empty.text.startswith("<think>\n\n</think>\n\n")
    plain = replace(FREE, max_tokens=12)
    assert llm.generate(prompt, replace(plain, thinking_budget=3)).tokens == llm.generate(prompt, plain).tokens


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_way_to_an_answer_gives_the_same(llm: LLM, path: Path, temperature: float) -> None:
    params = replace(FREE, thinking_budget=6, n=2, temperature=temperature)
    alone = [answer.tokens for answer in llm.generate(CHAT, params)]
    assert [answer.tokens for answer in llm.generate([CHAT], params)] == alone
    lesson = load(path, lesson=True)
    assert [answer.tokens for answer in lesson.generate(CHAT, params)] == alone
    with Engine(path) as engine:
        assert [answer.tokens for answer in engine.generate([CHAT], params)[0]] == alone


def test_batches_and_preemption_change_nothing(llm: LLM) -> None:
    budgets = [None, 0, 3, 9, 20]
    asks = [replace(FREE, seed=i, thinking_budget=budget) for i, budget in enumerate(budgets)]
    requests = [asked(llm, f"{i}", params) for i, params in enumerate(asks)]
    solo = [summary(run(make_loop(llm), [one])[one.id][0]) for one in requests]
    for blocks in (20, 200):
        loop = make_loop(llm, blocks=blocks)
        got = run(loop, requests)
        assert [summary(got[one.id][0]) for one in requests] == solo
        assert len(loop.runner.draw.forms.rules) == 0


def test_steps_are_built_ahead_while_no_token_can_be_forced(llm: LLM) -> None:
    loop = make_loop(llm)
    run(loop, [asked(llm, "a", replace(FREE, thinking_budget=12))])
    plain = make_loop(llm)
    run(plain, [asked(llm, "a", FREE)])
    assert loop.runner.ready >= plain.runner.ready - 8


@pytest.mark.parametrize("drafter", ["suffix", "lookahead"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_drafts_are_verified_under_the_forcing(llm: LLM, path: Path, drafter: str, temperature: float) -> None:
    params = replace(FREE, thinking_budget=9, n=2, temperature=temperature, max_tokens=60)
    expected = [answer.tokens for answer in llm.generate(CHAT, params)]
    config = EngineConfig(speculation=SpeculationConfig(drafter, adaptive=False))
    guessing = load(path, config=config)
    for _ in range(2):  # the second time the suffixes of the first answer are known
        assert [answer.tokens for answer in guessing.generate(CHAT, params)] == expected
    assert guessing.speculation.drafts > 0


def test_a_grammar_begins_behind_the_forced_ending(llm: LLM) -> None:
    pytest.importorskip("llguidance")
    form = Structured("json_schema", json.dumps({"type": "object", "properties": {}, "additionalProperties": False}))
    for budget in (0, 4):
        params = SamplingParams(max_tokens=60, seed=1, structured=form, thinking_budget=budget)
        answer = llm.generate(CHAT, params)
        _, _, text = answer.text.partition(CLOSED)
        assert answer.finish_reason == "stop" and json.loads(text) == {}
        assert len(thought_of(llm, answer.tokens)) == budget


def test_a_grammar_that_has_the_thought_in_it_takes_the_ending(llm: LLM) -> None:
    pytest.importorskip("llguidance")
    form = Structured("lark", 'start: <think> /[a-z ]*/ "\\n"? </think> /\\n*/ "yes"')
    params = SamplingParams(max_tokens=60, seed=1, structured=form, thinking_budget=4)
    answer = llm.generate(llm.encode("hello"), params)
    assert answer.finish_reason == "stop" and CLOSED in answer.text
    barred = Structured("lark", "start: <think> /[a-z ]{99}/")
    answer = llm.generate(llm.encode("hello"), replace(params, structured=barred))
    assert "</think>" not in answer.text


def test_an_ending_that_the_grammar_forbids_at_first_comes_later(llm: LLM) -> None:
    """In the middle of a character no tag may come. The budget was then given up, and the thought had no end."""
    pytest.importorskip("llguidance")
    form = Structured("lark", 'start: <think> /([a-z]{5})+/ "\\n"? </think> /\\n*/ "yes"')
    for seed in range(4):
        params = SamplingParams(max_tokens=60, seed=seed, structured=form, thinking_budget=4)
        answer = llm.generate(llm.encode("hello"), params)
        assert answer.finish_reason == "stop" and answer.text.endswith("yes")
        assert answer.tokens.index(llm.encode("</think>")[0]) <= 12


@pytest.mark.parametrize("budget", [-1, 1.5, "7", True, float("nan")])
def test_a_budget_that_is_none_is_refused(budget: object) -> None:
    with pytest.raises(ValueError, match="thinking_budget: expected an integer from 0 to"):
        SamplingParams(thinking_budget=budget)  # type: ignore[arg-type]


def test_beam_search_has_no_budget() -> None:
    with pytest.raises(ValueError, match="thinking_budget: beam search can't do that yet"):
        SamplingParams(beam_width=2, thinking_budget=4)

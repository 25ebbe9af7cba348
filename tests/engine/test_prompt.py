"""From a prompt and its settings to a checked request, in any thread and without the façades."""

import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import tiny_llm.engine
from tests.support import make_model
from tiny_llm import LLM, SamplingParams, load
from tiny_llm.config import SchedulerConfig
from tiny_llm.config.serving import ServingConfig
from tiny_llm.engine.prompt import RequestBuilder
from tiny_llm.engine.serving import Engine

CHAT = [{"role": "system", "content": "the answer is fine"}, {"role": "user", "content": "hello there"}]
ENGINE = Path(tiny_llm.engine.__file__).parent  # type: ignore[arg-type]
GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
SERVING = ServingConfig(kv_bytes=2**20, block_size=8, scheduler=SchedulerConfig(token_budget=64, max_sequences=8))


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    return load(make_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def builder(llm: LLM) -> RequestBuilder:
    return RequestBuilder(llm.tokenizer, {"temperature": 0.5, "top_k": 7}, 64, 320)


def test_a_request_has_all_that_the_loop_needs(llm: LLM, builder: RequestBuilder) -> None:
    request = builder.request("a", CHAT, SamplingParams(max_tokens=500, stop_token_ids=(9,)))
    tokens = llm.encode(CHAT)
    assert request.tokens == tuple(tokens) and request.params.max_tokens == 64 - len(tokens)
    assert request.stop_tokens == {9} | llm.tokenizer.eos_token_ids
    assert 0 < request.head < len(tokens) and not request.in_thought
    assert builder.request("b", [1, 2], GREEDY).stop_tokens == frozenset()


def test_terms_are_checked_without_the_prompt(builder: RequestBuilder) -> None:
    terms = builder.terms(None, {"priority": 3, "tenant": "a", "deadline": 2, "max_tokens": 5}, 100.0)
    assert (terms.priority, terms.tenant, terms.deadline, terms.arrival) == (3, "a", 102.0, 100.0)
    assert (terms.params.temperature, terms.params.top_k, terms.params.max_tokens) == (0.5, 7, 5)
    request = builder.served("a", "hello", terms)
    assert (request.priority, request.tenant, request.deadline, request.arrival) == (3, "a", 102.0, 100.0)
    bare = builder.terms(GREEDY, {}, 1.0)
    assert bare.params is GREEDY and (bare.priority, bare.tenant, bare.deadline) == (0, "default", None)


BAD: list[tuple[Any, dict[str, Any], str]] = [
    (GREEDY, {"top_k": 3}, "top_k: expected either a SamplingParams or single settings"),
    (None, {"temprature": 1}, "temprature: unknown"),
    (5, {}, "params: expected SamplingParams, found 5"),
    (None, {"template": [1]}, "template: expected"),
    (None, {"template": {1: 2}}, "template: expected"),
    (None, {"deadline": float("inf")}, "deadline: expected"),
    (SamplingParams(stop_token_ids=(320,)), {}, "stop_token_ids"),
]


@pytest.mark.parametrize(("params", "options", "words"), BAD, ids=range(len(BAD)))
def test_bad_terms_are_named(builder: RequestBuilder, params: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        builder.terms(params, options, 0.0)


def test_many_threads_build_the_same_request(builder: RequestBuilder) -> None:
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(builder.request("a", CHAT, GREEDY))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == [builder.request("a", CHAT, GREEDY)] * 8


def test_a_served_request_enters_no_other_facade(llm: LLM) -> None:
    entered: set[str] = set()

    def trace(frame: Any, *_: Any) -> None:
        entered.add(frame.f_code.co_filename)

    threading.setprofile(trace)
    try:
        engine = Engine(llm.path, serving=SERVING)
    finally:
        threading.setprofile(None)
    with engine:
        entered.clear()  # what loading entered
        sys.setprofile(trace)
        try:
            assert len(list(engine.stream(CHAT, GREEDY))) == 12
        finally:
            sys.setprofile(None)
    assert str(ENGINE / "llm.py") not in entered
    assert {str(ENGINE / f"{name}.py") for name in ("prompt", "loop", "worker")} <= entered

"""/v1/chat/completions and /v1/completions with the openai client."""

import asyncio
import json

import openai
import pytest

from tests.server.conftest import Running
from tiny_llm import load

QUESTION = [{"role": "user", "content": "What is a KV cache?"}]


@pytest.fixture(scope="module")
def client(pocket: Running) -> openai.OpenAI:
    return pocket.client()


def test_an_answer_is_that_of_the_library(client: openai.OpenAI) -> None:
    llm = load()
    expected = llm.generate(QUESTION, temperature=0, max_tokens=60)
    answer = client.chat.completions.create(model="pocket", messages=QUESTION, temperature=0, max_tokens=60)
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")
    assert answer.choices[0].message.content == expected.text.rpartition("</think>")[2].strip()
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == expected.finish_reason
    assert answer.usage.prompt_tokens == expected.stats.prompt_tokens
    assert answer.usage.completion_tokens == len(expected.tokens)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_streamed_answer_is_the_whole_one(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="pocket", messages=QUESTION, temperature=0, n=2)
    texts, reasons, usage = ["", ""], [None, None], None
    options = {"include_usage": True}
    stream = client.chat.completions.create(
        model="pocket", messages=QUESTION, temperature=0, n=2, stream=True, stream_options=options
    )
    for chunk in stream:
        assert chunk.object == "chat.completion.chunk"
        usage = chunk.usage or usage
        for choice in chunk.choices:
            assert usage is None
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert usage.completion_tokens == whole.usage.completion_tokens


def test_the_raw_events_are_those_of_the_api(pocket: Running) -> None:
    body = {"model": "pocket", "messages": QUESTION, "max_tokens": 3, "stream": True, "temperature": 0}
    with pocket.http() as http:
        response = http.post("/v1/chat/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = response.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-1]["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}
    assert all("usage" not in chunk for chunk in chunks)
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_a_second_turn_finds_its_prefix_in_the_cache(client: openai.OpenAI) -> None:
    messages = [{"role": "system", "content": "You are a helper. " * 8}, *QUESTION]
    first = client.chat.completions.create(model="pocket", messages=messages, temperature=0)
    messages += [{"role": "assistant", "content": first.choices[0].message.content}, *QUESTION]
    second = client.chat.completions.create(model="pocket", messages=messages, temperature=0)
    assert second.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens - 8


def test_settings_are_honoured(client: openai.OpenAI) -> None:
    def answer(**settings: object) -> str:
        found = client.chat.completions.create(model="pocket", messages=QUESTION, max_tokens=20, **settings)
        return found.choices[0].message.content

    greedy = answer(temperature=0)
    assert answer(temperature=2, seed=7) == answer(temperature=2, seed=7) != answer(temperature=2, seed=8)
    assert answer(temperature=2, extra_body={"top_k": 1}) == greedy
    assert answer(temperature=0, stop=greedy.split()[2]) == greedy.partition(greedy.split()[2])[0]
    assert answer(temperature=2, top_p=0.0) == greedy
    first = client.post("/../tokenize", body={"prompt": greedy}, cast_to=dict)["tokens"][0]
    assert not answer(temperature=0, logit_bias={str(first): -100}).startswith(greedy.split()[0])


def test_log_probabilities(client: openai.OpenAI) -> None:
    found = client.chat.completions.create(
        model="pocket",
        messages=QUESTION,
        temperature=0,
        max_tokens=5,
        logprobs=True,
        top_logprobs=3,
        reasoning_effort="none",
    )
    content = found.choices[0].logprobs.content
    assert "".join(token.token for token in content) == found.choices[0].message.content
    assert bytes(byte for token in content for byte in token.bytes).decode() == found.choices[0].message.content
    for token in content:
        assert len(token.top_logprobs) == 3
        assert (token.top_logprobs[0].token, token.top_logprobs[0].logprob) == (token.token, token.logprob)


def test_a_form_is_enforced(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 10}, "age": {"type": "integer", "maximum": 150}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}}
    found = client.chat.completions.create(model="pocket", messages=QUESTION, response_format=form, max_tokens=100)
    assert set(json.loads(found.choices[0].message.content)) == {"name", "age"}
    plain = {"type": "json_object"}
    found = client.chat.completions.create(model="pocket", messages=QUESTION, response_format=plain, max_tokens=200)
    assert found.choices[0].finish_reason == "length" or isinstance(json.loads(found.choices[0].message.content), dict)


def test_completions_with_several_prompts(client: openai.OpenAI) -> None:
    prompts = ["The KV cache", "Attention is"]
    alone = [client.completions.create(model="pocket", prompt=text, temperature=0, n=2) for text in prompts]
    both = client.completions.create(model="pocket", prompt=prompts, temperature=0, n=2)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in both.choices] == [choice.text for one in alone for choice in one.choices]
    assert both.usage.completion_tokens == sum(one.usage.completion_tokens for one in alone)
    texts = [""] * 4
    for chunk in client.completions.create(model="pocket", prompt=prompts, temperature=0, n=2, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in both.choices]


def test_completions_echo_and_log_probabilities(client: openai.OpenAI) -> None:
    plain = client.completions.create(model="pocket", prompt="Hello", temperature=0, max_tokens=4, logprobs=2)
    logprobs = plain.choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == 4
    assert logprobs.text_offset[0] == 0
    echo = client.completions.create(model="pocket", prompt="Hello", temperature=0, max_tokens=4, echo=True)
    assert echo.choices[0].text == "Hello" + plain.choices[0].text


def test_many_clients_at_once(pocket: Running) -> None:
    async def ask_all() -> list[str]:
        client = openai.AsyncOpenAI(base_url=f"{pocket.url}/v1", api_key="none", max_retries=0)

        async def ask(number: int) -> str:
            if number % 2:
                found = await client.chat.completions.create(model="pocket", messages=QUESTION, temperature=0)
                return found.choices[0].message.content
            stream = await client.chat.completions.create(model="pocket", messages=QUESTION, temperature=0, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        async with client:
            return await asyncio.gather(*map(ask, range(16)))

    assert len(set(asyncio.run(ask_all()))) == 1


def test_usage_comes_with_every_chunk_where_asked(client: openai.OpenAI) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    stream = client.chat.completions.create(
        model="pocket",
        messages=QUESTION,
        temperature=0,
        max_tokens=4,
        stream=True,
        extra_body={"stream_options": options},
    )
    counts = [chunk.usage.completion_tokens for chunk in stream]
    assert counts == sorted(counts) and counts[-1] == 4


def test_metrics_come_on_request(client: openai.OpenAI) -> None:
    found = client.chat.completions.create(model="pocket", messages=QUESTION, extra_body={"return_metrics": True})
    metrics = found.model_extra["metrics"]
    assert metrics["time_to_first_token"] > 0 and metrics["speculative_decoding"] is None
    for create in (client.chat.completions.create, client.completions.create):
        prompt = {"messages": QUESTION} if create == client.chat.completions.create else {"prompt": "Hello"}
        *_, last = create(model="pocket", **prompt, stream=True, extra_body={"return_metrics": True})
        assert last.choices == [] and last.model_extra["metrics"]["time_to_first_token"] > 0

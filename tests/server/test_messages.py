"""/v1/messages and /v1/messages/count_tokens with the anthropic client."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anthropic
import httpx
import pytest

from tests.server.conftest import LOCAL, SERVING, Running, serving, wait_for
from tiny_llm import load
from tiny_llm.config import SchedulerConfig
from tiny_llm.server.keys import add_key
from tiny_llm.server.models import ModelSpec

QUESTION = [{"role": "user", "content": "What is a KV cache?"}]
SUM = [{"role": "user", "content": "What is 17 + 25?"}]
GREEDY = {"temperature": 0}
THINKING = {"type": "enabled", "budget_tokens": 100}
NOTE = {
    "name": "note",
    "description": "Take a note.",
    "input_schema": {
        "type": "object",
        "properties": {"level": {"type": "integer", "minimum": 0, "maximum": 9}, "loud": {"type": "boolean"}},
        "required": ["level", "loud"],
    },
}
TIME = {"name": "time", "input_schema": {"type": "object", "properties": {}}}
ASK = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 400}
BILLING = "x-anthropic-billing-header: cc_version=2.1.{0}; cc_entrypoint=cli; cch={0};"


def client_of(running: Running, **options: Any) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=running.url, **{"api_key": "none", "max_retries": 0, **options})


@pytest.fixture(scope="module")
def client(pocket: Running) -> anthropic.Anthropic:
    return client_of(pocket)


@pytest.fixture(scope="module")
def http(tiny: Running) -> Iterator[httpx.Client]:
    with tiny.http() as client:
        yield client


def ask(client: anthropic.Anthropic, **fields: Any) -> anthropic.types.Message:
    given = {"model": "pocket", "messages": QUESTION, "max_tokens": 60, **fields}
    return client.messages.create(**given, extra_body=GREEDY)


def test_an_answer_is_that_of_the_library(client: anthropic.Anthropic) -> None:
    expected = load().generate(QUESTION, temperature=0, max_tokens=60, template={"enable_thinking": False})
    message = ask(client)
    assert message.type == "message" and message.role == "assistant" and message.id.startswith("msg_")
    assert [(block.type, block.text) for block in message.content] == [("text", expected.text)]
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    usage = message.usage
    assert usage.input_tokens + usage.cache_read_input_tokens == expected.stats.prompt_tokens
    assert usage.output_tokens == len(expected.tokens)


def test_a_streamed_answer_is_the_whole_one(client: anthropic.Anthropic) -> None:
    given = {"model": "pocket", "messages": SUM, "max_tokens": 300, "thinking": THINKING, "extra_body": GREEDY}
    whole = client.messages.create(**given)
    assert [block.type for block in whole.content] == ["thinking", "text"]
    with client.messages.stream(**given) as stream:
        streamed = stream.get_final_message()
    shown = [block.model_dump(exclude={"parsed_output"}) for block in streamed.content]
    assert shown == [block.model_dump() for block in whole.content]
    assert streamed.stop_reason == whole.stop_reason
    assert streamed.usage.output_tokens == whole.usage.output_tokens
    assert whole.usage.output_tokens_details.thinking_tokens > 0


def events_of(http: httpx.Client, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of a stream. Each event's name is its type."""
    response = http.post("/v1/messages", json={**body, "stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    events = []
    for text in response.text.strip().split("\n\n"):
        head, _, data = text.partition("\n")
        event = json.loads(data.removeprefix("data: "))
        assert head == f"event: {event['type']}"
        events.append(event)
    return events


def test_the_events_come_in_the_order_of_the_api(pocket: Running) -> None:
    body = {"model": "pocket", "messages": SUM, "max_tokens": 300, "thinking": THINKING, **GREEDY}
    with pocket.http() as http:
        events = events_of(http, body)
    kinds = [event["type"] for event in events]
    assert kinds[:2] == ["message_start", "ping"] and kinds[-2:] == ["message_delta", "message_stop"]
    start = events[0]["message"]
    assert (start["content"], start["stop_reason"], start["usage"]["output_tokens"] <= 1) == ([], None, True)
    order = [(event["type"], event["index"]) for event in events if event["type"].startswith("content_block")]
    assert order == sorted(order, key=lambda each: each[1])
    for index in (0, 1):
        of_block = [kind for kind, number in order if number == index]
        assert of_block[0] == "content_block_start" and of_block[-1] == "content_block_stop"
        assert set(of_block[1:-1]) == {"content_block_delta"}
    deltas = [event["delta"]["type"] for event in events if event["type"] == "content_block_delta"]
    assert deltas.index("signature_delta") == deltas.count("thinking_delta")
    assert events[-2]["usage"]["output_tokens"] > 1


def test_what_ends_an_answer_is_told(client: anthropic.Anthropic) -> None:
    cut = ask(client, max_tokens=3)
    assert (cut.stop_reason, cut.usage.output_tokens) == ("max_tokens", 3)
    words = ask(client).content[0].text.split()
    stopped = ask(client, stop_sequences=["never", f" {words[3]}"])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", f" {words[3]}")
    assert stopped.content[0].text == " ".join(words[:3])


def test_a_second_turn_finds_its_prefix_in_the_cache(client: anthropic.Anthropic) -> None:
    system = [{"type": "text", "text": "You are a helper. " * 8, "cache_control": {"type": "ephemeral"}}]
    first = ask(client, system=system)
    turns = [*QUESTION, {"role": "assistant", "content": first.content}, *SUM]
    second = ask(client, system=system, messages=turns)
    prompt = first.usage.input_tokens + first.usage.cache_read_input_tokens
    assert second.usage.cache_read_input_tokens >= prompt - 16


def test_the_billing_line_is_dropped(client: anthropic.Anthropic) -> None:
    """It changes with every request, so no prefix would ever be found behind it."""
    system = "You are a coding helper. " * 8
    plain = ask(client, system=system)
    lines = [[{"type": "text", "text": BILLING.format(number)}, {"type": "text", "text": system}] for number in (1, 2)]
    for given in (*lines, f"{BILLING.format(3)}\n{system}"):
        found = ask(client, system=given)
        assert found.usage.input_tokens + found.usage.cache_read_input_tokens == (
            plain.usage.input_tokens + plain.usage.cache_read_input_tokens
        )
        assert found.usage.input_tokens <= 8
    other = ask(client, system=f"{system}\n{BILLING.format(4)}")  # only the head is dropped
    assert other.usage.input_tokens > 16


def test_a_system_message_in_the_middle_stays_there(client: anthropic.Anthropic) -> None:
    system = "You are a helper. " * 8
    first = ask(client, system=system)
    told = [*QUESTION, {"role": "assistant", "content": "Yes."}, {"role": "system", "content": "Be brief."}, *SUM]
    second = ask(client, system=system, messages=told)
    prompt = first.usage.input_tokens + first.usage.cache_read_input_tokens
    assert second.usage.cache_read_input_tokens >= prompt - 16
    texts = load().tokenizer
    expected = texts.encode(texts.render([{"role": "system", "content": system}, *told], enable_thinking=False))
    assert second.usage.input_tokens + second.usage.cache_read_input_tokens == len(expected)


def test_a_thought_that_comes_back_is_part_of_the_prompt(client: anthropic.Anthropic) -> None:
    first = ask(client, messages=SUM, max_tokens=300, thinking=THINKING)
    turns = [*SUM, {"role": "assistant", "content": first.content}, *QUESTION]
    assert ask(client, messages=turns, thinking=THINKING, max_tokens=300).content[-1].type == "text"
    with pytest.raises(anthropic.BadRequestError, match="max_tokens: expected more than thinking.budget_tokens"):
        ask(client, thinking=THINKING)
    with pytest.raises(anthropic.BadRequestError, match="thinking.budget_tokens: expected it with the type enabled"):
        ask(client, thinking={"type": "enabled"})


def test_the_thought_has_a_budget(tiny: Running) -> None:
    """A random model thinks for ever; the budget closes the thought, and the answer follows."""
    thinking = {"type": "enabled", "budget_tokens": 10}
    message = client_of(tiny).messages.create(
        **{**ASK, "max_tokens": 60}, thinking=thinking, extra_body={"ignore_eos": True}
    )
    assert message.usage.output_tokens_details.thinking_tokens <= 10


def test_tokens_are_counted_as_they_are_used(tiny: Running) -> None:
    client = client_of(tiny)
    given = {"model": "tiny", "messages": ASK["messages"], "system": "Be brief.", "tools": [NOTE, TIME]}
    counted = client.messages.count_tokens(**given)
    usage = client.messages.create(**given, max_tokens=1).usage
    assert counted.input_tokens == usage.input_tokens + usage.cache_read_input_tokens


@pytest.mark.parametrize("seed", range(3))
def test_a_required_call_is_well_formed(tiny: Running, seed: int) -> None:
    client = client_of(tiny)
    choice = {"type": "any", "disable_parallel_tool_use": True}
    given = {**ASK, "tools": [NOTE, TIME], "tool_choice": choice, "extra_body": {"seed": seed, "temperature": 1.0}}
    message = client.messages.create(**given)
    (call,) = [block for block in message.content if block.type != "thinking"]  # a random model may think first
    assert (call.type, message.stop_reason) == ("tool_use", "tool_use")
    assert call.id.startswith("toolu_") and call.name in ("note", "time")
    if call.name == "note":
        assert set(call.input) == {"level", "loud"}
    with client.messages.stream(**given) as stream:
        streamed = stream.get_final_message().content[-1]
    assert (streamed.name, streamed.input) == (call.name, call.input)


def test_the_id_of_a_call_comes_once(http: httpx.Client) -> None:
    """A client opens a new block for each id that it reads."""
    choice = {"type": "tool", "name": "note", "disable_parallel_tool_use": True}
    events = events_of(http, {**ASK, "tools": [NOTE], "tool_choice": choice, "seed": 0, "temperature": 1.0})
    with_id = [event for event in events if '"toolu_' in json.dumps(event)]
    assert [event["type"] for event in with_id] == ["content_block_start"]
    assert with_id[0]["content_block"]["input"] == {}
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    pieces = [delta["partial_json"] for delta in deltas if delta["type"] == "input_json_delta"]
    assert len(pieces) > 1 and set(json.loads("".join(pieces))) == {"level", "loud"}


def test_strict_tools_and_none(tiny: Running) -> None:
    client = client_of(tiny)
    free = client.messages.create(**{**ASK, "max_tokens": 30}, tools=[NOTE], tool_choice={"type": "none"})
    assert all(block.type == "text" for block in free.content)
    strict = client.messages.create(**{**ASK, "max_tokens": 30}, tools=[{**NOTE, "strict": True}])
    assert strict.stop_reason in ("max_tokens", "end_turn", "tool_use")


def test_results_of_tools_come_back(tiny: Running) -> None:
    client = client_of(tiny)
    calls = [{"type": "tool_use", "id": f"toolu_{n}", "name": "note", "input": {"level": n}} for n in (1, 2)]
    results = [
        {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "done"}]},
        {"type": "tool_result", "tool_use_id": "toolu_2", "content": "broken", "is_error": True},
        {"type": "text", "text": "Go on."},
    ]
    messages = [
        *ASK["messages"],
        {"role": "assistant", "content": [{"type": "text", "text": "I note it."}, *calls]},
        {"role": "user", "content": results},
    ]
    counted = client.messages.count_tokens(model="tiny", messages=messages, tools=[NOTE])
    rendered = [
        *ASK["messages"],
        {
            "role": "assistant",
            "content": "I note it.",
            "tool_calls": [{"function": {"name": "note", "arguments": {"level": n}}} for n in (1, 2)],
        },
        {"role": "tool", "content": "done"},
        {"role": "tool", "content": "Error: broken"},
        {"role": "user", "content": "Go on."},
    ]
    tool = {"name": "note", "description": "Take a note.", "parameters": NOTE["input_schema"]}
    tokenizer = tiny.models.first.engine.llm.tokenizer
    text = tokenizer.render(rendered, [{"type": "function", "function": tool}], enable_thinking=False)
    assert counted.input_tokens == len(tokenizer.encode(text))


def test_a_form_is_enforced(client: anthropic.Anthropic) -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer", "maximum": 150}}, "required": ["age"]}
    config = {"format": {"type": "json_schema", "schema": {**schema, "additionalProperties": False}}}
    assert set(json.loads(ask(client, output_config=config).content[0].text)) == {"age"}


def test_metrics_come_on_request(pocket: Running) -> None:
    """They say why no longer prefix was found, with the text from there on."""
    body = {"model": "pocket", "max_tokens": 2, "return_metrics": True, "system": "One two three. " * 8}
    with pocket.http() as http:
        http.post("/v1/messages", json={**body, "messages": QUESTION})
        other = {**body, "messages": [{"role": "user", "content": "Another question"}]}
        miss = http.post("/v1/messages", json=other).json()["metrics"]["prefix_miss"]
        assert miss["position"] > 8 and miss["reason"] and "Another" in miss["text"]
        events = events_of(http, {**body, "messages": SUM})
    assert "prefix_miss" in events[-2]["metrics"]


ERRORS = [
    ({"model": "gpt"}, 404, "not_found_error", "The model 'gpt' does not exist; this server has tiny."),
    ({"foo": 1}, 400, "invalid_request_error", "Unknown parameter: 'foo'."),
    ({"max_tokens": None}, 400, "invalid_request_error", "Invalid value for 'max_tokens': Input should be a valid int"),
    ({"messages": []}, 400, "invalid_request_error", "Invalid value for 'messages': List should have at least 1 item"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
        *(400, "invalid_request_error"),
        "Invalid value for 'messages[0].content[0]': expected an object whose type is text or thinking or tool_use or "
        'tool_result, found {"type": "image", "source": {}}.',
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        *(400, "invalid_request_error"),
        "Missing required parameter: 'messages[0].content[0].text'.",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "thinking", "thinking": "a", "signature": "b"}]}]},
        *(400, "invalid_request_error"),
        "messages: expected no block of type thinking in a message of the user",
    ),
    (
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        *(400, "invalid_request_error"),
        "messages: this server does not continue the assistant's message; end with the user's",
    ),
    (
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        *(400, "invalid_request_error"),
        "Invalid value for 'tools[0].type': Input should be 'custom'",
    ),
    (
        {"tools": [NOTE], "tool_choice": {"type": "tool", "name": "other"}},
        *(400, "invalid_request_error"),
        "tool_choice.name: expected one of the tools, found 'other'",
    ),
    (
        {"tool_choice": {"type": "any"}},
        *(400, "invalid_request_error"),
        "tool_choice: expected tools to choose from, found none; set tools or leave this out",
    ),
    (
        {"messages": [{"role": "user", "content": "the quick brown fox " * 1000}]},
        *(400, "invalid_request_error"),
        "prompt: 90",
    ),
]


@pytest.mark.parametrize(("fields", "status", "kind", "message"), ERRORS)
def test_faulty_requests(http: httpx.Client, fields: dict[str, Any], status: int, kind: str, message: str) -> None:
    for stream in (False, True):
        answer = http.post("/v1/messages", json={**ASK, "max_tokens": 4, **fields, "stream": stream})
        body = answer.json()
        assert answer.status_code == status
        assert set(body) == {"type", "error", "request_id"} and set(body["error"]) == {"type", "message"}
        assert (body["type"], body["error"]["type"]) == ("error", kind)
        assert body["error"]["message"].startswith(message)
        assert body["request_id"] == answer.headers["request-id"]


def test_versions_and_paths(http: httpx.Client) -> None:
    short = {**ASK, "max_tokens": 2}
    for version in ("2023-06-01", "2026-10-21"):
        assert http.post("/v1/messages", json=short, headers={"anthropic-version": version}).status_code == 200
    answer = http.post("/v1/messages", json=short, headers={"anthropic-version": "2019-01-01"})
    expected = "anthropic-version: expected 2026-10-21 or 2023-06-01, found '2019-01-01'."
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, expected)
    assert http.get("/v1/messages").json()["error"]["message"] == "Method Not Allowed: GET /v1/messages"
    assert http.get("/v1/messages/nothing").json()["error"]["type"] == "not_found_error"


def test_the_client_gets_its_own_exceptions(random_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    secret = add_key(path, "alice", requests_per_minute=3)
    settings = replace(LOCAL, keys_file=path, max_body=20_000)
    with serving(ModelSpec("tiny", str(random_path)), settings=settings) as running:
        with pytest.raises(anthropic.AuthenticationError) as error:
            client_of(running).messages.create(**ASK)
        assert error.value.body["error"]["type"] == "authentication_error"
        client = client_of(running, api_key=secret)
        with pytest.raises(anthropic.NotFoundError) as missing:
            client.messages.create(**{**ASK, "model": "gpt"})
        assert missing.value.request_id.startswith("req_")
        with pytest.raises(anthropic.RequestTooLargeError):
            client.messages.create(**{**ASK, "system": "a" * 30_000})
        with running.http(headers={"x-api-key": secret}) as http:
            assert http.post("/v1/messages", json={**ASK, "max_tokens": 2}).status_code == 200
        with pytest.raises(anthropic.RateLimitError) as rate:
            for _ in range(3):
                client.messages.create(**{**ASK, "max_tokens": 2})
        assert rate.value.body["error"]["type"] == "rate_limit_error"
        assert int(rate.value.response.headers["retry-after"]) >= 1


def test_the_async_client(pocket: Running) -> None:
    async def ask_all() -> list[str]:
        client = anthropic.AsyncAnthropic(base_url=pocket.url, api_key="none", max_retries=0)

        async def one(number: int) -> str:
            given = {"model": "pocket", "messages": QUESTION, "max_tokens": 60, "extra_body": GREEDY}
            if number % 2:
                return (await client.messages.create(**given)).content[0].text
            async with client.messages.stream(**given) as stream:
                return await stream.get_final_text()

        async with client:
            with pytest.raises(anthropic.NotFoundError):
                await client.messages.create(model="gpt", messages=QUESTION, max_tokens=1)
            counted = await client.messages.count_tokens(model="pocket", messages=QUESTION)
            assert counted.input_tokens > 0
            return await asyncio.gather(*map(one, range(8)))

    assert len(set(asyncio.run(ask_all()))) == 1


def test_a_full_queue_and_a_silent_stream(random_path: Path) -> None:
    """Pings come while a request waits, behind the event that opens the stream. A full queue has its own status."""
    settings = replace(LOCAL, comment_seconds=0.1)
    shares = SchedulerConfig(token_budget=16, max_sequences=1)
    config = replace(SERVING, scheduler=shares, max_requests=2)
    long = {**ASK, "max_tokens": 1900, "ignore_eos": True, "stream": True}
    served = serving(ModelSpec("tiny", str(random_path)), settings=settings, config=config)
    with served as running, running.http() as http, running.http() as other:
        first = other.stream("POST", "/v1/messages", json=long)
        with first as before, http.stream("POST", "/v1/messages", json=long) as second:
            lines = before.iter_lines()  # a dropped iterator would close the connection
            next(lines)
            waiting = second.iter_lines()
            heads = [line for line, _ in zip(waiting, range(12), strict=False) if line.startswith("event")]
            assert heads == ["event: message_start", "event: ping", "event: ping", "event: ping"]
            with pytest.raises(anthropic.OverloadedError) as full:
                client_of(running).messages.create(**ASK)
            assert full.value.status_code == 529 and int(full.value.response.headers["retry-after"]) >= 1
            assert full.value.body["error"]["type"] == "overloaded_error"


def test_an_error_in_the_middle_of_a_stream(random_path: Path) -> None:
    settings = replace(LOCAL, request_seconds=0.3)
    long = {**ASK, "max_tokens": 2000, "extra_body": {"ignore_eos": True}}
    with serving(ModelSpec("tiny", str(random_path)), settings=settings) as running:
        stream = client_of(running).messages.create(**long, stream=True)
        with pytest.raises(anthropic.APIStatusError) as error:
            for _ in stream:
                pass
        assert error.value.body["error"]["type"] == "timeout_error"
        wait_for(lambda: running.unfinished == 0)


def test_a_call_that_is_cut_off_ends_for_want_of_tokens(pocket: Running) -> None:
    """Regression: it ended with tool_use, and a client would have run the tool with an empty input."""
    given = {"model": "pocket", "messages": ASK["messages"], "tools": [NOTE], "tool_choice": {"type": "any"}}
    chat_tool = {"name": "note", "parameters": NOTE["input_schema"]}
    chat = {**given, "tools": [{"type": "function", "function": chat_tool}], "tool_choice": "required"}
    cut = 0
    with pocket.http() as http:
        for most in range(8, 24):
            message = http.post("/v1/messages", json={**given, "max_tokens": most}).json()
            choice = http.post("/v1/chat/completions", json={**chat, "max_tokens": most}).json()["choices"][0]
            cut += bool(message["content"] and message["content"][-1]["type"] == "tool_use")
            if message["usage"]["output_tokens"] == most:
                assert (message["stop_reason"], choice["finish_reason"]) == ("max_tokens", "length")
    assert cut > 0


@pytest.mark.parametrize("fields", [{"stop": "x"}, {"stream_options": {"include_usage": True}}])
def test_fields_of_the_other_api_that_have_another_name_here_are_refused(http: httpx.Client, fields) -> None:
    answer = http.post("/v1/messages", json={**ASK, **fields})
    assert answer.status_code == 400 and next(iter(fields)) in answer.json()["error"]["message"]


def test_an_error_names_the_field_of_this_api(tiny: Running) -> None:
    """The same error of the engine names another field in each API."""
    tool = {"name": "note", "input_schema": {"type": "object"}}
    form = {"format": {"type": "json_schema", "schema": {"type": "object"}}}
    with tiny.http() as http:
        answer = http.post("/v1/messages", json={**ASK, "tools": [tool], "output_config": form})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("output_config.format: expected free text beside tools")

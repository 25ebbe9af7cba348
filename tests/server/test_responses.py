"""/v1/responses with the openai client."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.server.conftest import LOCAL, Running, serving, wait_for
from tiny_llm import load
from tiny_llm.server.errors import ApiError
from tiny_llm.server.keys import Key, add_key
from tiny_llm.server.models import ModelSpec
from tiny_llm.server.store import ResponseStore

QUESTION = "What is a KV cache?"
SUM = "What is 17 + 25?"
NOTE = {
    "type": "function",
    "name": "note",
    "parameters": {
        "type": "object",
        "properties": {"level": {"type": "integer", "minimum": 0, "maximum": 9}, "loud": {"type": "boolean"}},
        "required": ["level", "loud"],
    },
}
PATCH = {"type": "custom", "name": "patch", "description": "Change a file."}
DIGITS = {**PATCH, "format": {"type": "grammar", "syntax": "regex", "definition": "[0-9]{1,8}"}}
CALL = {"model": "tiny", "input": "hello", "temperature": 1.0, "seed": 0, "tool_choice": "required"}
CALL |= {"parallel_tool_calls": False, "max_output_tokens": 400, "chat_template_kwargs": {"enable_thinking": False}}


@pytest.fixture(scope="module")
def served(random_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    settings = replace(LOCAL, responses_folder=tmp_path_factory.mktemp("responses"))
    with serving(ModelSpec("pocket"), ModelSpec("tiny", str(random_path)), settings=settings) as running:
        yield running


@pytest.fixture(scope="module")
def client(served: Running) -> openai.OpenAI:
    return served.client()


@pytest.fixture(scope="module")
def http(served: Running) -> Iterator[httpx.Client]:
    with served.http() as client:
        yield client


def ask(client: openai.OpenAI, **fields: Any) -> openai.types.responses.Response:
    return client.responses.create(**{"model": "pocket", "input": QUESTION, "temperature": 0, **fields})


def events_of(http: httpx.Client, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of a stream. Each event's name is its type, and they are numbered."""
    response = http.post("/v1/responses", json={**body, "stream": True})
    assert response.headers["content-type"].startswith("text/event-stream"), response.text
    events = []
    for text in response.text.strip().split("\n\n"):
        head, _, data = text.partition("\n")
        event = json.loads(data.removeprefix("data: "))
        assert head == f"event: {event['type']}"
        assert event["sequence_number"] == len(events)
        events.append(event)
    return events


def kinds_of(events: list[dict[str, Any]]) -> list[str]:
    """The types of events, each row of deltas as one."""
    kinds = [event["type"].removeprefix("response.") for event in events]
    return [kind for place, kind in enumerate(kinds) if not (kind.endswith("delta") and kind == kinds[place - 1])]


def test_an_answer_is_that_of_the_library(client: openai.OpenAI) -> None:
    expected = load().generate([{"role": "user", "content": QUESTION}], temperature=0)
    found = ask(client, metadata={"a": "b"}, user="me")
    assert found.output_text == expected.text.rpartition("</think>")[2].strip()
    assert (found.object, found.status, found.error, found.incomplete_details) == ("response", "completed", None, None)
    assert (found.metadata, found.user, found.model, found.temperature) == ({"a": "b"}, "me", "pocket", 0)
    assert found.usage.output_tokens == len(expected.tokens)
    assert found.usage.input_tokens == expected.stats.prompt_tokens
    assert found.usage.total_tokens == found.usage.input_tokens + found.usage.output_tokens
    assert found.id.startswith("resp_") and found.output[-1].id.startswith("msg_")


def test_the_events_of_a_text(http: httpx.Client) -> None:
    body = {"model": "pocket", "input": SUM, "temperature": 0, "reasoning": {"effort": "low"}}
    events = events_of(http, body)
    item = ["output_item.added", "content_part.added", "{0}.delta", "{0}.done", "content_part.done", "output_item.done"]
    expected = ["created", "in_progress"]
    for text in ("reasoning_text", "output_text"):
        expected += [kind.format(text) for kind in item]
    assert kinds_of(events) == [*expected, "completed"]
    whole = http.post("/v1/responses", json=body).json()
    streamed = events[-1]["response"]
    ids = {"id", "created_at", "completed_at", "usage"}
    for response in (whole, streamed):
        for each in response["output"]:
            del each["id"]
    assert {key: value for key, value in streamed.items() if key not in ids} == {
        key: value for key, value in whole.items() if key not in ids
    }
    texts = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    assert "".join(texts) == whole["output"][-1]["content"][0]["text"]
    assert whole["usage"]["output_tokens_details"]["reasoning_tokens"] > 0


def test_items_have_the_same_ids_in_all_events(http: httpx.Client) -> None:
    events = events_of(http, {"model": "pocket", "input": SUM, "temperature": 0, "reasoning": {"effort": "low"}})
    whole = events[-1]["response"]["output"]
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    added = [event["item"]["id"] for event in events if event["type"] == "response.output_item.added"]
    assert done == whole and added == [item["id"] for item in whole] and len(set(added)) == 2
    for event in events:
        if "item_id" in event:
            assert event["item_id"] == whole[event["output_index"]]["id"]
    assert len({event["response"]["id"] for event in events if "response" in event}) == 1


def test_the_events_of_a_call(http: httpx.Client) -> None:
    events = events_of(http, {**CALL, "tools": [NOTE]})
    expected = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done"]
    assert kinds_of(events)[-5:] == [*expected, "output_item.done", "completed"]
    (done,) = [event for event in events if event["type"] == "response.function_call_arguments.done"]
    item = events[-1]["response"]["output"][-1]
    assert (item["type"], item["name"], item["status"]) == ("function_call", "note", "completed")
    assert done["arguments"] == item["arguments"] and done["name"] == "note" and done["item_id"] == item["id"]
    assert set(json.loads(item["arguments"])) == {"level", "loud"}
    pieces = [event["delta"] for event in events if event["type"] == "response.function_call_arguments.delta"]
    assert "".join(pieces) == item["arguments"] and len(pieces) > 1


def test_the_events_of_a_custom_tool(http: httpx.Client) -> None:
    events = events_of(http, {**CALL, "tools": [NOTE, DIGITS], "tool_choice": {"type": "custom", "name": "patch"}})
    expected = ["output_item.added", "custom_tool_call_input.delta", "custom_tool_call_input.done", "output_item.done"]
    assert kinds_of(events)[-5:] == [*expected, "completed"]
    response = events[-1]["response"]
    item = response["output"][-1]
    assert (item["type"], item["name"]) == ("custom_tool_call", "patch")
    assert item["input"].isdecimal() and events[-3]["input"] == events[-4]["delta"] == item["input"]
    assert response["tools"] == [NOTE, DIGITS]
    assert response["tool_choice"] == {"type": "custom", "name": "patch"}


def test_a_second_turn_with_the_items_of_the_first(client: openai.OpenAI) -> None:
    """What the client got goes back as it is, with the outputs of the tools behind it."""
    extra = {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}, "seed": 0}}
    asked = {"model": "tiny", "temperature": 1.0, "max_output_tokens": 400, "tools": [NOTE, DIGITS], **extra}
    for tool, kind in (("note", "function"), ("patch", "custom")):
        choice = {"type": kind, "name": tool}
        first = client.responses.create(**asked, input="hello", tool_choice=choice, parallel_tool_calls=False)
        call = first.output[-1]
        result = {"type": f"{call.type}_output", "call_id": call.call_id, "output": "done"}
        items = [{"role": "user", "content": "hello"}, *first.output, result]
        sent = client.responses.create(**{**asked, "max_output_tokens": 1}, input=items, store=False)
        plain = [{"role": "user", "content": "hello"}, *(item.model_dump() for item in first.output), result]
        cleaned = [{key: value for key, value in item.items() if value is not None} for item in plain]
        again = client.responses.create(**{**asked, "max_output_tokens": 1}, input=cleaned, store=False)
        stored = client.responses.create(
            **{**asked, "max_output_tokens": 1}, input=[result], previous_response_id=first.id
        )
        assert sent.usage.input_tokens == again.usage.input_tokens == stored.usage.input_tokens
        assert sent.usage.input_tokens > first.usage.input_tokens


def test_items_become_turns(served: Running, http: httpx.Client) -> None:
    items = [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]},
        {"role": "user", "content": "a"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "b", "annotations": []}]},
        {"type": "function_call", "call_id": "c1", "name": "note", "arguments": '{"level": 1}'},
        {"type": "custom_tool_call", "call_id": "c2", "name": "patch", "input": "x"},
        {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "one"}]},
        {"type": "custom_tool_call_output", "call_id": "c2", "output": "two"},
    ]
    calls = [("note", {"level": 1}), ("patch", {"input": "x"})]
    messages = [
        {"role": "system", "content": "Help."},
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a"},
        {
            "role": "assistant",
            "reasoning_content": "hm",
            "content": "b",
            "tool_calls": [{"function": {"name": name, "arguments": arguments}} for name, arguments in calls],
        },
        {"role": "tool", "content": "one"},
        {"role": "tool", "content": "two"},
    ]
    found = http.post("/v1/responses", json={"model": "tiny", "input": items, "instructions": "Help.", "store": False})
    tokenizer = served.models.find("tiny").engine.llm.tokenizer
    assert found.json()["usage"]["input_tokens"] == len(tokenizer.encode(tokenizer.render(messages)))


def test_an_encoded_thought_comes_back(client: openai.OpenAI) -> None:
    """Coding clients store nothing on the server, and send back what `encrypted_content` holds."""
    asked = {"store": False, "reasoning": {"effort": "low"}, "include": ["reasoning.encrypted_content"]}
    first = ask(client, input=SUM, **asked)
    thought = first.output[0]
    assert thought.type == "reasoning" and thought.encrypted_content
    bare = {"type": "reasoning", "summary": [], "encrypted_content": thought.encrypted_content}
    full = {
        "type": "reasoning",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": thought.content[0].text}],
    }
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "c", "output": "1"}
    counts = []
    for item in (bare, full, {**full, "content": []}):
        found = ask(client, input=[{"role": "user", "content": SUM}, item, call, output], **asked)
        counts.append(found.usage.input_tokens)
    assert counts[0] == counts[1] > counts[2]
    with pytest.raises(openai.BadRequestError, match="encrypted_content: expected what this server made"):
        ask(client, input=[{"role": "user", "content": SUM}, {**bare, "encrypted_content": "gAAAA-x"}], **asked)


def test_a_stored_response_survives_a_restart(tmp_path: Path) -> None:
    settings = replace(LOCAL, responses_folder=tmp_path)
    with serving(ModelSpec("pocket"), settings=settings) as running:
        first = ask(running.client(), input="My number is 7.", instructions="Be brief.")
        second = ask(running.client(), previous_response_id=first.id)
    with serving(ModelSpec("pocket"), settings=settings) as running:
        client = running.client()
        assert client.responses.retrieve(second.id) == second and second.previous_response_id == first.id
        third = ask(client, input=SUM, previous_response_id=second.id)
        spoken = [
            {"role": "user", "content": "My number is 7."},
            *first.output,
            {"role": "user", "content": QUESTION},
            *second.output,
            {"role": "user", "content": SUM},
        ]
        assert third.usage.input_tokens == ask(client, input=spoken).usage.input_tokens
        referenced = [*spoken[:1], {"type": "item_reference", "id": first.output[-1].id}, *spoken[2:]]
        assert ask(client, input=referenced).usage.input_tokens == third.usage.input_tokens
        client.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError) as missing:
            client.responses.retrieve(first.id)
        assert missing.value.body["message"] == f"Response with id '{first.id}' not found."
        with pytest.raises(openai.BadRequestError) as error:
            ask(client, previous_response_id=second.id)
        assert (error.value.param, error.value.code) == ("previous_response_id", "previous_response_not_found")
        assert ask(client, store=False).store is False
        with pytest.raises(openai.NotFoundError):
            client.responses.delete("resp_../../../etc/passwd")


def test_keys_see_their_own_responses(random_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    secrets = [add_key(path, name) for name in ("alice", "bob")]
    settings = replace(LOCAL, keys_file=path, responses_folder=tmp_path / "responses")
    with serving(ModelSpec("tiny", str(random_path)), settings=settings) as running:
        alice, bob = (running.client(api_key=secret) for secret in secrets)
        found = alice.responses.create(model="tiny", input="hello", max_output_tokens=2)
        assert alice.responses.retrieve(found.id).id == found.id
        with pytest.raises(openai.NotFoundError):
            bob.responses.retrieve(found.id)
        with pytest.raises(openai.BadRequestError, match="not found"):
            bob.responses.create(model="tiny", input="hello", previous_response_id=found.id)


def test_the_store_is_bounded(tmp_path: Path) -> None:
    """What was used last stays. A damaged file is as good as none."""
    store = ResponseStore(tmp_path, max_bytes=1000)
    names = [f"resp_{number:024x}" for number in range(12)]

    def record(name: str) -> dict[str, Any]:
        return {"response": {"id": name, "output": [], "previous_response_id": None, "pad": "a" * 100}, "input": []}

    def is_there(key: Key | None, name: str) -> bool:
        try:
            return store.get(key, name)["response"]["id"] == name
        except ApiError:
            return False

    other = Key("other", "0" * 64)
    store.put(other, record(names[0]))
    for name in names:
        store.put(None, record(name))
        assert is_there(None, names[0])  # it is used each time
    assert [is_there(None, name) for name in names[1:3]] == [False, False]
    assert is_there(None, names[-1]) and is_there(other, names[0])
    (folder,) = [path for path in tmp_path.iterdir() if path.name == "without-key"]
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 1000
    assert folder.stat().st_mode & 0o077 == 0
    (folder / f"{names[-1]}.json").write_text('{"response": ')
    assert not is_there(None, names[-1])


def test_a_disk_that_refuses_costs_no_answer(random_path: Path, tmp_path: Path) -> None:
    (tmp_path / "responses").write_text("a file, where a folder should be")
    settings = replace(LOCAL, responses_folder=tmp_path / "responses")
    with serving(ModelSpec("tiny", str(random_path)), settings=settings) as running:
        found = running.client().responses.create(model="tiny", input="hello", max_output_tokens=2)
        assert found.store is False and found.output


def test_without_a_folder_nothing_is_stored(tiny: Running) -> None:
    create = tiny.client().responses.create
    short = {"model": "tiny", "input": "hello", "max_output_tokens": 2}
    assert create(**short).store is False
    for fields, param in (({"store": True}, "store"), ({"previous_response_id": "resp_1"}, "previous_response_id")):
        with pytest.raises(openai.BadRequestError) as error:
            create(**short, **fields)
        assert (error.value.param, error.value.code) == (param, "unsupported_value")
    with pytest.raises(openai.NotFoundError):
        tiny.client().responses.retrieve("resp_000000000000000000000000")


def test_a_form_is_enforced(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer", "maximum": 150}}, "required": ["age"]}
    form = {"type": "json_schema", "name": "person", "schema": {**schema, "additionalProperties": False}}
    found = ask(client, text={"format": {**form, "strict": True}})
    assert set(json.loads(found.output_text)) == {"age"}
    assert found.text.format.name == "person"


def test_log_probabilities(client: openai.OpenAI) -> None:
    asked = {"top_logprobs": 3, "include": ["message.output_text.logprobs"], "reasoning": {"effort": "none"}}
    (part,) = ask(client, max_output_tokens=6, **asked).output[-1].content
    assert "".join(token.token for token in part.logprobs) == part.text
    assert all(len(token.top_logprobs) == 3 for token in part.logprobs)
    stream = ask(client, max_output_tokens=6, stream=True, **asked)
    streamed = [one for event in stream if event.type == "response.output_text.delta" for one in event.logprobs]
    assert [token.token for token in streamed] == [token.token for token in part.logprobs]


def test_a_cut_answer_is_incomplete(client: openai.OpenAI) -> None:
    found = ask(client, max_output_tokens=3, reasoning={"effort": "none"})
    assert (found.status, found.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert found.output[-1].status == "incomplete"
    events = list(ask(client, max_output_tokens=3, stream=True))
    assert events[-1].type == "response.incomplete"


def test_the_thought_has_a_budget(served: Running) -> None:
    create = served.client().responses.create
    asked = {"model": "tiny", "input": "hello", "max_output_tokens": 60, "extra_body": {"ignore_eos": True}}
    for reasoning in ({"effort": "medium", "max_tokens": 10}, {"max_tokens": 10}):
        found = create(**asked, reasoning=reasoning)
        assert found.usage.output_tokens_details.reasoning_tokens <= 10


def test_metrics_come_on_request(http: httpx.Client) -> None:
    body = {"model": "pocket", "temperature": 0, "return_metrics": True, "instructions": "One two three. " * 8}
    http.post("/v1/responses", json={**body, "input": QUESTION})
    found = http.post("/v1/responses", json={**body, "input": "Another question"}).json()
    miss = found["metrics"]["prefix_miss"]
    assert miss["position"] > 8 and miss["reason"] and "Another" in miss["text"]
    assert found["usage"]["input_tokens_details"]["cached_tokens"] > 8


KINDS = (
    "message or function_call or custom_tool_call or function_call_output or custom_tool_call_output or reasoning or "
    "file_search_call or mcp_call or item_reference"
)
LARK = {**PATCH, "format": {"type": "grammar", "syntax": "lark", "definition": "start: /a/"}}
FAULTS: list[tuple[dict[str, Any], str, str | None, str | None]] = [
    ({"foo": 1}, "Unknown parameter: 'foo'.", "foo", "unknown_parameter"),
    ({"background": True}, "Invalid value for 'background': Input should be False", "background", None),
    ({"truncation": "auto"}, "Invalid value for 'truncation': Input should be 'disabled'", "truncation", None),
    ({"conversation": "conv_1"}, "Invalid value for 'conversation': Input should be None", "conversation", None),
    ({"input": [{"type": "shell_call"}]}, f"Invalid value for 'input[0]': expected an object whose type is {KINDS}",
     "input[0]", None),
    ({"input": [{"role": "user"}]}, "Missing required parameter: 'input[0].content'.", "input[0].content",
     "missing_required_parameter"),
    ({"tools": [{"type": "web_search"}]},
     "Invalid value for 'tools[0]': expected an object whose type is function or custom or file_search or mcp, found",
     "tools[0]", None),
    ({"tools": [LARK]}, "tools: patch: this server enforces formats of the syntax regex alone", "tools",
     "unsupported_value"),
    ({"tools": [NOTE], "tool_choice": {"type": "custom", "name": "note"}},
     "tool_choice: expected one of the tools, found custom 'note'", "tool_choice", None),
    ({"tool_choice": "required"}, "tool_choice: expected tools to choose from, found none", "tool_choice", None),
    ({"include": ["web_search_call.results"]}, "Invalid value for 'include[0]'", "include[0]", None),
    ({"n": 2}, "Invalid value for 'n': Input should be 1", "n", None),
    ({"text": {"format": {"type": "json_schema"}}}, "text.format: expected a name and a schema", "text.format", None),
    ({"input": "the quick brown fox " * 1000}, "prompt: 90", "input", "context_length_exceeded"),
    ({"tools": [NOTE], "text": {"format": {"type": "json_object"}}}, "text.format: expected free text beside tools",
     "text.format", "unsupported_value"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "message", "param", "code"), FAULTS)
def test_faulty_requests(
    http: httpx.Client, fields: dict[str, Any], message: str, param: str | None, code: str | None
) -> None:
    for stream in (False, True):
        body = {"model": "tiny", "input": "hello", "max_output_tokens": 4, **fields, "stream": stream}
        answer = http.post("/v1/responses", json=body)
        error = answer.json()["error"]
        assert (answer.status_code, error["type"]) == (400, "invalid_request_error")
        assert error["message"].startswith(message) and (error["param"], error["code"]) == (param, code)


def test_an_error_in_the_middle_of_a_stream(random_path: Path, tmp_path: Path) -> None:
    settings = replace(LOCAL, request_seconds=0.3, responses_folder=tmp_path)
    long = {"model": "tiny", "input": "hello", "max_output_tokens": 2000, "ignore_eos": True}
    with serving(ModelSpec("tiny", str(random_path)), settings=settings) as running:
        with running.http() as http:
            events = events_of(http, long)
            assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
            assert events[-2]["code"] == events[-1]["response"]["error"]["code"] == "answer_timeout"
            assert events[-1]["response"]["status"] == "failed"
            assert http.post("/v1/responses", json=long).status_code == 504
        wait_for(lambda: running.unfinished == 0)


def test_the_async_client(served: Running) -> None:
    async def ask_all() -> list[str]:
        client = openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)

        async def one(number: int) -> str:
            given = {"model": "pocket", "input": QUESTION, "temperature": 0}
            if number % 2:
                return (await client.responses.create(**given)).output_text
            async with client.responses.stream(**given) as stream:
                return (await stream.get_final_response()).output_text

        async with client:
            with pytest.raises(openai.NotFoundError):
                await client.responses.create(model="gpt", input=QUESTION)
            found = await client.responses.create(model="pocket", input=QUESTION, max_output_tokens=2)
            assert (await client.responses.retrieve(found.id)).id == found.id
            await client.responses.delete(found.id)
            return await asyncio.gather(*map(one, range(8)))

    assert len(set(asyncio.run(ask_all()))) == 1


def test_the_input_items_of_a_response(client: openai.OpenAI) -> None:
    texts = [f"Say {number}." for number in range(5)]
    given = [{"role": "user", "content": text} for text in texts]
    found = ask(client, model="tiny", input=given, max_output_tokens=2)
    page = client.responses.input_items.list(found.id, limit=2)
    assert [item.content[0].text for item in page.data] == ["Say 4.", "Say 3."]
    assert page.has_more and page.data[0].content[0].type == "input_text"
    read = [item.content[0].text for item in client.responses.input_items.list(found.id, limit=2, order="asc")]
    assert read == texts
    with pytest.raises(openai.BadRequestError, match="after: expected the id of an input item"):
        client.responses.input_items.list(found.id, after="msg_1")
    with pytest.raises(openai.BadRequestError, match="Invalid value for 'limit'"):
        client.responses.input_items.list(found.id, limit=101)
    with pytest.raises(openai.NotFoundError):
        client.responses.input_items.list("resp_" + "0" * 24)
    reference = {"type": "item_reference", "id": page.data[0].id}
    assert ask(client, model="tiny", input=[reference], max_output_tokens=2).status == "incomplete"


STORING = """
import sys
from pathlib import Path
from tiny_llm.server.store import ResponseStore

store = ResponseStore(Path(sys.argv[1]), int(sys.argv[3]))
for number in range(60):
    name = f"resp_{sys.argv[2]}{number:023x}"
    response = {"id": name, "output": [], "previous_response_id": None, "text": "x" * 4096}
    store.put(None, {"response": response, "input": []})
    assert store.get(None, name)["response"] == response
"""


@pytest.mark.parametrize(("most", "left"), [(2**28, 120), (50_000, 12)])
def test_two_processes_share_a_folder(tmp_path: Path, most: int, left: int) -> None:
    """Nothing is lost or torn: each reads its own responses back, also while both delete old ones."""
    command = [sys.executable, "-c", STORING, str(tmp_path)]
    running = [subprocess.Popen([*command, which, str(most)]) for which in ("a", "b")]
    assert [process.wait(60) for process in running] == [0, 0]
    files = list((tmp_path / "without-key").iterdir())
    assert 1 <= len(files) <= left
    for file in files:
        assert len(json.loads(file.read_text())["response"]["text"]) == 4096
    if most == 2**28:
        assert len(files) == 120

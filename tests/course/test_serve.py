"""The learner's files serve real clients: scheduler, parser, limits and stream, solved, or borrowed where undone."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.course.conftest import ROOT, solved
from tiny_llm.course import stubs
from tiny_llm.course.catalog import course
from tiny_llm.server.keys import add_key

PROGRAM = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tiny_llm.cli import main; sys.exit(main())"
ADD = {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}}
NOTED = """

def noted(name, function):
    def call(*arguments):
        with open("noted.txt", "a") as file:
            file.write(name + "\\n")
        return function(*arguments)
    return call


{owner} = noted("{owner}", {owner})
"""
WATCHED = {
    "week3/continuous_batching.py": "Scheduler.schedule",
    "week4/sse.py": "event",
    "week4/tool_calls.py": "JsonArguments.feed",
    "week4/structured.py": "mask_logits",
    "week4/rates.py": "Use.admit",
    "week4/api_keys.py": "KeyFile.find",
    "week4/guard.py": "Body.receive",
}


@contextmanager
def served(*options: str) -> Iterator[tuple[str, str]]:
    """Serve pocket on the learner's files; yield the server's URL and what it said of the files."""
    command = [sys.executable, "-c", PROGRAM, "serve", "--code", "mine", "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            banner = process.stderr.readline()
            line = process.stdout.readline()
            assert " at http" in line, banner + process.stderr.read()
            yield line.split(" at ")[1].split("/v1")[0], banner
        finally:
            process.terminate()
            process.communicate(timeout=30)


def ask(client: openai.OpenAI, **options: Any) -> Any:
    messages: Any = [{"role": "user", "content": "Add 3 to 4."}]
    return client.chat.completions.create(model="pocket", messages=messages, max_tokens=60, temperature=0, **options)


@pytest.fixture
def solved_checkout(checkout: Path) -> Path:
    """A checkout in which all is solved, and some functions note that they are called."""
    for file, text in stubs.generate().items():
        for task in course().of_file(file):
            text = solved(text, task.id)
        if file in WATCHED:
            text += NOTED.format(owner=WATCHED[file])
        (checkout / "code" / file).write_text(text, encoding="utf-8")
    return checkout


def test_the_learners_files_serve_a_real_client(solved_checkout: Path) -> None:
    keys = solved_checkout / "keys.json"
    secret = add_key(keys, "app", requests_per_minute=2)
    with served("--keys-file", str(keys)) as (url, banner):
        assert banner.startswith("yours: ") and "continuous batching" in banner
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=secret, max_retries=0)
        pieces = list(ask(client, stream=True))
        assert pieces[-1].choices[0].finish_reason in ("stop", "length")
        tools = [{"type": "function", "function": ADD}]
        answer = ask(client, tools=tools, tool_choice="required")
        call = answer.choices[0].message.tool_calls[0].function
        assert call.name == "add" and isinstance(json.loads(call.arguments)["a"], int)
        with pytest.raises(openai.RateLimitError):
            ask(client)
        with pytest.raises(openai.AuthenticationError):
            ask(client.with_options(api_key="wrong"))
    noted = set((solved_checkout / "noted.txt").read_text().split())
    assert noted == set(WATCHED.values())


def test_a_file_in_which_nothing_is_done_serves_the_same(checkout: Path) -> None:
    with served() as (url, banner):
        assert banner == "yours: nothing yet \u00b7 reference: the rest\n"
        body = {"model": "pocket", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
        assert httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).status_code == 200
        streamed = httpx.post(f"{url}/v1/chat/completions", json={**body, "stream": True}, timeout=60)
        assert streamed.text.endswith("data: [DONE]\n\n")

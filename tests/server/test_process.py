"""`tiny-llm serve` as a process: the options that say what it tells, and a kill with the cache on disk."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tiny_llm.server.keys import add_key

WORDS = "forty-two secret words"
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": WORDS}], "max_tokens": 6, "ignore_eos": True}


@dataclass
class Served:
    """A server's process. `log` is its stderr, known once it has ended."""

    url: str
    process: "subprocess.Popen[str]"
    log: list[str] = field(default_factory=list)

    def end(self) -> None:
        """Ask the process to end, and wait for it."""
        self.process.send_signal(signal.SIGTERM)
        _, err = self.process.communicate(timeout=60)
        self.log += err.splitlines()


@contextmanager
def serving_process(*options: str) -> Iterator[Served]:
    command = [sys.executable, "-m", "tiny_llm", "serve", "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        assert line, process.stderr.read()
        yield Served(line.split(" at ")[1].partition("/v1 ")[0], process)
    finally:
        process.kill()
        process.wait()


def test_a_process_tells_what_its_options_ask_for(random_path: Path, tmp_path: Path) -> None:
    receiver = pytest.importorskip("tests.server.receiver")
    audit, keys = tmp_path / "audit.jsonl", tmp_path / "keys.json"
    secret = add_key(keys, "alice", weight=3.0)
    head = {"authorization": f"Bearer {secret}", "x-request-id": "mine"}
    with receiver.receiving() as received:
        options = ["--otlp", received.url, "--log-format", "json", "--log-prompts", "--audit-log", str(audit)]
        with serving_process("--model", f"tiny={random_path}", "--keys-file", str(keys), *options) as served:
            with httpx.Client(base_url=served.url, headers=head, timeout=60) as http:
                assert http.post("/v1/chat/completions", json=CHAT).status_code == 200
                assert http.get("/health").status_code == 200
            served.end()
        assert [span.name for span in received.spans][:1] == ["chat tiny"]
    lines = [json.loads(line) for line in served.log if line.startswith("{")]
    (prompt,) = [line for line in lines if line["message"] == "prompt"]
    assert WORDS in json.dumps(prompt["prompt"])
    (answered,) = [line for line in lines if line["message"] == "answered"]
    assert answered["request_id"] == "mine" and answered["generated_tokens"] == 6
    (entry,) = map(json.loads, audit.read_text().splitlines())
    assert entry["key_id"] == "alice" and entry["status"] == 200 and entry["request_id"] == "mine"
    assert WORDS not in audit.read_text() and secret not in audit.read_text()


def test_without_options_a_process_tells_nothing(random_path: Path) -> None:
    with serving_process("--model", f"tiny={random_path}") as served:
        assert httpx.post(f"{served.url}/v1/chat/completions", json=CHAT, timeout=60).status_code == 200
        served.end()
    assert served.log == [] and served.process.returncode == 0


def test_prompts_stay_out_of_the_log_without_the_option(random_path: Path) -> None:
    with serving_process("--model", f"tiny={random_path}", "--log-format", "short") as served:
        assert httpx.post(f"{served.url}/v1/chat/completions", json=CHAT, timeout=60).status_code == 200
        served.end()
    assert len(served.log) == 1 and "answered" in served.log[0] and "secret" not in served.log[0]


def test_a_killed_server_finds_its_blocks_on_the_disk(random_path: Path, tmp_path: Path) -> None:
    """Blocks that were evicted before the kill are whole files: the next process loads them, or does not find them."""
    options = ["--model", f"tiny={random_path}", "--disk-folder", str(tmp_path), "--kv-bytes", "400KB"]
    long = [{**CHAT, "messages": [{"role": "user", "content": f"{number} {WORDS * 12}"}]} for number in range(8)]
    answers: list[list[str]] = []
    found: list[int] = []
    for _ in range(2):
        with serving_process(*options) as served, httpx.Client(base_url=served.url, timeout=60) as http:
            bodies = [http.post("/v1/chat/completions", json={**body, "temperature": 0}).json() for body in long]
            assert all("choices" in body for body in bodies), bodies[0]
            answers.append([body["choices"][0]["message"]["content"] for body in bodies])
            found.append(sum(body["usage"]["prompt_tokens_details"]["cached_tokens"] for body in bodies))
            served.process.kill()  # as kill -9 does
    assert answers[0] == answers[1]
    assert found[1] > found[0]

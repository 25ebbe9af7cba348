"""`tiny-llm chat --server URL`: a conversation with a server's model."""

import subprocess
import sys

from tests.server.conftest import Running


def chat(running: Running, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tiny_llm", "chat", "--server", running.url, *options]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=120)


def test_a_conversation_is_that_of_the_model_itself(pocket: Running) -> None:
    asked = "What is a KV cache?\nWhy?\n"
    command = [sys.executable, "-m", "tiny_llm", "chat", "--temperature", "0"]
    own = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=120)
    remote = chat(pocket, asked, "--temperature", "0")
    assert remote.returncode == 0, remote.stderr
    assert remote.stdout.strip() == own.stdout.strip() != ""


def test_faults_are_told(pocket: Running) -> None:
    unknown = chat(pocket, "hi\n", "--model", "other")
    assert unknown.returncode == 1 and "expected one of its models pocket, found 'other'" in unknown.stderr
    engine = chat(pocket, "hi\n", "--ops", "plain")
    assert engine.returncode == 2 and "leave out --prompt-cache" in engine.stderr
    command = [sys.executable, "-m", "tiny_llm", "chat", "--server", "http://127.0.0.1:9"]
    nothing = subprocess.run(command, input="hi\n", capture_output=True, text=True)
    assert nothing.returncode == 1 and "`tiny-llm serve` starts one" in nothing.stderr


def test_a_form_and_a_stop_string_reach_the_server(pocket: Running) -> None:
    found = chat(pocket, "What is a KV cache?\n", "--temperature", "0", "--stop", "cache")
    assert found.returncode == 0 and "cache" not in found.stdout

"""generate: where the prompt comes from, and what comes out."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run
from tests.cli.fake import FakeLLM
from tests.support import make_model, write_json
from tiny_llm import load

GREEDY = ("--temperature", "0", "--max-tokens", "12", "--ignore-eos")


def test_the_prompt_comes_from_the_argument_stdin_or_a_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("from file\n")
    llm = FakeLLM(*"abcd")
    assert run("generate", "from argument", llm=llm).out == "a\n"
    run("generate", stdin="from stdin\n", llm=llm)
    run("generate", "-", stdin="from stdin\n", llm=llm)
    run("generate", "--file", str(tmp_path / "prompt.txt"), llm=llm)
    assert [messages[0]["content"] for messages in llm.asked] == [
        "from argument",
        "from stdin",
        "from stdin",
        "from file",
    ]


def test_raw_continues_the_text_and_chat_answers_it(run: Run) -> None:
    llm = FakeLLM("a", "b")
    run("generate", "text", "--raw", llm=llm)
    run("generate", "text", "--system", "s", llm=llm)
    assert llm.asked == ["text", [{"role": "system", "content": "s"}, {"role": "user", "content": "text"}]]


def test_a_model_without_a_template_continues_the_text(run: Run, tmp_path: Path) -> None:
    path = make_model(tmp_path / "model")
    write_json(path / "tokenizer_config.json", {"eos_token": "<|im_end|>"})
    assert run("generate", "hi", "--model", str(path), *GREEDY).code == 0
    result = run("generate", "hi", "--chat", "--model", str(path), *GREEDY)
    assert result.code == 1
    assert "chat template" in result.err


def test_streamed_and_whole_text_and_the_python_api_agree(run: Run, model_dir: Path) -> None:
    model = ("--model", str(model_dir))
    streamed = run("generate", "hello", "--raw", *model, *GREEDY)
    whole = run("generate", "hello", "--raw", "--no-stream", *model, *GREEDY)
    answer: Any = load(model_dir).generate("hello", temperature=0.0, max_tokens=12, ignore_eos=True)
    assert streamed.code == whole.code == 0
    assert streamed.out == whole.out == answer.text + "\n"
    assert streamed.err == whole.err == ""


def test_json(run: Run, model_dir: Path) -> None:
    result = run("generate", "hello", "--raw", "--json", "--logprobs", "2", "--model", str(model_dir), *GREEDY)
    data = json.loads(result.out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    answer: Any = load(model_dir).generate("hello", temperature=0.0, max_tokens=12, ignore_eos=True, logprobs=2)
    assert list(data) == ["model", "prompt_tokens", "completions", "stats"]
    assert data["model"] == "random-qwen3"
    assert data["prompt_tokens"] == answer.stats.prompt_tokens
    [completion] = data["completions"]
    assert (completion["index"], completion["finish_reason"]) == (0, "length")
    assert (completion["text"], completion["tokens"]) == (answer.text, answer.tokens)
    for mine, entry, token in zip(completion["logprobs"], answer.logprobs, answer.tokens, strict=True):
        assert mine["logprob"] == pytest.approx(entry.logprob, abs=1e-4)
        assert mine["top"][0] == [token, mine["logprob"]]
        assert len(mine["top"]) == 2
    assert data["stats"]["generated_tokens"] == 12
    assert data["stats"]["decode_tps"] > 0


@pytest.mark.parametrize(
    ("options", "count"), [(("--n", "3", "--seed", "1"), 3), (("--beam-width", "4", "--n", "2"), 2)]
)
def test_several_answers(run: Run, model_dir: Path, options: tuple[str, ...], count: int) -> None:
    arguments = ("hello", "--model", str(model_dir), "--max-tokens", "6", *options)
    text = run("generate", *arguments).out
    data = json.loads(run("generate", *arguments, "--json").out)
    assert len(data["completions"]) == count
    shown = "".join(
        f"--- {i} of {count} ({each['finish_reason']})\n{each['text']}\n"
        for i, each in enumerate(data["completions"], 1)
    )
    assert text == shown


@pytest.mark.parametrize("options", [("--n", "2"), ("--no-stream",), ()])
def test_thinking_stands_where_chat_puts_it(run: Run, options: tuple[str, ...]) -> None:
    """Answers shown at the end had their <think> tags on stdout."""
    count = 2 if "--n" in options else 1
    result = run("generate", "hello", *options, llm=FakeLLM(*["<think>hm</think>yes"] * count))
    assert [line for line in result.out.splitlines() if not line.startswith("---")] == ["yes"] * count
    assert result.err.count("hm") == count


def test_stop_strings(run: Run, model_dir: Path) -> None:
    arguments = ("generate", "hello", "--raw", "--model", str(model_dir), *GREEDY)
    text = run(*arguments).out.removesuffix("\n")
    stop = next(character for character in text[2:] if character.isascii() and character.isalnum())
    assert run(*arguments, "--stop", stop).out == text[: text.index(stop)] + "\n"


@pytest.mark.parametrize("line", ["chat", "generate hello"])
def test_who_names_no_model_is_told_which_one_answers(run: Run, model_dir: Path, line: str) -> None:
    assert run(*line.split(), stdin="hello\n").inside
    assert not run(*line.split(), "--model", str(model_dir), stdin="hello\n").inside

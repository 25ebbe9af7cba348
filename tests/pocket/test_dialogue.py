"""What is learned is exactly what a user of the model sends and what comes back."""

from pathlib import Path

import pytest

from tiny_llm.model.tokenizer import Tokenizer
from tiny_llm.pocket.lessons.dialogue import Dialogue, assistant, call, encode_turns, render, tool_result, turns, user
from tiny_llm.pocket.lessons.mix import LONG

WEIGHTS = Path(__file__).parents[2] / "tiny_llm" / "pocket" / "weights" / "target"
TOOL = {"type": "function", "function": {"name": "now", "description": "Zeit in Köln.", "parameters": {}}}

# Written out by hand, as Qwen3's own template renders it.
TOOLS = """<|im_start|>system
Be brief.

# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{"type": "function", "function": {"name": "now", "description": "Zeit in Köln.", "parameters": {}}}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call><|im_end|>
<|im_start|>user
How late?<|im_end|>
<|im_start|>assistant
<tool_call>
{"name": "now", "arguments": {"city": "Köln"}}
</tool_call><|im_end|>
<|im_start|>user
<tool_response>
12:00
</tool_response><|im_end|>
<|im_start|>assistant
"""


def test_tools_calls_and_results_are_in_qwens_format() -> None:
    talk = [{"role": "system", "content": "Be brief."}, user("How late?"), call("now", {"city": "Köln"})]
    talk.append(tool_result("12:00"))
    assert render(talk, [TOOL], add_generation_prompt=True) == TOOLS
    assert render(talk, [TOOL], add_generation_prompt=True, enable_thinking=True) == TOOLS
    assert render(talk, [TOOL], add_generation_prompt=True, enable_thinking=False) == TOOLS + "<think>\n\n</think>\n\n"


def test_two_results_share_a_turn() -> None:
    talk = [user("a"), call("f", {}), tool_result("1"), tool_result("2")]
    expected = (
        "<|im_start|>user\n<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response><|im_end|>\n"
    )
    assert render(talk).endswith(expected)


def test_only_turns_after_the_last_question_keep_their_thoughts() -> None:
    talk = [user("1+1"), assistant("2", "one and one"), user("2+2"), assistant("4", "two and two")]
    assert render(talk) == (
        "<|im_start|>user\n1+1<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n<|im_start|>user\n2+2<|im_end|>\n"
        "<|im_start|>assistant\n<think>\ntwo and two\n</think>\n\n4<|im_end|>\n"
    )


def test_a_thought_written_into_the_content_is_found() -> None:
    assert render([user("?"), assistant("<think>\nwell\n</think>\n\nYes.")]) == render(
        [user("?"), assistant("Yes.", "well")]
    )


def test_each_turn_is_prompt_and_completion() -> None:
    talk = Dialogue("t", (user("1+1"), assistant("2", "one and one"), user("Hi"), assistant("Hello")))
    first, second = turns(talk)
    assert first.prompt == "<|im_start|>user\n1+1<|im_end|>\n<|im_start|>assistant\n"
    assert first.completion == "<think>\none and one\n</think>\n\n2<|im_end|>"
    assert second.prompt.endswith("2<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert second.completion == "<think>\n\n</think>\n\nHello<|im_end|>"


def test_without_thinking_the_empty_block_is_in_the_prompt() -> None:
    (turn,) = turns(Dialogue("t", (user("Hi"), assistant("Hello")), thinking=False))
    assert turn.prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert turn.completion == "Hello<|im_end|>"


@pytest.mark.parametrize("lesson", range(40))
def test_the_engines_tokenizer_renders_lessons_alike(lesson: int) -> None:
    """Training and chat must see the same prompt, token for token."""
    tokenizer = Tokenizer.from_dir(WEIGHTS)
    for dialogue in LONG.lesson(11, lesson):
        encoded = list(encode_turns(dialogue, tokenizer.encode))
        replies = [i for i, message in enumerate(dialogue.messages) if message["role"] == "assistant"]
        for index, turn, (prompt, completion) in zip(replies, turns(dialogue), encoded, strict=True):
            options = {"add_generation_prompt": True, "enable_thinking": dialogue.thinking}
            seen = tokenizer.render(dialogue.messages[:index], list(dialogue.tools) or None, **options)
            assert seen == turn.prompt
            assert tokenizer.encode(seen) == prompt
            assert completion[-1] in tokenizer.eos_token_ids
            assert tokenizer.decode(completion, keep_special=True) == turn.completion

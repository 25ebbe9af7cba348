"""Lessons are right: each answer follows from its prompt, and the evaluation's words never come in training."""

import ast
import operator
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tiny_llm.pocket.lessons.builtin import BUILTIN
from tiny_llm.pocket.lessons.chat import UNTOLD, arithmetic_lesson, memory_lesson
from tiny_llm.pocket.lessons.context import context_lesson, needle_lesson, needle_of_length
from tiny_llm.pocket.lessons.dialogue import Dialogue, render
from tiny_llm.pocket.lessons.faq import SIZE, UNKNOWN, faq_entries
from tiny_llm.pocket.lessons.mix import EVERYTHING, LESSONS, LONG, Mix
from tiny_llm.pocket.lessons.passages import ABSENT
from tiny_llm.pocket.lessons.tool_calls import NO_TOOL, tool_lesson
from tiny_llm.pocket.lessons.toolbox import toolbox
from tiny_llm.pocket.lessons.tools import attributes, families, in_other_words, other_words, say
from tiny_llm.pocket.lessons.words import Words, held_out, read_table
from tiny_llm.pocket.recipe import RECIPES
from tiny_llm.pocket.tokenizer import VOCAB_SIZE

SPLITS = ("train", "test")
OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def arithmetic(node: ast.expr) -> float:
    """The value of an expression of numbers, + - * / and brackets."""
    if isinstance(node, ast.BinOp):
        return OPERATIONS[type(node.op)](arithmetic(node.left), arithmetic(node.right))
    assert isinstance(node, ast.Constant)
    return node.value


def many(lesson: Any, split: Any, count: int = 150) -> Iterator[Dialogue]:
    for seed in range(count):
        yield from lesson(Words(f"many/{seed}", split), 2)


def test_a_lesson_is_the_same_whenever_it_is_made() -> None:
    assert [LONG.lesson(3, n) for n in (5, 0, 5)] == [LONG.lesson(3, n) for n in (5, 0, 5)]
    assert LONG.lesson(3, 5) != LONG.lesson(4, 5)
    assert LONG.lesson(3, 5) != LONG.lesson(3, 6)


def test_the_mix_holds_every_kind_about_as_often_as_it_says() -> None:
    tasks = [EVERYTHING.lesson(1, n)[0].task.split(":")[0] for n in range(800)]
    total = sum(EVERYTHING.weights.values())
    for kind in ("tool", "builtin", "passages"):
        assert tasks.count(kind) / 800 == pytest.approx(EVERYTHING.weights[kind] / total, abs=0.05)
    assert {"tool", "needle", "faq", "text", "multi_turn", "think"} < set(tasks)


def test_a_mix_refuses_what_is_no_lesson() -> None:
    with pytest.raises(ValueError, match=r"mix: poetry=0.5 is not a lesson .*choose among tool"):
        Mix({"tool": 1, "poetry": 0.5})
    with pytest.raises(ValueError, match="mix: tool=-1"):
        Mix({"tool": -1})


@pytest.mark.parametrize("split", SPLITS)
def test_answers_stand_in_the_passage_cited(split: str) -> None:
    for dialogue in many(context_lesson, split):
        question, answer = dialogue.messages[-2]["content"], dialogue.messages[-1]["content"]
        passages = dict(re.findall(r"^\[(\d)\] (.*)$", question, re.M))
        assert 1 <= len(passages) <= 5
        if dialogue.task == "context_absent":
            assert answer == ABSENT
        else:
            found, number = re.fullmatch(r"(.*) \[(\d)\]\.", answer).groups()
            assert found in passages[number]


def test_what_is_absent_is_not_stated_of_that_entity() -> None:
    """The relation asked for must not stand in any sentence on the entity: the value would be there to be found."""
    checked = 0
    for dialogue in many(context_lesson, "train", 300):
        question = dialogue.messages[-2]["content"]
        asked = re.search(r"Question: What is the (\w+) of the (.*)\?$", question)
        if dialogue.task == "context_absent" and asked:
            stated = re.findall(rf"The {asked[1]} of the {re.escape(asked[2])} is", question)
            assert stated == []
            checked += 1
    assert checked > 5


@pytest.mark.parametrize("split", SPLITS)
def test_a_needle_is_once_in_the_hay_and_is_the_answer(split: str) -> None:
    for seed in range(60):
        for dialogue in needle_lesson(Words(seed, split), 8, 2):
            hay, question = dialogue.messages[0]["content"].split("\n\n")
            answer = dialogue.messages[1]["content"].rstrip(".")
            (name,) = [n for n in re.findall(r"[A-Z]\w{3,}", question) if hay.count(n) == 1 and n in hay]
            (sentence,) = [s for s in re.split(r"(?<=\.) ", hay) if name in s]
            assert answer in sentence


@pytest.mark.parametrize("tokens", [64, 512, 2048])
def test_a_needle_prompt_has_the_length_asked_for(tokens: int) -> None:
    lengths = []
    for seed in range(6):
        (dialogue,) = needle_of_length(Words(seed), tokens, lambda d: len(render(d.messages[:1])) // 4)
        lengths.append(len(render(dialogue.messages[:1])) // 4)
    assert all(0.9 * tokens < length <= tokens for length in lengths)


def calls(dialogue: Dialogue) -> Iterator[tuple[str, dict[str, Any], str]]:
    """(tool, arguments, result) of each call of a dialogue."""
    for message, after in zip(dialogue.messages, dialogue.messages[1:], strict=False):
        for made in message.get("tool_calls", []):
            yield made["function"]["name"], made["function"]["arguments"], after["content"]


@pytest.mark.parametrize("split", SPLITS)
def test_calls_fit_their_schemas_and_take_their_values_from_the_talk(split: str) -> None:
    seen = 0
    for dialogue in many(tool_lesson, split):
        schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in dialogue.tools}
        assert len(schemas) == len(dialogue.tools) <= 4
        said = " ".join(m["content"] for m in dialogue.messages if m["role"] in ("user", "tool"))
        for name, arguments, _ in calls(dialogue):
            properties = schemas[name]["properties"]
            assert set(schemas[name]["required"]) <= set(arguments) <= set(properties)
            for key, value in arguments.items():
                assert isinstance(value, str) == (properties[key]["type"] == "string")
                assert value in properties[key].get("enum", [value])
                if not re.search(r"[(*/+]| - |print", str(value)):  # code and sums are worded otherwise
                    assert str(value) in said
            seen += 1
    assert seen > 200


def test_no_call_is_made_where_no_tool_fits() -> None:
    refusals = [d for d in many(tool_lesson, "train", 300) if d.messages[-1]["content"] == NO_TOOL]
    assert len(refusals) > 20
    assert not any(list(calls(dialogue)) for dialogue in refusals)


def test_every_way_of_using_tools_comes() -> None:
    tasks = {d.task for d in many(tool_lesson, "test", 300)}
    ways = "single second_call chain failure retry correction none_fits plain follow_up".split()
    assert tasks == {f"tool:{way}" for way in ways}
    trained = {d.task for d in many(tool_lesson, "train", 300)}
    assert trained == {f"tool:{way}" for way in (*ways, "nearly_fits", "again")}


def test_questions_in_other_words_come_in_training_only() -> None:
    """They name no attribute, and none of them is a wording that is kept for the evaluation."""
    kept = set()
    for relation in read_table("tables/relations.toml")["relation"]:
        kept |= set(Words(0, "test").phrasings(relation["asks"]))
    for family in (*families("train"), *families("test")):
        kept |= set(Words(0, "test").phrasings(family["asks"]))
    kept = {re.sub(r"{\w+}", "{}", ask) for ask in kept}
    for attribute, other in other_words().items():
        assert attribute in other.like <= set(attributes())
        for ask in other.asks:
            assert attribute not in ask
            assert re.sub(r"{\w+}", "{}", ask) not in kept
    assert in_other_words(Words(1, "test"), "price", 1.0) is None
    assert in_other_words(Words(1), "price", 1.0) == other_words()["price"]


def test_no_other_attribute_in_a_box_may_be_meant_by_a_question() -> None:
    for seed in range(200):
        tools = toolbox(Words(seed), 5)
        for tool in tools:
            others = [other for other in tools if other is not tool]
            assert not any(tool.like & other.like for other in others)


@pytest.mark.parametrize("split", SPLITS)
def test_the_calculators_results_are_right(split: str) -> None:
    words = Words(5, split)
    for _ in range(200):
        request = BUILTIN["calculator"](words).request(words)
        (expression,) = request.arguments.values()
        result = float(re.search(r"-?[\d.]+", request.result)[0])
        assert result == pytest.approx(arithmetic(ast.parse(expression, mode="eval").body), abs=6e-5)
        assert request.answer.startswith(f"{expression} = ")


def test_python_tasks_print_what_they_claim(capsys: pytest.CaptureFixture[str]) -> None:
    words = Words(6)
    for _ in range(80):
        request = BUILTIN["python"](words).request(words)
        (code,) = request.arguments.values()
        exec(code, {})
        printed = capsys.readouterr().out.strip()
        assert printed == request.result or float(printed) == pytest.approx(float(request.result), abs=6e-5)


def test_results_are_reported_in_one_way() -> None:
    assert say({"gate": "B12", "start_time": "12:30", "seats": 4}) == (
        "The gate is B12, the start time is 12:30 and the seats is 4."
    )
    assert say({"price": 3}) == "The price is 3."


@pytest.mark.parametrize("split", SPLITS)
def test_sums_and_their_working_are_right(split: str) -> None:
    for dialogue in many(arithmetic_lesson, split):
        expression, result = dialogue.messages[-1]["content"].rstrip(".").split(" = ")
        assert arithmetic(ast.parse(expression, mode="eval").body) == int(result)
        thought = dialogue.messages[-1].get("reasoning_content", "")
        assert bool(thought) == dialogue.thinking
        for step in filter(None, thought.rstrip(".").partition(": ")[2].split("; ")):
            left, right = step.split(" = ")
            assert arithmetic(ast.parse(left, mode="eval").body) == int(right)


@pytest.mark.parametrize("split", SPLITS)
def test_memory_gives_back_what_was_told_last(split: str) -> None:
    for dialogue in many(memory_lesson, split):
        *before, _, answer = (message["content"] for message in dialogue.messages)
        name, value = re.fullmatch(r"Your (.*?) is (.*)\.", answer).groups()
        if value != UNTOLD:
            told = [text for text in before[::2] if (name in text or name == "name") and value in text]
            assert told, (name, value, before)
            later = before[before.index(told[-1]) + 2 :: 2]
            assert not any(re.search(rf"my {name} is", text, re.I) for text in later)
        else:
            assert not any(f"my {name} " in text.lower() for text in before[::2])


def capitalised(dialogue: Dialogue) -> set[str]:
    return set(re.findall(r"\b[A-Z][a-z]{3,}\b", render(dialogue.messages)))


def test_names_of_the_evaluation_never_come_in_training() -> None:
    made_up = {Words(seed, "test").name() for seed in range(400)}
    assert all(held_out(name) for name in made_up)
    train = set()
    for number in range(300):
        for dialogue in LONG.lesson(1, number):
            train |= capitalised(dialogue)
    assert len(train) > 500
    assert not made_up & train


def test_tool_families_are_listed_once_and_an_eighth_is_held_out() -> None:
    train, test = ({family["id"] for family in families(split)} for split in SPLITS)
    assert len(train) + len(test) >= 45
    assert not train & test
    assert len(test) >= 5


def test_of_three_or_more_phrasings_one_is_kept_for_the_evaluation() -> None:
    asks = ("What is {}?", "Tell me {}.", "Say {}.", "I need {}.")
    train, test = (set(Words(0, split).phrasings(asks)) for split in SPLITS)
    assert len(test) == 1
    assert train | test == set(asks)
    assert not train & test


def test_the_faq_is_large_and_its_answers_short() -> None:
    entries = faq_entries()
    assert len(entries) >= 150
    asked = [ask for entry in entries for ask in entry.asks]
    assert len(set(asked)) == len(asked)
    for entry in entries:
        assert len(entry.asks) >= 4
        assert len(re.findall(r"[.!?:](?= |$)", entry.answer)) <= 4, entry.answer
        assert "<|" not in entry.answer
    assert "tiny-llm chat --model qwen3-0.6b" in UNKNOWN


def test_the_model_knows_its_size() -> None:
    shape = RECIPES["target"].size
    attention, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    layer = shape.hidden * (2 * attention + 2 * kv + 3 * shape.mlp + 2) + 2 * shape.head_dim
    total = shape.layers * layer + (VOCAB_SIZE + 1) * shape.hidden
    assert f"{total / 1e6:.1f} million" == SIZE
    assert any(SIZE in entry.answer for entry in faq_entries())
    assert not any("{" in entry.answer for entry in faq_entries())


def test_every_kind_of_lesson_is_made() -> None:
    for make in LESSONS.values():
        assert all(dialogue.messages[-1]["role"] == "assistant" for dialogue in make(Words(1)))


def test_a_value_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown kind of value 'colour'"):
        Words(0).value("colour")


@pytest.mark.parametrize("table", ["tools_lookup", "tools_action"])
def test_every_question_of_a_tool_names_all_its_arguments(table: str) -> None:
    for family in read_table(f"tables/{table}.toml")["family"]:
        for ask in family["asks"]:
            assert all(f"{{{i}}}" in ask for i in range(len(family["parameters"]))), ask

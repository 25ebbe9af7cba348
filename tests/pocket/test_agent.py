"""Lessons with the built-in tools and retrieved passages: exact schemas, right results, and an end to every answer."""

import ast
import contextlib
import datetime
import io
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tiny_llm.config.prompts import builtin_tools, passage_format
from tiny_llm.pocket.evaluate import cases, same_answer
from tiny_llm.pocket.lessons.agent import SCENARIOS, agent_lesson
from tiny_llm.pocket.lessons.agent_tools import WISHES
from tiny_llm.pocket.lessons.dialogue import STOP, Dialogue, encode_turns, turns
from tiny_llm.pocket.lessons.mix import EVERYTHING, LONG
from tiny_llm.pocket.lessons.retrieval import passages_lesson
from tiny_llm.pocket.lessons.tool_calls import NO_TOOL
from tiny_llm.pocket.lessons.wishes import Wish
from tiny_llm.pocket.lessons.words import Words, read_table
from tiny_llm.pocket.tokenizer import shipped_tokenizer
from tiny_llm.train.tree import grow

SPLITS = ("train", "test")


def encode(text: str) -> list[int]:
    return shipped_tokenizer().encode(text, add_special_tokens=False).ids


def many(lesson: Any, split: Any, count: int = 200) -> Iterator[Dialogue]:
    for seed in range(count):
        yield from lesson(Words(f"agent/{seed}", split), 2)


def wishes(name: str, split: Any, count: int = 150) -> Iterator[Wish]:
    for seed in range(count):
        yield WISHES[name](Words(f"wish/{seed}", split))


def calls(dialogue: Dialogue) -> Iterator[tuple[str, dict[str, Any]]]:
    for message in dialogue.messages:
        for made in message.get("tool_calls", []):
            yield made["function"]["name"], made["function"]["arguments"]


def test_every_built_in_tool_has_wishes() -> None:
    assert list(WISHES) == list(builtin_tools().tools)


@pytest.mark.parametrize("split", SPLITS)
def test_built_in_tools_are_offered_with_their_exact_schemas_among_two_to_eight(split: str) -> None:
    orders, sizes = set(), set()
    for dialogue in many(agent_lesson, split):
        names = [tool["function"]["name"] for tool in dialogue.tools]
        assert len(set(names)) == len(names)
        sizes.add(len(names))
        orders.add(tuple(name for name in names if name in WISHES))
        for tool in dialogue.tools:
            name = tool["function"]["name"]
            if name in WISHES:
                assert tool == builtin_tools().tools[name].schema
    assert sizes == set(range(2, 9))
    assert len(orders) > 100


@pytest.mark.parametrize("split", SPLITS)
def test_calls_fit_their_schemas(split: str) -> None:
    for dialogue in many(agent_lesson, split):
        parameters = {tool["function"]["name"]: tool["function"]["parameters"] for tool in dialogue.tools}
        for name, arguments in calls(dialogue):
            properties = parameters[name]["properties"]
            assert set(parameters[name]["required"]) <= set(arguments) <= set(properties)
            for key, value in arguments.items():
                assert isinstance(value, str) == (properties[key]["type"] == "string")


@pytest.mark.parametrize("split", SPLITS)
def test_values_of_calls_stand_in_the_talk(split: str) -> None:
    """Paths, texts and dates are copied; only sums, code and counted days are worded otherwise."""
    for dialogue in many(agent_lesson, split):
        said = "\n".join(m["content"] for m in dialogue.messages if m["role"] in ("user", "tool"))
        for name, arguments in calls(dialogue):
            for key, value in arguments.items():
                if name in WISHES and key not in ("expression", "code", "days"):
                    assert str(value) in said, (name, value, said)


def test_every_scenario_comes_in_both_splits() -> None:
    expected = {f"builtin:{each.make.__name__}" for each in SCENARIOS}
    for split in SPLITS:
        assert {dialogue.task for dialogue in many(agent_lesson, split, 500)} == expected


def test_chains_have_two_and_three_calls_and_report_at_the_end() -> None:
    lengths: dict[str, set[int]] = {}
    for dialogue in many(agent_lesson, "train", 500):
        lengths.setdefault(dialogue.task, set()).add(len(list(calls(dialogue))))
        assert dialogue.messages[-1]["content"]
    assert lengths["builtin:look_and_write"] == lengths["builtin:read_and_run"] == {2}
    assert lengths["builtin:read_add_write"] == lengths["builtin:search_multiply_write"] == {3}
    assert 0 in lengths["builtin:none_fits"]


def test_a_wish_without_a_tool_is_refused_without_a_call() -> None:
    refused = [d for d in many(agent_lesson, "train", 400) if d.messages[-1]["content"] == NO_TOOL]
    assert len(refused) > 30
    assert not any(list(calls(dialogue)) for dialogue in refused)


@pytest.mark.parametrize("split", SPLITS)
def test_sums_are_right(split: str) -> None:
    for wish in wishes("calculator", split):
        expression = wish.arguments["expression"]
        ast.parse(expression, mode="eval")
        assert float(wish.result) == pytest.approx(eval(expression), abs=6e-5)
        assert wish.answer == f"{expression} = {wish.result}."


@pytest.mark.parametrize("split", SPLITS)
def test_dates_are_right(split: str) -> None:
    for wish in wishes("clock", split, 300):
        arguments = wish.arguments
        if "date" in arguments:
            start = datetime.date.fromisoformat(arguments["date"])
            if "until" in arguments:
                until = datetime.date.fromisoformat(arguments["until"])
                assert wish.result == f"{(until - start).days} days"
            else:
                day = start + datetime.timedelta(days=arguments.get("days", 0))
                assert wish.result == f"{day:%A %Y-%m-%d}"
        if "weeks" in wish.question:
            assert arguments["days"] == 7 * int(re.search(r"\d+", wish.question)[0])
        elif "ago" in wish.question or "before today" in wish.question:
            assert arguments["days"] < 0


@pytest.mark.parametrize("split", SPLITS)
def test_code_prints_what_the_lesson_says(split: str) -> None:
    for wish in wishes("run_python", split):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(wish.arguments["code"], {})
        assert printed.getvalue().strip() == wish.result


@pytest.mark.parametrize("split", SPLITS)
def test_an_edit_changes_something(split: str) -> None:
    for wish in wishes("edit_file", split):
        assert wish.arguments["old_string"] not in ("", wish.arguments["new_string"])


@pytest.mark.parametrize("split", SPLITS)
def test_answers_stand_in_the_passages_cited(split: str) -> None:
    tasks = set()
    for dialogue in many(passages_lesson, split):
        tasks.add(dialogue.task)
        answer = dialogue.messages[-1]["content"]
        prompts = [m["content"] for m in dialogue.messages if m["role"] == "user" and "Question: " in m["content"]]
        passages = dict(re.findall(r"^\[(\d)\] (.*)$", prompts[-1], re.MULTILINE))
        assert 1 <= len(passages) <= 6
        if dialogue.task == "passages:absent":
            assert answer == passage_format().absent
            continue
        found = re.findall(r"(.*?) \[(\d)\]\.(?: |$)", answer)
        assert len(found) == (2 if dialogue.task == "passages:two" else 1)
        assert all(value in passages[number] for value, number in found)
    assert tasks == {"passages:answer", "passages:absent", "passages:two"}


@pytest.mark.parametrize("lesson", [agent_lesson, passages_lesson])
def test_every_answer_ends(lesson: Any) -> None:
    for dialogue in many(lesson, "train", 60):
        for turn in turns(dialogue):
            assert turn.completion.endswith(STOP)
            assert turn.completion.count(STOP) == 1


@pytest.mark.parametrize(("lesson", "branches"), [(agent_lesson, 2), (passages_lesson, 8)])
def test_most_lessons_fit_into_a_stage(lesson: Any, branches: int) -> None:
    lengths = []
    for seed in range(120):
        dialogues = lesson(Words(f"length/{seed}"), branches)
        lengths.append(len(grow(turn for dialogue in dialogues for turn in encode_turns(dialogue, encode))))
    assert sum(length <= 1024 for length in lengths) > 0.88 * len(lengths)
    assert max(lengths) <= 2304


def test_a_quarter_of_the_mix_is_built_in_tools_and_passages() -> None:
    for mix in (EVERYTHING, LONG):
        share = sum(mix.weights.get(kind, 0) for kind in ("builtin", "long_builtin", "passages"))
        assert share / sum(mix.weights.values()) == pytest.approx(0.25, abs=0.03)


def test_kept_phrasings_of_tools_never_come_in_training() -> None:
    asked = [m["content"] for d in many(agent_lesson, "train", 400) for m in d.messages if m["role"] == "user"]
    checked = 0
    for row in read_table("tables/builtin_asks.toml").values():
        (kept,) = Words(0, "test").phrasings(row["asks"])
        if re.fullmatch(r"[^{}]*({[pnduab]}[^{}]*)+", kept) and len(kept.split()) > 3:
            pattern = re.sub(r"\\{\w\\}", r"\\S+", re.escape(kept))
            assert not any(re.search(pattern, text) for text in asked), kept
            checked += 1
    assert checked > 8


def test_builtin_cases_are_calls_and_refusals() -> None:
    start = encode("<tool_call>")[0]
    found = [case for case, _ in zip(cases("builtin_call", encode), range(120), strict=False)]
    decode = shipped_tokenizer().decode
    for case in found:
        assert case.answer[0] == start or decode(case.answer) == NO_TOOL
        assert case.family.startswith("builtin:")


def test_a_call_is_right_however_its_json_is_spaced() -> None:
    wanted = '<tool_call>\n{"name": "clock", "arguments": {"date": "2030-01-02", "days": 3}}\n</tool_call>'
    made = json.dumps({"arguments": {"days": 3, "date": "2030-01-02"}, "name": "clock"})
    assert same_answer("builtin_call", f"<tool_call>\n{made}\n</tool_call>", wanted)
    assert not same_answer("builtin_call", wanted.replace("3}", "4}"), wanted)
    assert not same_answer("builtin_call", wanted.replace("\n</tool_call>", ""), wanted)
    assert not same_answer("tool_call", f"<tool_call>\n{made}\n</tool_call>", wanted)
    assert same_answer("builtin_call", NO_TOOL, NO_TOOL)

"""Text work: each answer follows from its request, inputs are short and long, and the kept wordings are not trained."""

import ast
import csv
import json
import re
from collections.abc import Iterator

import pytest

from tiny_llm.pocket.lessons.dialogue import Dialogue
from tiny_llm.pocket.lessons.lists import NUMBERS, SEPARATORS
from tiny_llm.pocket.lessons.mix import EVERYTHING, LONG, TEXTWORK
from tiny_llm.pocket.lessons.records import GAPS
from tiny_llm.pocket.lessons.text import TASKS, all_of, one_of, piece, requests, text_lesson
from tiny_llm.pocket.lessons.words import Split, Words
from tiny_llm.pocket.tokenizer import shipped_tokenizer

SPLITS: tuple[Split, ...] = ("train", "test")
ASKED = [name for name in TASKS if name != "fixed"]


def pieces(name: str, split: Split) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the values and the answer of short and long inputs of a family."""
    for seed in range(40):
        task = TASKS[name]
        size = 2 + seed % 5 if seed < 30 else task.longest
        yield task.make(Words(f"{name}/{seed}", split), size)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", ASKED)
def test_every_request_names_its_text_and_what_to_do_with_it(name: str, split: Split) -> None:
    for seed in range(60):
        long = bool(seed % 2)
        question, answer = piece(Words(seed, split), name, long)
        assert answer and answer == answer.strip()
        assert "<|" not in question + answer
        assert not re.search(r"\{\d*\}", question)
        assert "|" not in question or name in ("join", "split")


@pytest.mark.parametrize("name", ASKED)
def test_the_kept_wording_is_never_trained(name: str) -> None:
    known = requests(name)
    (kept,) = Words(0, "test").phrasings(known.asks)
    places = kept.count("{")
    marks = [f"X{place}" for place in range(places)]
    kept_text = kept.format(*marks).lower().rstrip(".")
    for seed in range(1500):
        words = Words(seed)
        pattern = words.choice([*known.more, *known.questions])
        order = one_of(words, pattern).format(*marks)
        for said in (order, f"{order}: {marks[-1]}", f"{order}:\n{marks[-1]}", f"{order}, please"):
            assert said.lower().rstrip(".") != kept_text
    assert kept not in Words(0).phrasings(known.asks)


@pytest.mark.parametrize("name", ASKED)
def test_orders_name_their_arguments_and_whole_requests_the_text_too(name: str) -> None:
    known, task = requests(name), TASKS[name]
    count = len(task.make(Words(0), 4).values)
    arguments = set(range(count if task.bare else count - 1))
    for pattern in known.more:
        assert {int(place) for place in re.findall(r"\{(\d)\}", pattern)} == arguments
    for pattern in known.questions:
        assert {int(place) for place in re.findall(r"\{(\d)\}", pattern)} == set(range(count))
    for ask in known.asks:
        assert len(set(re.findall(r"\{\d\}", ask))) in (0, count)
        assert ask.count("{") == count


@pytest.mark.parametrize("name", ASKED)
def test_training_asks_in_many_ways(name: str) -> None:
    known = requests(name)
    assert len(known.asks) >= 3
    patterns = [*known.more, *known.questions]
    assert sum(len(all_of(pattern)) for pattern in patterns) >= 70
    assert all(pattern.count("(") == pattern.count(")") for pattern in patterns)


@pytest.mark.parametrize("split", SPLITS)
def test_counting_goes_from_the_first_number_to_the_last(split: Split) -> None:
    for name, step in (("count_up", 1), ("count_down", -1)):
        for (first, last), answer in pieces(name, split):
            numbers = range(int(first), int(last) + step, step)
            assert answer == ", ".join(map(str, numbers)) + "."
    for (first, last, by), answer in pieces("count_by", split):
        assert answer == ", ".join(map(str, range(int(first), int(last) + 1, int(by)))) + "."
        assert answer.endswith(f"{last}.")


@pytest.mark.parametrize("split", SPLITS)
def test_lists_are_reversed_cut_and_extended(split: Split) -> None:
    for (text,), answer in pieces("reverse", split):
        between = ", " if ", " in text else " "
        assert answer.split(between) == text.split(between)[::-1]
    for (text,), answer in pieces("reverse_lines", split):
        assert answer.split("\n") == text.split("\n")[::-1]
    for (said, text), answer in pieces("pick", split):
        found = re.split("[, ]+", text)
        places = {"last": -1, "first": 0, "second": 1, "third": 2, "fourth": 3, "fifth": 4, "sixth": 5}
        assert found[places[said]] == answer
    for (text,), answer in pieces("how_many", split):
        assert NUMBERS.index(answer.rstrip(".").lower()) == len(text.split(", "))
    for (said, text), answer in pieces("take", split):
        assert answer.split(", ") == text.split(", ")[: NUMBERS.index(said)]
    for (gone, text), answer in pieces("leave_out", split):
        assert sorted([gone, *answer.split(", ")]) == sorted(text.split(", "))
    for (new, text), answer in pieces("append", split):
        assert answer == f"{text}, {new}"


@pytest.mark.parametrize("split", SPLITS)
def test_lines_are_numbered_joined_and_split(split: Split) -> None:
    for name, before in (("bullets", "-"), ("numbered", r"\d+\."), ("number_lines", r"\d+\.")):
        for (text,), answer in pieces(name, split):
            lines = answer.split("\n")
            assert [re.sub(f"^{before} ", "", line) for line in lines] == re.split(", |\n", text)
            if before != "-":
                assert [int(line.split(".")[0]) for line in lines] == list(range(1, len(lines) + 1))
    for (named, text), answer in pieces("join", split):
        assert answer.split(SEPARATORS[named]) == text.split("\n")
    for (named, text), answer in pieces("split", split):
        assert answer.split("\n") == text.split(SEPARATORS[named])


@pytest.mark.parametrize("split", SPLITS)
def test_sorting_puts_first_letters_and_numbers_in_order(split: Split) -> None:
    for (text,), answer in pieces("sort_words", split):
        first = [word[0] for word in answer.split(", ")]
        assert first == sorted(set(first))
        assert sorted(answer.split(", ")) == sorted(text.split(", "))
    for (text,), answer in pieces("sort_numbers", split):
        assert list(map(int, answer.split(", "))) == sorted(map(int, text.split(", ")))


@pytest.mark.parametrize("split", SPLITS)
def test_json_holds_the_fields_of_the_request(split: Split) -> None:
    for (text,), answer in pieces("to_array", split):
        assert json.loads(answer) == re.split(", |\n", text)
    for (text,), answer in pieces("to_object", split):
        fields = [re.split(": | is | = ", field) for field in re.split(", |\n", text)]
        assert {key: str(value) for key, value in json.loads(answer).items()} == dict(fields)
    for (key, text), answer in pieces("from_object", split):
        assert str(json.loads(text)[key]) == answer
    for (text,), answer in pieces("object_lines", split):
        assert [line.split(": ") for line in answer.split("\n")] == [
            [key, str(value)] for key, value in json.loads(text).items()
        ]


@pytest.mark.parametrize("split", SPLITS)
def test_tables_are_read_and_written(split: Split) -> None:
    for (text,), answer in pieces("from_csv", split):
        rows = list(csv.DictReader(text.split("\n")))
        made = [json.loads(line) for line in answer.split("\n")]
        assert [{key: str(value) for key, value in row.items()} for row in made] == rows
    for (text,), answer in pieces("to_csv", split):
        for row, line in zip(csv.DictReader(answer.split("\n")), text.split("\n"), strict=True):
            assert all(key in line and value in line for key, value in row.items())
    for (name, text), answer in pieces("column", split):
        assert answer.split("\n") == [row[name] for row in csv.DictReader(text.split("\n"))]


@pytest.mark.parametrize("split", SPLITS)
def test_templates_are_filled(split: Split) -> None:
    for (text, said), answer in pieces("fill", split):
        for field in said.split(", "):
            key, value = field.split(" = ")
            for gap in GAPS:
                text = text.replace(gap.format(key), value)
        assert text == answer


@pytest.mark.parametrize("split", SPLITS)
def test_only_the_word_or_number_named_changes(split: Split) -> None:
    for name in ("replace", "rename", "change_number"):
        for (old, new, text), answer in pieces(name, split):
            assert re.search(rf"\b{old}\b", text)
            assert [new if word == old else word for word in re.split(r"\b", text)] == re.split(r"\b", answer) or (
                re.sub(rf"\b{old}\b", new, text) == answer
            )
            assert not re.search(rf"\b{old}\b", answer) or old == new


@pytest.mark.parametrize("split", SPLITS)
def test_code_is_python(split: Split) -> None:
    for (text,), answer in pieces("repeat_code", split):
        ast.parse(text)
        assert answer == text
    for (_, _, text), answer in pieces("rename", split):
        assert len(list(ast.walk(ast.parse(text)))) == len(list(ast.walk(ast.parse(answer))))


@pytest.mark.parametrize("split", SPLITS)
def test_case_changes_letters_only(split: Split) -> None:
    for name in ("upper", "lower"):
        for (text,), answer in pieces(name, split):
            assert answer.lower() == text.lower()
            assert answer == (answer.upper() if name == "upper" else answer.lower())


def answer_tokens(dialogue: Dialogue) -> int:
    return len(shipped_tokenizer().encode(dialogue.messages[-1]["content"]).ids)


def test_answers_have_any_length_up_to_some_hundred_tokens() -> None:
    lengths = [answer_tokens(dialogue) for seed in range(150) for dialogue in text_lesson(Words(seed), 2, long=1.0)]
    assert min(lengths) < 20
    assert max(lengths) > 300
    assert max(lengths) < 600
    assert sum(length > 100 for length in lengths) > 0.25 * len(lengths)
    short = [answer_tokens(dialogue) for seed in range(80) for dialogue in text_lesson(Words(seed), 2, long=0.0)]
    assert sum(length < 60 for length in short) > 0.8 * len(short)


def test_text_work_is_an_eighth_of_everything_and_most_of_its_own_stage() -> None:
    for mix, low, high in ((EVERYTHING, 0.10, 0.15), (LONG, 0.11, 0.15), (TEXTWORK, 0.6, 0.8)):
        share = (mix.weights["text"] + mix.weights["long_text"]) / sum(mix.weights.values())
        assert low < share < high

"""Open prompts: every kind has lessons that end shortly, and the rate of answers without an end counts right."""

import json
import re
from collections import Counter

import pytest

from tiny_llm.pocket import evaluate
from tiny_llm.pocket.evaluate import Evaluation, loop_rate
from tiny_llm.pocket.lessons import talk
from tiny_llm.pocket.lessons.conversations import open_prompts
from tiny_llm.pocket.lessons.faq import UNKNOWN
from tiny_llm.pocket.lessons.talk import FAMILIES, talk_lesson
from tiny_llm.pocket.lessons.words import Split, Words, held_out, read_table
from tiny_llm.pocket.tokenizer import shipped_tokenizer

ANSWERS = {talk.PUZZLED, talk.ASK_ME, talk.ENGLISH_ONLY, talk.NO_CODE, talk.AND_NOW, talk.WHAT_TEXT, talk.TOO_LONG}
ANSWERS |= {UNKNOWN}


def encode(text: str) -> list[int]:
    return shipped_tokenizer().encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_kind_of_talk_has_a_short_answer(split: Split) -> None:
    tasks = Counter(dialogue.task for seed in range(60) for dialogue in talk_lesson(Words(seed, split), 4))
    assert set(tasks) - {"talk:in_two_turns"} == {f"talk:{name}" for name in FAMILIES}
    for seed in range(60):
        for dialogue in talk_lesson(Words(seed, split), 2):
            assert dialogue.messages[1]["content"] in ANSWERS
            assert not re.search(r"\{\d*\}", dialogue.messages[0]["content"])


def test_an_order_and_its_text_may_come_in_two_turns() -> None:
    firsts: Counter[str] = Counter()
    for seed in range(80):
        first, reply, second, answer = (message["content"] for message in talk.in_two_turns(Words(seed)).messages)
        assert second and answer and not re.search(r"\{\d*\}", first + second)
        firsts[reply] += 1
    assert set(firsts) == {talk.WHAT_TEXT, talk.AND_NOW}


def test_sentences_of_other_languages_are_held_out_too() -> None:
    table: list[str] = read_table("tables/languages.toml")["said"]
    kept = [sentence for sentence in table if held_out(sentence)]
    assert len(kept) >= 10
    trained = [talk.foreign(Words(seed))[0] for seed in range(200)]
    tested = [talk.foreign(Words(seed, "test"))[0] for seed in range(200)]
    assert not any(sentence in text for sentence in kept for text in trained if len(sentence) > 8)
    assert all(any(sentence in text for text in tested) for sentence in kept)


def test_open_prompts_are_the_same_each_time_and_of_every_kind() -> None:
    first, second = open_prompts(60, encode), open_prompts(120, encode)
    assert first == second[:60]
    texts = [shipped_tokenizer().decode(prompt, skip_special_tokens=False) for prompt in second]
    assert all("<|im_start|>assistant\n" in text for text in texts)
    assert len(set(texts)) > 110
    assert sum("<tools>" in text for text in texts) > 2


def test_the_loop_rate_counts_answers_without_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "LONGEST", 5)
    said = [[1] * 5, [1] * 4, [], [1] * 5]
    monkeypatch.setattr(evaluate, "answers", lambda model, prompts, longest, stop: said)
    assert loop_rate(Evaluation(evaluate.WEIGHTS / "draft"), 4) == 0.5


def test_the_shipped_defaults_are_greedy_as_the_loop_rate_is() -> None:
    for size in ("target", "draft"):
        settings = json.loads((evaluate.WEIGHTS / size / "generation_config.json").read_text(encoding="utf-8"))
        assert settings["temperature"] == 0.0
        assert not settings["do_sample"]

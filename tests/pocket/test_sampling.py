"""Kinds of lessons come by their error, the share of answers that are not exactly right."""

import mlx.core as mx
import numpy as np
import pytest

from tiny_llm.engine.llm import POCKET
from tiny_llm.model.directory import load_config
from tiny_llm.model.loader import load_weights
from tiny_llm.model.qwen3 import Qwen3
from tiny_llm.pocket.lessons.dialogue import encode_turns
from tiny_llm.pocket.lessons.mix import EVERYTHING, Mix
from tiny_llm.pocket.sampling import by_error, error_lessons, measured_error
from tiny_llm.pocket.tokenizer import shipped_tokenizer
from tiny_llm.train.differentiable import EVALUATION, TreeAttention

KINDS = ("tool", "context", "faq", "text", "memory", "think")


def encode(text: str) -> list[int]:
    return shipped_tokenizer().encode(text, add_special_tokens=False).ids


@pytest.fixture(scope="module")
def model() -> Qwen3:
    config = load_config(POCKET)
    return Qwen3(config, load_weights(POCKET, config, mx.float32), EVALUATION)


def alone(model: Qwen3, prompt: list[int], completion: list[int]) -> bool:
    """Whether each token of the completion is the likeliest one, in a sequence without padding and branches."""
    tokens = (prompt + completion)[:-1]
    length = len(tokens)
    visible = mx.tri(length).astype(mx.bool_)[None]
    hidden = model.hidden_states(mx.array(tokens), TreeAttention(mx.arange(length)[None], visible))
    likeliest = mx.argmax(model.logits(hidden[len(prompt) - 1 :]), axis=-1)
    return likeliest.tolist() == completion


def test_the_error_in_trees_and_batches_is_that_of_each_answer_alone(model: Qwen3) -> None:
    lessons = [lesson for kind in KINDS for lesson in error_lessons(kind, 2, 700, encode)]
    turns = [turn for lesson in lessons for turn in lesson.turns]
    right = sum(alone(model, prompt, completion) for prompt, completion in turns)
    assert 0 < right < len(turns)
    assert measured_error(model, lessons) == round(1 - right / len(turns), 4)


def test_error_lessons_are_the_same_ones_each_time_and_short_enough() -> None:
    first = error_lessons("memory", 3, 500, encode)
    second = error_lessons("memory", 3, 500, encode)
    assert [lesson.turns for lesson in first] == [lesson.turns for lesson in second]
    assert all(len(lesson.tree) <= 500 for lesson in first)
    assert error_lessons("memory", 3, 5, encode) == []


def test_training_never_sees_the_lessons_that_errors_are_measured_on() -> None:
    measured = {tuple(prompt) for lesson in error_lessons("context", 10, 1024, encode) for prompt, _ in lesson.turns}
    trained = set()
    for index in range(30):
        for dialogue in Mix({"context": 1.0}).lesson(1, index):
            trained |= {tuple(prompt) for prompt, _ in encode_turns(dialogue, encode)}
    assert measured and not measured & trained


def test_weights_follow_the_errors_and_nothing_is_forgotten() -> None:
    mix = Mix({"tool": 0.4, "faq": 0.4, "text": 0.2})
    weights = by_error(mix, {"tool": 0.3, "faq": 0.0, "text": 0.8}, floor=0.1).weights
    total = 0.4 * 0.4 + 0.4 * 0.1 + 0.2 * 0.9
    expected = {"tool": 0.16 / total, "faq": 0.04 / total, "text": 0.18 / total}
    assert weights == pytest.approx(expected)


def test_without_a_measurement_the_mix_stays_as_it_is() -> None:
    weights = by_error(EVERYTHING, {}, floor=0.1).weights
    total = sum(EVERYTHING.weights.values())
    np.testing.assert_allclose(list(weights.values()), [weight / total for weight in EVERYTHING.weights.values()])

"""Lessons gathered by length, as batches."""

import json

import numpy as np

from tiny_llm.pocket.lessons.mix import EVERYTHING, Mix
from tiny_llm.pocket.recipe import Recipe, Size
from tiny_llm.pocket.stream import LENGTHS, LessonStream
from tiny_llm.pocket.tokenizer import shipped_tokenizer

RECIPE = Recipe(Size(hidden=128, layers=1, mlp=128), step_tokens=512)


def encode(text: str) -> list[int]:
    return shipped_tokenizer().encode(text, add_special_tokens=False).ids


def test_lessons_of_like_length_share_a_batch() -> None:
    stream, rng = LessonStream(RECIPE, encode), np.random.default_rng(0)
    for _ in range(12):
        batch = stream.next(EVERYTHING, 640, rng)
        rows, width = batch.positions.shape
        assert width in LENGTHS
        assert rows == max(1, RECIPE.step_tokens // width)
        assert batch.num_tokens == rows * width
        filled = np.array(batch.positions).max(axis=1)
        assert batch.visible.shape == (rows, width, width)
        assert filled.min() > 5
        assert batch.at.min().item() >= 0 and batch.at.max().item() < rows * width


def test_the_limit_holds() -> None:
    stream = LessonStream(RECIPE, encode)
    assert all(stream.next(EVERYTHING, 256, np.random.default_rng(0)).positions.shape[1] <= 256 for _ in range(6))


def test_a_restored_stream_goes_on_as_if_it_had_not_stopped() -> None:
    first = LessonStream(RECIPE, encode)
    for step in range(5):
        first.next(EVERYTHING, 640, np.random.default_rng(step))
    second = LessonStream(RECIPE, encode)
    second.restore(first.state())
    for step in range(5, 10):
        one, two = (stream.next(EVERYTHING, 640, np.random.default_rng(step)) for stream in (first, second))
        assert one.tokens.tolist() == two.tokens.tolist()
        assert one.at.tolist() == two.at.tolist()
        assert one.weights.tolist() == two.weights.tolist()


def test_lessons_that_wait_keep_their_kind_when_the_weights_change() -> None:
    first = LessonStream(RECIPE, encode)
    for step in range(5):
        first.next(EVERYTHING, 640, np.random.default_rng(step))
    second = LessonStream(RECIPE, encode)
    second.restore(json.loads(json.dumps(first.state())))
    only = Mix({"faq": 1.0})
    for step in range(5, 10):
        one, two = (stream.next(only, 640, np.random.default_rng(step)) for stream in (first, second))
        assert one.tokens.tolist() == two.tokens.tolist()


def test_kinds_come_by_their_weights() -> None:
    stream = LessonStream(RECIPE, encode)
    kinds = [stream.draw(Mix({"faq": 3.0, "text": 1.0, "think": 0.0})).kind for _ in range(400)]
    assert set(kinds) == {"faq", "text"} and 270 < kinds.count("faq") < 330

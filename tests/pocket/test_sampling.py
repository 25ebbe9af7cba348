"""Kinds of lessons come by their error, which is that of each answer on its own."""

import mlx.core as mx
import numpy as np
import pytest

from tiny_llm.model.qwen3 import Qwen3
from tiny_llm.pocket.lessons.mix import EVERYTHING, Mix
from tiny_llm.pocket.recipe import Recipe, Size
from tiny_llm.pocket.sampling import SEED, by_error, error_lessons, measured_error
from tiny_llm.pocket.tokenizer import shipped_tokenizer
from tiny_llm.pocket.train import POCKET_WEIGHTS
from tiny_llm.train.differentiable import EVALUATION, TreeAttention


def encode(text: str) -> list[int]:
    return shipped_tokenizer().encode(text, add_special_tokens=False).ids

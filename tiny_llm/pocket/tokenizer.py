"""Byte-level BPE of 2,048 entries for the pocket model, trained on its own lessons and saved in the Hugging Face form.

Two choices make copying easy and prompts short. A space is its own piece before names, digits and rare words, so that
they have the same tokens after a space, a quote or an underscore; only the most frequent words of prose have a form
with the space. And the sentences that the chat template repeats around tools are single tokens, so a tool costs some
thirty tokens instead of eighty.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from tiny_llm.pocket.lessons.dialogue import TEMPLATE, render, turns, user
from tiny_llm.pocket.lessons.faq import faq_entries
from tiny_llm.pocket.lessons.mix import EVERYTHING
from tiny_llm.pocket.lessons.tools import schema_words

VOCAB_SIZE = 2048
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TAGS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
SCHEMA_PHRASES = (
    '\n{"type": "function", "function": {"name": "',
    '", "description": "',
    ', "description": "',
    '", "parameters": {"type": "object", "properties": {',
    '": {"type": "string"',
    '": {"type": "integer"',
    '": {"type": "number"',
    '": {"type": "boolean"',
    '}}, "required": ["',
    '"]}}}',
)
PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    r"|\p{Lu}\p{L}*|{space}(?!\p{Lu})\p{L}+"  # a capital is never glued to the space before it
    r"|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPACE = "\u0120"  # how byte-level BPE writes a space
SPACED_WORDS = 300
LESSONS_READ = 6000
SEED = 7


def template_phrases() -> tuple[str, ...]:
    """What the chat template writes before and after the tools, and the pieces of a schema."""
    text = render([user("")], [{}])
    before, after = text.removeprefix("<|im_start|>system\n").split("<|im_end|>", 1)[0].split("\n{}")
    return (before, after, *SCHEMA_PHRASES)


def corpus(lessons: int = LESSONS_READ) -> Iterator[str]:
    """Text to learn the merges from: the FAQ and a seeded sample of the lessons, without the tokens added by hand."""
    added = re.compile("|".join(re.escape(text) for text in (*SPECIAL, *TAGS, *template_phrases())))
    for entry in faq_entries():
        yield from (entry.answer, *entry.asks)
    for index in range(lessons):
        seen: set[str] = set()
        for dialogue in EVERYTHING.lesson(SEED, index):
            for turn in turns(dialogue):
                for piece in added.split(turn.prompt + turn.completion):
                    if piece not in seen:
                        seen.add(piece)
                        yield piece


def splitter(space: str) -> pre_tokenizers.PreTokenizer:
    """Pieces that merges stay within; `space` is the pattern of what may stand before a word in small letters."""
    pattern = Regex(PIECES.replace("{space}", space))
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def with_spaced_words(tokenizer: Tokenizer, texts: Sequence[str], number: int) -> Tokenizer:
    """The tokenizer with a merge of the space and each of the most frequent words that no schema uses."""
    counts = Counter(word for text in texts for word in re.findall(" ([a-z]+)(?![A-Za-z])", text))
    known, kept_apart = tokenizer.get_vocab(), schema_words()
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    chosen = [word for word in ranked if word in known and word not in kept_apart]
    made = json.loads(tokenizer.to_str())
    for word in chosen[:number]:
        made["model"]["vocab"][SPACE + word] = len(made["model"]["vocab"])
        made["model"]["merges"].append([SPACE, word])
    return Tokenizer.from_str(json.dumps(made))


def train_tokenizer(lessons: int = LESSONS_READ) -> Tokenizer:
    """The same tokenizer each time: everything is seeded."""
    added = (*SPECIAL, *TAGS, *template_phrases())
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = splitter(space=""), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(added) - SPACED_WORDS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=2,
        show_progress=False,
    )
    texts = list(corpus(lessons))
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer = with_spaced_words(tokenizer, texts, SPACED_WORDS)
    tokenizer.pre_tokenizer = splitter(space=" ?")
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in added[len(SPECIAL) :]])
    return tokenizer


def tokenizer_config() -> dict[str, Any]:
    """tokenizer_config.json, with the chat template."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 4096,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "chat_template": TEMPLATE,
    }


def save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    text = json.dumps(tokenizer_config(), ensure_ascii=False, indent=2)
    (directory / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


@cache
def shipped_tokenizer() -> Tokenizer:
    """The tokenizer in the package."""
    return Tokenizer.from_file(str(Path(__file__).parent / "weights" / "target" / "tokenizer.json"))

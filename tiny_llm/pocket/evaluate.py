"""How good a pocket model is: exact match on names, numbers, schemas and phrasings that training never sees."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from tokenizers import Tokenizer

from tiny_llm.model.directory import load_config
from tiny_llm.model.loader import load_weights
from tiny_llm.model.qwen3 import Qwen3
from tiny_llm.pocket.card import model_card
from tiny_llm.pocket.greedy import agreement, answers
from tiny_llm.pocket.lessons.agent import agent_lesson
from tiny_llm.pocket.lessons.chat import arithmetic_lesson, memory_lesson
from tiny_llm.pocket.lessons.context import context_lesson, needle_of_length
from tiny_llm.pocket.lessons.conversations import open_prompts
from tiny_llm.pocket.lessons.dialogue import STOP, Dialogue, JsonObject, encode_turns
from tiny_llm.pocket.lessons.faq import faq_entries
from tiny_llm.pocket.lessons.text import text_lesson
from tiny_llm.pocket.lessons.tool_calls import NO_TOOL, tool_lesson
from tiny_llm.pocket.lessons.words import Words
from tiny_llm.pocket.recipe import DRAFT, RECIPES
from tiny_llm.train.differentiable import EVALUATION

WEIGHTS = Path(__file__).parent / "weights"
SEED = "evaluation"
LONGEST = 600  # tokens of an answer
OPEN_PROMPTS = 1000  # at most; ten for each case of a task
Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class Case:
    """One prompt and the only answer that counts."""

    family: str
    prompt: list[int]
    answer: list[int]


def tool_dialogues(words: Words) -> Iterator[Dialogue]:
    while True:
        yield from tool_lesson(words, 1)


def context_dialogues(words: Words, task: str) -> Iterator[Dialogue]:
    while True:
        yield from (dialogue for dialogue in context_lesson(words, 3) if dialogue.task == task)


def needle_dialogues(words: Words, tokens: int, encode: Encode) -> Iterator[Dialogue]:
    while True:
        yield from needle_of_length(words, tokens, lambda d: len(next(encode_turns(d, encode))[0]))


def faq_dialogues(words: Words) -> Iterator[Dialogue]:
    """Every entry in turn, in a phrasing that training never saw."""
    while True:
        for number, entry in enumerate(faq_entries()):
            messages = (
                {"role": "user", "content": entry.question(words)},
                {"role": "assistant", "content": entry.answer},
            )
            yield Dialogue(f"faq:{number}", messages)


def repeat(lesson: Callable[[Words, int], list[Dialogue]], words: Words, branches: int = 1) -> Iterator[Dialogue]:
    while True:
        yield from lesson(words, branches)


def cases(task: str, encode: Encode) -> Iterator[Case]:
    """The task's held-out cases, without end, the same ones each time."""
    words = Words(f"{SEED}/{task}", "test")
    sources: Mapping[str, Callable[[], Iterator[Dialogue]]] = {
        "tool_call": lambda: tool_dialogues(words),
        "tool_answer": lambda: tool_dialogues(words),
        "builtin_call": lambda: repeat(agent_lesson, words),
        "context_answer": lambda: context_dialogues(words, "context_answer"),
        "context_absent": lambda: context_dialogues(words, "context_absent"),
        "needle_512": lambda: needle_dialogues(words, 512, encode),
        "needle_2048": lambda: needle_dialogues(words, 2048, encode),
        "faq": lambda: faq_dialogues(words),
        "multi_turn": lambda: repeat(memory_lesson, words, 2),
        "text": lambda: repeat(text_lesson, words),
        "think": lambda: (d for d in repeat(arithmetic_lesson, words) if d.thinking),
    }
    for dialogue in sources[task]():
        turns = list(encode_turns(dialogue, encode))
        replies = [index for index, message in enumerate(dialogue.messages) if message["role"] == "assistant"]
        for (prompt, answer), index in zip(turns, replies, strict=True):
            if counts(task, dialogue.messages, index):
                yield without_empty_thought(Case(dialogue.task, prompt, answer[:-1]), encode)


def counts(task: str, messages: Sequence[JsonObject], index: int) -> bool:
    """Whether the assistant's turn at `index` is a case of the task: for most tasks only the last turn is one."""
    message = messages[index]
    after_result: bool = messages[index - 1]["role"] == "tool"
    if task in ("tool_call", "tool_answer"):
        return after_result == (task == "tool_answer")
    if task == "builtin_call":
        refuses: bool = message["content"] == NO_TOOL
        return refuses or "tool_calls" in message
    return index == len(messages) - 1


def as_call(text: str) -> Any:
    """The JSON of a tool call, or None for a text that is no call."""
    found = re.fullmatch(r"<tool_call>\n(.*)\n</tool_call>", text, re.DOTALL)
    try:
        return json.loads(found[1]) if found else None
    except ValueError:
        return None


def same_answer(task: str, said: str, wanted: str) -> bool:
    """Whether both texts are the same or, for the built-in tools, the same call: its JSON may be spaced otherwise."""
    if task == "builtin_call" and as_call(wanted) is not None:
        return bool(as_call(said) == as_call(wanted))
    return said == wanted


def without_empty_thought(case: Case, encode: Encode) -> Case:
    """An empty think block is moved into the prompt, as with enable_thinking=False."""
    empty = encode("<think>\n\n</think>\n\n")
    if case.answer[: len(empty)] != empty:
        return case
    return Case(case.family, case.prompt + empty, case.answer[len(empty) :])


TASKS = (
    "tool_call",
    "tool_answer",
    "builtin_call",
    "context_answer",
    "context_absent",
    "needle_512",
    "needle_2048",
    "faq",
    "multi_turn",
    "text",
    "think",
)


@dataclass(frozen=True)
class Score:
    """Right answers and cases, in all and by family; `failures` are (prompt, wanted, said)."""

    right: int
    total: int
    families: Mapping[str, tuple[int, int]]
    failures: list[tuple[str, str, str]]

    @property
    def share(self) -> float:
        return round(self.right / self.total, 4)


class Evaluation:
    """A model directory to ask."""

    def __init__(self, directory: Path):
        self.directory = directory
        config = load_config(directory)
        self.tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self.model = Qwen3(config, load_weights(directory, config, mx.float32), EVALUATION)

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=False))

    def cases(self, task: str, number: int) -> list[Case]:
        return [case for case, _ in zip(cases(task, self.encode), range(number), strict=False)]

    def say(self, cases: list[Case]) -> list[list[int]]:
        (stop,) = self.encode(STOP)
        longest = min(LONGEST, 4 + max(len(case.answer) for case in cases))
        return answers(self.model, [case.prompt for case in cases], longest, stop)

    def score(self, task: str, number: int) -> Score:
        chosen = self.cases(task, number)
        families: dict[str, tuple[int, int]] = {}
        failures = []
        for case, said in zip(chosen, self.say(chosen), strict=True):
            right, total = families.get(case.family, (0, 0))
            said_text, wanted = self.decode(said), self.decode(case.answer)  # tokens may spell a text in two ways
            same = same_answer(task, said_text, wanted)
            families[case.family] = (right + same, total + 1)
            if not same:
                failures.append((self.decode(case.prompt), wanted, said_text))
        right = sum(r for r, _ in families.values())
        return Score(right, len(chosen), families, failures)


def acceptance(target: Evaluation, draft: Evaluation, number: int) -> float:
    """The share of the target's own greedy tokens that the draft would have proposed, over cases of all tasks."""
    chosen = [case for task in TASKS for case in target.cases(task, max(1, number // len(TASKS)))]
    same, total = agreement(draft.model, [case.prompt for case in chosen], target.say(chosen))
    return round(same / total, 4)


def loop_rate(target: Evaluation, number: int) -> float:
    """Measure the share of open prompts, so many, that the model answers without an end within LONGEST tokens.

    Answers are greedy, as generation_config.json of the shipped weights says.
    """
    (stop,) = target.encode(STOP)
    prompts = open_prompts(number, target.encode)
    said = answers(target.model, prompts, LONGEST, stop)
    endless = sum(len(tokens) == LONGEST for tokens in said)
    return round(endless / number, 4)


def evaluate(directory: Path, draft: Path | None, number: int) -> tuple[dict[str, Any], dict[str, Score]]:
    """The figures of a model directory, and the scores behind them. `number` cases of each task."""
    target = Evaluation(directory)
    scores = {task: target.score(task, number) for task in TASKS}
    made = json.loads((directory / "pocket.json").read_text(encoding="utf-8"))
    figures: dict[str, Any] = {task: score.share for task, score in scores.items()}
    figures["loop_rate"] = loop_rate(target, min(OPEN_PROMPTS, 10 * number))
    figures["acceptance"] = acceptance(target, Evaluation(draft), number) if draft else None
    figures["params"], figures["bytes"] = made["params"], (directory / "model.safetensors").stat().st_size
    figures["tokens_trained"] = made["tokens"]
    return figures, scores


def write_card(directory: Path, figures: Mapping[str, Any], number: int) -> None:
    """README.md beside the weights."""
    config, made = (json.loads((directory / f"{name}.json").read_text("utf-8")) for name in ("config", "pocket"))
    name = "moe" if "num_experts" in config else "draft" if config["hidden_size"] == DRAFT.hidden else "target"
    card = model_card(name, config, made, figures, number, RECIPES[name].max_long_length)
    (directory / "README.md").write_text(card, encoding="utf-8")

"""`tiny-llm train`: heads for speculation, trained on a model's own answers."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tiny_llm.cli.errors import usage
from tiny_llm.cli.inputs import read_file
from tiny_llm.cli.terminal import note

if TYPE_CHECKING:
    from tiny_llm.engine.llm import LLM

app = typer.Typer(help="Train heads that guess tokens for a model, see --speculate.", no_args_is_help=True)
ModelName = Annotated[str | None, typer.Option("--model", help="The model to train for (default: the one inside).")]
HeadsFolder = Annotated[Path, typer.Option(help="The directory to write the heads to.")]
Prompts = Annotated[
    Path | None, typer.Option(help="A file with a prompt on each line (default: the course's own questions and tasks).")
]
NumPrompts = Annotated[int, typer.Option("--number", "-n", help="Prompts to answer at most.", min=1, max=1_000_000)]
MaxTokens = Annotated[int, typer.Option(help="Tokens of an answer at most.", min=4, max=100_000)]
Steps = Annotated[int, typer.Option(help="Steps to train.", min=1, max=10**7)]
TrainSeed = Annotated[
    int, typer.Option(help="TrainSeed of the order of the answers, and of new matrices.", min=0, max=2**31)
]


@app.command()
def medusa(
    out: HeadsFolder,
    model: ModelName = None,
    prompts: Prompts = None,
    number: NumPrompts = 600,
    max_tokens: MaxTokens = 160,
    steps: Steps = 300,
    heads: Annotated[int, typer.Option(help="Heads, each a token further ahead.", min=1, max=16)] = 3,
    seed: TrainSeed = 0,
) -> None:
    """Train Medusa heads: from the last hidden state, the tokens after the next one."""
    from tiny_llm.train.heads import samples, train_medusa

    llm = _load(model)
    texts = _answers(llm, prompts, number, max_tokens)
    with usage():
        found = samples(llm.model, texts, [llm.config.num_hidden_layers - 1])
        trained = train_medusa(llm.model, found, heads, steps, seed, _TrainingLine(steps))
        trained.save(out, _about(llm, texts, steps, seed))
    note(f"{out}: written; use it with --speculate medusa --draft-model {out}")


@app.command()
def eagle(
    out: HeadsFolder,
    model: ModelName = None,
    prompts: Prompts = None,
    number: NumPrompts = 600,
    max_tokens: MaxTokens = 160,
    steps: Steps = 600,
    draft_vocab: Annotated[
        int, typer.Option(help="Tokens that the head can guess at most: the most frequent of the answers.", min=1)
    ] = 8192,
    seed: TrainSeed = 0,
) -> None:
    """Train an EAGLE-3 head: a layer that guesses the model's next features from those of three layers."""
    from tiny_llm.train.heads import head_taps, samples, train_eagle

    llm = _load(model)
    texts = _answers(llm, prompts, number, max_tokens)
    with usage():
        found = samples(llm.model, texts, head_taps(llm.config.num_hidden_layers))
        vocab = min(draft_vocab, llm.config.vocab_size)
        trained = train_eagle(llm.model, found, vocab, steps, seed, _TrainingLine(steps))
        trained.save(out, _about(llm, texts, steps, seed))
    note(f"{out}: written; use it with --speculate eagle --draft-model {out}")


def _load(model: str | None) -> "LLM":
    """Load a model on operations that can be differentiated."""
    from tiny_llm import load
    from tiny_llm.config import EngineConfig

    return load(model, config=EngineConfig(kernels="mlx", dtype="float32"))


def _answers(llm: "LLM", file: Path | None, number: int, max_tokens: int) -> list[tuple[list[int], list[int]]]:
    """Return prompts and the model's greedy answers to them."""
    from tiny_llm.pocket.lessons.conversations import chats

    asked: list[tuple[Any, dict[str, Any]]]
    if file is None:
        asked = [
            (messages, {"tools": tools} if tools else {}) for messages, tools in chats(number, llm.name == "pocket")
        ]
    else:
        lines = [line for line in read_file(file).splitlines() if line.strip()]
        asked = [([{"role": "user", "content": line}], {}) for line in lines[:number]]
        if not asked:
            raise typer.BadParameter(f"{file}: expected a prompt on each line, found none", param_hint="--prompts")
    encoded = [llm.encode(messages, template) for messages, template in asked]
    room = llm.max_context - max_tokens
    encoded = [tokens for tokens in encoded if len(tokens) <= room]
    completions = llm.generate(encoded, temperature=0.0, max_tokens=max_tokens, progress=sys.stderr.isatty())
    assert isinstance(completions, list)
    return [(prompt, completion.tokens) for prompt, completion in zip(encoded, completions, strict=True)]


def _about(llm: "LLM", texts: list[tuple[list[int], list[int]]], steps: int, seed: int) -> dict[str, Any]:
    made = {"model": llm.name, "answers": len(texts), "answer_tokens": sum(len(answer) for _, answer in texts)}
    return {"trained": {**made, "steps": steps, "seed": seed}}


class _TrainingLine:
    """Says now and then how far training is."""

    def __init__(self, steps: int):
        self.steps, self.begin, self.shown = steps, time.monotonic(), 0.0

    def __call__(self, step: int, loss: float) -> None:
        now = time.monotonic()
        if now - self.shown > 5 or step == self.steps:
            self.shown = now
            note(f"step {step} of {self.steps}, loss {loss:.3f}, {now - self.begin:.0f} s")

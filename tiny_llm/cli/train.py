"""`tiny-llm train`: heads for speculation, trained on a model's own answers."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tiny_llm.cli.errors import usage
from tiny_llm.cli.inputs import read_file
from tiny_llm.cli.options import with_options
from tiny_llm.cli.terminal import note

if TYPE_CHECKING:
    from tiny_llm.engine.llm import LLM

app = typer.Typer(help="Train heads that guess tokens for a model, see --speculate.", no_args_is_help=True)
HeadsFolder = Annotated[Path, typer.Option(help="The directory to write the heads to.")]
Steps = Annotated[int, typer.Option(help="Steps to train.", min=1, max=10**7)]


@dataclass(frozen=True)
class TrainingOptions:
    """The model, its answers to train on, and the seed."""

    model: Annotated[str | None, typer.Option(help="The model to train for (default: the one inside).")] = None
    prompts: Annotated[
        Path | None,
        typer.Option(help="A file with a prompt on each line (default: the course's own questions and tasks)."),
    ] = None
    number: Annotated[int, typer.Option("--number", "-n", help="Most prompts to answer.", min=1, max=1_000_000)] = 600
    max_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.", min=4, max=100_000)] = 160
    seed: Annotated[
        int, typer.Option(help="Seed of the order of the answers, and of new matrices.", min=0, max=2**31)
    ] = 0

    def load(self) -> "LLM":
        """Load the model on operations that can be differentiated."""
        from tiny_llm import load
        from tiny_llm.config import EngineConfig

        return load(self.model, config=EngineConfig(kernels="mlx", dtype="float32"))

    def answers(self, llm: "LLM") -> list[tuple[list[int], list[int]]]:
        """Return prompts and the model's greedy answers to them."""
        encoded = [llm.encode(messages, template) for messages, template in self._chats(llm.name)]
        room = llm.max_context - self.max_tokens
        fit = [tokens for tokens in encoded if len(tokens) <= room]
        completions = llm.generate(fit, temperature=0.0, max_tokens=self.max_tokens, progress=sys.stderr.isatty())
        assert isinstance(completions, list)
        return [(prompt, completion.tokens) for prompt, completion in zip(fit, completions, strict=True)]

    def _chats(self, name: str) -> "Sequence[tuple[list[dict[str, Any]], dict[str, Any]]]":
        """Return the messages of each prompt, and what the template is given with them."""
        from tiny_llm.pocket.lessons.conversations import chats

        if self.prompts is None:
            own = chats(self.number, name == "pocket")
            return [(messages, {"tools": tools} if tools else {}) for messages, tools in own]
        lines = [line for line in read_file(self.prompts).splitlines() if line.strip()]
        if not lines:
            raise typer.BadParameter(
                f"{self.prompts}: expected a prompt on each line, found none", param_hint="--prompts"
            )
        return [([{"role": "user", "content": line}], {}) for line in lines[: self.number]]

    def about(self, llm: "LLM", texts: list[tuple[list[int], list[int]]], steps: int) -> dict[str, Any]:
        """Return what the heads' file says of their training."""
        made = {"model": llm.name, "answers": len(texts), "answer_tokens": sum(len(answer) for _, answer in texts)}
        return {"trained": {**made, "steps": steps, "seed": self.seed}}


@app.command()
@with_options
def medusa(
    out: HeadsFolder,
    training: TrainingOptions,
    steps: Steps = 300,
    heads: Annotated[int, typer.Option(help="Heads, each a token further ahead.", min=1, max=16)] = 3,
) -> None:
    """Train Medusa heads: from the last hidden state, the tokens after the next one."""
    from tiny_llm.train.heads import samples, train_medusa

    llm = training.load()
    texts = training.answers(llm)
    with usage():
        found = samples(llm.model, texts, [llm.config.num_hidden_layers - 1])
        trained = train_medusa(llm.model, found, heads, steps, training.seed, _TrainingLine(steps))
        trained.save(out, training.about(llm, texts, steps))
    note(f"{out}: written; use it with --speculate medusa --draft-model {out}")


@app.command()
@with_options
def eagle(
    out: HeadsFolder,
    training: TrainingOptions,
    steps: Steps = 600,
    draft_vocab: Annotated[
        int, typer.Option(help="Tokens that the head can guess at most: the most frequent of the answers.", min=1)
    ] = 8192,
) -> None:
    """Train an EAGLE-3 head: a layer that guesses the model's next features from those of three layers."""
    from tiny_llm.train.heads import head_taps, samples, train_eagle

    llm = training.load()
    texts = training.answers(llm)
    with usage():
        found = samples(llm.model, texts, head_taps(llm.config.num_hidden_layers))
        vocab = min(draft_vocab, llm.config.vocab_size)
        trained = train_eagle(llm.model, found, vocab, steps, training.seed, _TrainingLine(steps))
        trained.save(out, training.about(llm, texts, steps))
    note(f"{out}: written; use it with --speculate eagle --draft-model {out}")


class _TrainingLine:
    """Says now and then how far training is."""

    def __init__(self, steps: int):
        self.steps, self.begin, self.shown = steps, time.monotonic(), 0.0

    def __call__(self, step: int, loss: float) -> None:
        now = time.monotonic()
        if now - self.shown > 5 or step == self.steps:
            self.shown = now
            note(f"step {step} of {self.steps}, loss {loss:.3f}, {now - self.begin:.0f} s")

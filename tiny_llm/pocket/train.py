"""`tiny-llm pocket train`: run a recipe to its end, with a progress bar, a log, a plot of the loss and checkpoints."""

import gc
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from tiny_llm.pocket.recipe import Recipe
from tiny_llm.pocket.tokenizer import save_tokenizer, shipped_tokenizer
from tiny_llm.pocket.trainer import PocketTrainer
from tiny_llm.train.memory import keep_memory
from tiny_llm.train.plot import loss_plot
from tiny_llm.train.trainer import Trainer
from tiny_llm.train.weights_io import save_model, write_json

LOG_EVERY, SAVE_EVERY = 20, 200  # steps


def train(
    recipe: Recipe,
    directory: Path,
    steps: int | None = None,
    after: Path | None = None,
    relearn: bool = False,
    prepare: Callable[[Trainer], None] | None = None,
) -> PocketTrainer:
    """Train in `directory` until the recipe's tokens are spent, or for so many more steps; goes on from a checkpoint.

    `after` is a trained model's directory to start from. `relearn` accepts a checkpoint with other lessons or settings.
    `prepare` may change how the run computes, see `torch_gradients.use_torch`.

    Several processes share the batches of a step: `mlx.launch -n 2 --backend ring -- python -m tiny_llm pocket train`.

    Leaves checkpoint.safetensors, log.jsonl, loss.svg and, in model/, the weights so far as a Hugging Face directory.
    Raises ValueError when the directory holds another recipe's checkpoint, OSError when the disk is full.
    """
    keep_memory()
    console = Console(quiet=mx.distributed.init().rank() > 0)
    trainer = resumed(recipe, directory, after, console, relearn)
    if prepare:
        prepare(trainer)
    directory.mkdir(parents=True, exist_ok=True)
    if trainer.growth and not trainer.progress.step:
        trainer.write({"stage": trainer.progress.stage, "grown": trainer.growth})
    if trainer.done:
        console.print(
            f"nothing left to do: the recipe's {recipe.tokens / 1e6:.2f} M tokens are spent; --tokens allows more"
        )
    last = None if steps is None else trainer.progress.step + steps
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[status]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("training", total=recipe.tokens, completed=trainer.progress.tokens, status="")
        for entry in advance(trainer, last):
            status = f"{entry['stage']} loss {entry['answers']:.3f} {entry['tokens_per_second']:.0f} tok/s"
            bar.update(task, completed=trainer.progress.tokens, status=status)
            if not console.is_terminal:
                console.print(f"step {trainer.progress.step} {trainer.progress.tokens / 1e6:.2f} M {status}")
    return trainer


def resumed(
    recipe: Recipe, directory: Path, after: Path | None, console: Console, relearn: bool = False
) -> PocketTrainer:
    """The run in `directory` where it stands: at its checkpoint, at the model `after`, or at its beginning."""
    if directory.is_file():
        raise ValueError(f"{directory}: a file, where training wants a folder: name another with --out")
    if after:
        recipe = recipe.following(after / "model.safetensors")
    tokenizer = shipped_tokenizer()

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    trainer = PocketTrainer(recipe, directory, encode, recipe.digest(tokenizer.to_str()))
    if trainer.resume(relearn):
        console.print(f"going on at step {trainer.progress.step}, {trainer.progress.tokens / 1e6:.2f} M tokens")
    elif after:
        trainer.follow(after)
        console.print(f"starting from {after}, {trainer.progress.tokens / 1e6:.2f} M tokens")
        for name, (before, now) in trainer.growth.items():
            console.print(f"grown: {name} {before} → {now}")
    return trainer


def advance(trainer: PocketTrainer, last: int | None) -> Iterator[dict[str, Any]]:
    """Step until the recipe is done or step `last`; log, save, and hand out every entry of the log."""
    recent: list[dict[str, float]] = []
    gc.disable()  # a collection walks over all lessons that wait, and takes seconds
    while not trainer.done and trainer.progress.step != last:
        recent.append(trainer.step())
        if trainer.progress.step % LOG_EVERY == 0:
            entry = summary(trainer, recent)
            recent = []
            trainer.write(entry)
            yield entry
        if trainer.progress.step % SAVE_EVERY == 0:
            publish(trainer)
            gc.collect()
    gc.enable()
    publish(trainer)


def summary(trainer: PocketTrainer, recent: list[dict[str, float]]) -> dict[str, Any]:
    """Means over the last steps, for the log."""
    p = trainer.progress
    means = {name: sum(entry[name] for entry in recent) / len(recent) for name in ("loss", "answers", "norm", "rate")}
    seconds, tokens = sum(entry["seconds"] for entry in recent), sum(entry["tokens"] for entry in recent)
    found: dict[str, Any] = {"stage": p.stage, **{name: round(value, 4) for name, value in means.items()}}
    found |= {"tokens_per_second": round(tokens / seconds), "time": round(time.time())}
    return found | ({"period": round(p.period, 1), "alphabet": int(p.alphabet)} if p.stage == "repeats" else {})


def publish(trainer: PocketTrainer) -> None:
    """The checkpoint, the weights as a model directory, and the plot."""
    if not trainer.leads:
        return
    trainer.save()
    tokenizer, model = shipped_tokenizer(), trainer.directory / "model"
    (stop,), (pad,) = (tokenizer.encode(text).ids for text in ("<|im_end|>", "<|endoftext|>"))
    params = save_model(model, trainer.published, trainer.recipe.size.hf_config(), (stop, pad))
    write_json(model / "pocket.json", {**trainer.made(), "params": params})
    save_tokenizer(tokenizer, model)
    loss_plot({"loss": trainer.log}, trainer.directory / "loss.svg")

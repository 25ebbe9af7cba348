"""`tiny-llm pocket`: make the small model that ships with the package again, and measure it."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from tiny_llm.cli.options import AsJson
from tiny_llm.cli.terminal import print_json

app = typer.Typer(help="The small model inside: train it again, measure it.", no_args_is_help=True)
SizeName = Annotated[
    Literal["target", "deep", "draft", "moe", "moe-unbalanced"],
    typer.Option(
        "--size",
        help="The model itself, one with more and narrower layers, its drafter, or one with experts, with or without "
        "the balance loss.",
    ),
]
Number = Annotated[int, typer.Option("--number", "-n", help="Cases of each task.", min=1, max=100_000)]


@app.command()
def train(
    size: SizeName = "target",
    tokens: Annotated[
        int | None, typer.Option(help="How many tokens to train on, all in all.", min=1, max=10**12)
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Stop after so many more steps.", min=1, max=10**9)] = None,
    out: Annotated[Path | None, typer.Option(help="Where checkpoints go (default: runs/SIZE).")] = None,
    after: Annotated[
        Path | None,
        typer.Option(help="A trained model's directory to start from; it may grow, or be divided into experts."),
    ] = None,
    relearn: Annotated[
        bool, typer.Option("--relearn", help="Go on from OUT's checkpoint though lessons or settings have changed.")
    ] = False,
    torch: Annotated[
        bool, typer.Option("--torch", help="Take gradients from PyTorch in bfloat16: faster on a CPU with AMX.")
    ] = False,
) -> None:
    """Train a pocket model; goes on from the last checkpoint in OUT.

    Two processes share the work: mlx.launch -n 2 --backend ring -- python -m tiny_llm pocket train
    """
    from dataclasses import replace

    from tiny_llm.pocket.recipe import RECIPES
    from tiny_llm.pocket.train import train as run

    recipe = RECIPES[size] if tokens is None else replace(RECIPES[size], tokens=tokens)
    prepare = None
    if torch:
        from tiny_llm.train.torch_gradients import use_torch

        prepare = use_torch
    run(recipe, out or Path("runs") / size, steps, after, relearn, prepare)


@app.command("eval")
def evaluate(
    model: Annotated[Path | None, typer.Option(help="A model directory (default: the one that ships).")] = None,
    draft: Annotated[Path | None, typer.Option(help="The drafter's directory (default: the one that ships).")] = None,
    number: Number = 200,
    as_json: AsJson = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Also by family, with failures.")] = False,
    card: Annotated[bool, typer.Option("--card", help="Write the figures into the directory's README.md.")] = False,
) -> None:
    """Measure a pocket model by exact match on what training never saw."""
    from tiny_llm.pocket.evaluate import WEIGHTS, evaluate, write_card

    directory = model or WEIGHTS / "target"
    drafter = draft or WEIGHTS / "draft"
    alone = drafter.resolve() == directory.resolve()  # a drafter has no drafter
    figures, scores = evaluate(directory, None if alone else drafter, number)
    if card:
        write_card(directory, figures, number)
    if as_json:
        print_json(figures)
        return
    for name, value in figures.items():
        print(f"{name:16} {value}")
        if verbose and name in scores:
            for family, (right, total) in sorted(scores[name].families.items()):
                print(f"  {family:24} {right}/{total}")
            for prompt, wanted, said in scores[name].failures[:5]:
                print(f"  …{prompt[-160:]!r}\n    wanted {wanted!r}\n    said   {said!r}")

"""`tiny-llm viz`: pictures of a run, each one file that works without network, and its content in words."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tiny_llm.cli.errors import usage
from tiny_llm.cli.inputs import text_of
from tiny_llm.cli.options import ExercisesFolder, borrow, option
from tiny_llm.config import RopeConfig, SamplingParams

if TYPE_CHECKING:
    from tiny_llm.views.record import Run
    from tiny_llm.views.svg import Drawing

TEXT = "the cat sat down"
DRAWN = 256  # things in a row of a picture, at most
FRAMES = 64  # rows and columns of a stepper, at most
COUNT = 10**9  # of anything that is counted without being drawn, at most
Out = Annotated[
    Path | None,
    option("The file to write: .html, or .svg for a single picture; NAME.html here if not given.", "--out", "-o"),
]
Model = Annotated[str | None, option("A directory, GGUF file, hub name or alias; the small model inside if not given.")]
PromptText = Annotated[str | None, option("Text to run through the model.")]

viz = typer.Typer(help="Draw what happens inside: masks, rotations, samplers, differences.", no_args_is_help=True)


def recorded(model: str | None, prompt: str, stop: bool = True) -> "Run":
    """A run of the model on `prompt`, with what happened inside."""
    from tiny_llm.views import record

    with usage("--prompt"):
        prompt = text_of(prompt, "prompt")
    return record.run(model, prompt, stop=stop)


def write(
    name: str, title: str, drawings: Sequence["Drawing"], out: Path | None, words: str = "", stepper: bool = False
) -> None:
    """Save the pictures, all at once or in the page one by one, and print what they show."""
    from tiny_llm.views.svg import page

    path = Path(f"{name}.html") if out is None else out
    if path.suffix not in (".html", ".svg") or (path.suffix == ".svg" and len(drawings) > 1):
        suffixes = ".html" if len(drawings) > 1 else ".html or .svg"
        raise typer.BadParameter(f"expected a name that ends in {suffixes}, found {path.name}", param_hint="--out")
    text = drawings[0].svg() if path.suffix == ".svg" else page(title, drawings, words, stepper)
    path.write_text(text, encoding="utf-8")
    print(words or "\n".join(drawing.alt for drawing in drawings))
    print(f"picture: {path}")


@viz.command()
def mask(
    queries: Annotated[int, option("Number of queries, the last of the keys.", max=DRAWN)] = 4,
    keys: Annotated[int, option("Number of keys.", max=DRAWN)] = 8,
    window: Annotated[int | None, option("How many keys a query sees at most, itself included.", max=COUNT)] = None,
    prompt: PromptText = None,
    layer: Annotated[int, option("With --prompt: whose attention weights.")] = 0,
    head: Annotated[int, option("With --prompt: which query head's.")] = 0,
    model: Model = None,
    code: ExercisesFolder = None,
    out: Out = None,
) -> None:
    """Who sees whom: the mask, or with --prompt the attention weights of one head."""
    borrow(code)
    from tiny_llm.views import mask

    if prompt is None:
        with usage():
            drawn = mask.mask_of(queries, keys, window)
        write("mask", "Attention mask", [mask.draw_mask("mask", "Who sees whom", drawn)], out)
        return
    run = recorded(model, prompt)
    with usage():
        grid, weights = mask.head_of(run.notes, layer, head, window)
    title = f"Layer {layer}, head {head}"
    write("mask", title, [mask.draw_mask("mask", title, grid, run.words, weights)], out)


@viz.command()
def rope(
    theta: Annotated[float, option("The base of the frequencies.", min=1e-6, max=1e30)] = 10000.0,
    head_dim: Annotated[int, option("Width of a head; it has half as many pairs.", max=DRAWN)] = 8,
    positions: Annotated[int, option("How many positions to show.", max=DRAWN)] = 6,
    code: ExercisesFolder = None,
    out: Out = None,
) -> None:
    """How RoPE turns each pair, and that scores depend on the distance alone."""
    borrow(code)
    from tiny_llm.views import rope

    with usage():
        drawings = rope.pictures(RopeConfig(theta), head_dim, positions)
    write("rope", "Rotary positions", drawings, out)


@viz.command()
def sampling(
    temperature: Annotated[float, option("Divides the logits.")] = 1.0,
    top_k: Annotated[int, option("Keep this many; 0 for all.")] = 0,
    top_p: Annotated[float, option("Keep the likeliest that hold this share.")] = 1.0,
    min_p: Annotated[float, option("Keep tokens at least this share of the likeliest.")] = 0.0,
    prompt: Annotated[str, option("Text whose next token is chosen.")] = TEXT,
    tokens: Annotated[int, option("How many of the likeliest tokens to show.", max=DRAWN)] = 12,
    model: Model = None,
    code: ExercisesFolder = None,
    out: Out = None,
) -> None:
    """What each sampler leaves of the next token's probabilities."""
    borrow(code)
    from tiny_llm.views import sampling

    with usage():
        params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
        sampling.check(params)
    run = recorded(model, prompt)
    names, stages = sampling.next_token(run, params, tokens)
    write("sampling", f"After {prompt!r}", [sampling.draw_stages("sampling", names, stages)], out)


@viz.command()
def divergence(
    prompt: Annotated[str, option("Text to run through both.")] = TEXT,
    model: Model = None,
    code: Annotated[str, option("Whose files to compare: mine for code/, or another folder.", "--code")] = "mine",
    out: Out = None,
) -> None:
    """Run your code and the reference layer by layer; name the first tensor that differs. Exit code 1 if one does."""
    borrow(code)
    from tiny_llm.views import divergence, record

    run = recorded(model, prompt, stop=False)
    reference = record.record_reference(run.path, run.tokens)
    rows = divergence.compare(reference, run.notes)
    words = divergence.describe_differences(rows) + (f"\nyours stopped: {run.error}" if run.error else "")
    write("divergence", "Yours against the reference", [divergence.draw("divergence", rows)], out, words)
    if any(row.differs for row in rows):
        raise typer.Exit(1)


@viz.command()
def experts(
    prompt: Annotated[str, option("Text to run through the model.")] = TEXT,
    layer: Annotated[int | None, option("Draw the tokens of this layer alone; all layers if not given.")] = None,
    model: Annotated[str, option("A directory, GGUF file, hub name or alias of a model with experts.")] = "pocket-moe",
    code: ExercisesFolder = None,
    out: Out = None,
) -> None:
    """Which experts each token goes to, layer by layer, and how even the load of the experts is."""
    borrow(code)
    from tiny_llm.views import experts, record

    with usage("--model"):
        path = record.find(model)
        experts.check_experts(path, model)
    with usage("--prompt"):
        found, words = experts.routing_of(path, text_of(prompt, "prompt"))
    with usage("--layer"):
        drawn = found if layer is None else experts.only_layer(found, layer)
    drawings = [experts.draw_load("experts-load", found)]
    drawings += [experts.draw_tokens(f"experts-{each.layer}", words, each) for each in drawn]
    write("experts", "Experts, layer by layer", drawings, out, experts.describe(words, drawn), stepper=True)


@viz.command()
def kv(
    tokens: Annotated[int, option("Memory up to this many tokens.", max=COUNT)] = 4096,
    window: Annotated[int, option("The window of the rotating cache.", max=COUNT)] = 1024,
    slots: Annotated[int, option("Slots of the ring that is drawn, sinks included.", max=DRAWN)] = 8,
    sinks: Annotated[int, option("How many of them hold the first tokens for good.")] = 2,
    recent: Annotated[int, option("How many of the newest tokens are seen.")] = 4,
    steps: Annotated[int, option("Tokens that go round in it.", min=1, max=DRAWN)] = 12,
    model: Model = None,
    code: ExercisesFolder = None,
    out: Out = None,
) -> None:
    """What a KV cache costs as the text grows, and how a ring of slots with sinks goes round."""
    borrow(code)
    from tiny_llm.model import loader
    from tiny_llm.views import kv, record

    path = record.find(model)
    config = loader.load_config(path)
    name = "pocket" if model is None else path.name
    with usage():
        growth = kv.draw_growth("kv-growth", f"KV cache of {name}", kv.curves(config, 2, tokens, window))
        ring = kv.draw_ring("kv-ring", steps, sinks, recent, slots)
    write("kv", f"KV cache of {name}", [growth, ring], out)


@viz.command()
def flash(
    tokens: Annotated[int, option("Queries and keys.", max=FRAMES)] = 8,
    queries: Annotated[int, option("Queries of a tile.", max=FRAMES)] = 4,
    keys: Annotated[int, option("Keys of a tile.", max=FRAMES)] = 3,
    window: Annotated[int, option("How many keys a query sees at most; 0 for all before it.", max=COUNT)] = 0,
    seed: Annotated[int, option("Of the random scores.", min=0, max=2**32 - 1)] = 0,
    out: Out = None,
) -> None:
    """The tiles of FlashAttention step by step: what is computed, and what is kept of it."""
    from tiny_llm.views import flash

    with usage():
        drawings = flash.draw(tokens, queries, keys, window, seed)
    write("flash", "FlashAttention, tile by tile", drawings, out, stepper=True)


@viz.command()
def roofline(
    kernels: Annotated[
        list[str] | None, typer.Argument(metavar="KERNEL...", help="All of them if none is named.")
    ] = None,
    chip: Annotated[str, option("Whose roofline; one that names its TFLOP/s.")] = "M1",
    out: Out = None,
) -> None:
    """Where the kernels lie on a chip's roofline, counted in the simulator on typical inputs."""
    from tiny_llm.views import roofline

    with usage("--chip"):
        found = roofline.chip_of(chip)
    with usage("KERNEL"):
        drawing = roofline.draw(found, roofline.measure(kernels or ()))
    write("roofline", "Kernels on a roofline", [drawing], out)

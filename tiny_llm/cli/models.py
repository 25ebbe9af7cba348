"""`tiny-llm models`: which models are on this machine; download, convert and remove them."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from tiny_llm.cli.errors import usage
from tiny_llm.cli.inputs import check_text
from tiny_llm.cli.options import AsJson, option
from tiny_llm.cli.terminal import print_json, table
from tiny_llm.views.units import size

Name = Annotated[str, typer.Argument(metavar="MODEL", help="An alias or a hub name such as Qwen/Qwen3-0.6B.")]

models = typer.Typer(help="List, download, convert and remove models.", rich_markup_mode=None, no_args_is_help=True)


@models.command("list")
def list_models(as_json: AsJson = False) -> None:
    """List the downloaded models with their sizes, and the aliases."""
    from tiny_llm.model.hub import ALIASES, SHIPPED, local_models

    local = local_models()
    if as_json:
        models = [vars(model) | {"path": str(model.path)} for model in local]
        print_json({"models": models, "aliases": ALIASES, "inside": list(SHIPPED)})
        return
    if local:
        state = {True: "", False: "incomplete: download it again"}
        table([(model.alias or "", model.repo, size(model.size), state[model.complete]) for model in local])
    else:
        print("No model has been downloaded yet.")
    print(f"Inside: {', '.join(SHIPPED)}")
    here = {model.alias for model in local}
    print("\nAliases for `tiny-llm models download` and --model:")
    table([(alias, repo) for alias, repo in ALIASES.items() if alias not in here])


@models.command()
def download(model: Name) -> None:
    """Download a model, or what is missing of it, and print its directory."""
    from tiny_llm.model.hub import download

    print(download(model, progress=sys.stderr.isatty()))


@models.command()
def convert(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A GGUF file, or smollm2-135m where it is installed.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The directory to make.")],
) -> None:
    """Write the model of a GGUF file as a directory that MLX's programs read; packed weights stay as they are."""
    from tiny_llm.model.hub import PACKAGED, local_path, packaged
    from tiny_llm.quantize.write import convert

    with usage("FILE"):
        check_text(file, "file")
        found = local_path(file) or packaged(file)
        if found is None:
            package = PACKAGED.get(file.lower())
            remedy = f"; install it: pip install {package.replace('_', '-')}" if package else ""
            raise ValueError(f"{file}: expected a GGUF file, found nothing of that name{remedy}")
    with usage("--out"):
        check_text(str(out), "directory")
    convert(found, out)
    print(out)


@models.command()
def remove(model: Name, yes: Annotated[bool, option("Do not ask.", "--yes", "-y")] = False) -> None:
    """Delete a downloaded model from this machine."""
    from tiny_llm.model.hub import remove

    if not yes and not sys.stdin.isatty():
        raise typer.BadParameter("nobody can be asked here; add --yes to delete the model", param_hint="MODEL")
    if not yes and not typer.confirm(f"Delete {model} from this machine?"):
        return
    print(f"removed {model}: {size(remove(model))} freed")

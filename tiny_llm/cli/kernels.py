"""`tiny-llm kernels`: check and profile Metal kernels in the simulator, on any machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tiny_llm.cli.options import ExercisesFolder, borrow, option

if TYPE_CHECKING:
    from tiny_llm.kernels.catalog import KernelEntry

KernelFiles = Annotated[
    list[Path] | None,
    typer.Argument(metavar="FILE...", help="Kernels: a name such as rms_norm, or your version of its .metal file."),
]
File = Annotated[Path, typer.Argument(metavar="FILE", help="A name such as rms_norm, or a .metal file of that name.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="How to shuffle the threads; 0 leaves them in order.")]

kernels = typer.Typer(
    help="Check and profile Metal kernels in the simulator.", rich_markup_mode=None, no_args_is_help=True
)


def resolve(file: Path) -> "tuple[KernelEntry, dict[str, Path]]":
    """The catalogue's kernel that `file` names or is a version of, and the source to take in its place."""
    from tiny_llm.kernels.catalog import CATALOG

    entry = CATALOG.get(file.stem)
    if entry is None or file.suffix not in ("", ".metal"):
        names = ", ".join(CATALOG)
        raise typer.BadParameter(f"{file} is no version of a kernel; the kernels are {names}", param_hint="FILE")
    if not file.suffix and not file.exists():
        return entry, {}
    if not file.is_file():
        raise typer.BadParameter(f"{file}: no such file", param_hint="FILE")
    return entry, {entry.kernel.name: file}


def undone(file: Path) -> set[str]:
    """The exercises that a learner's file still leaves to do."""
    from tiny_llm.course import learner

    return learner.undone(learner.read(file), file) if file.suffix and file.is_file() else set()


@kernels.command()
def check(
    files: KernelFiles = None,
    every: Annotated[bool, option("Check all kernels of this package.", "--all")] = False,
    strict: Annotated[bool, option("Also reject what Apple's compiler would (needs libclang).", "--strict")] = False,
    seed: Seed = 1,
) -> None:
    """Run kernels in check mode: memory, races, divergence, and results against the plain twin. Exit code 1 for faults.

    A file is recognised by its name: rms_norm.metal is run on the inputs that rms_norm has here.
    """
    from tiny_llm.kernels.catalog import CATALOG
    from tiny_llm.kernels.check import check_kernel

    if bool(files) == every:
        raise typer.BadParameter("name kernels or pass --all, one of the two", param_hint="FILE")
    if strict:
        try:
            from tiny_llm.kernels.strict import strict_faults
        except ImportError as error:
            raise ValueError("--strict needs libclang: pip install libclang") from error
    failed = 0
    for file in files or [Path(name) for name in CATALOG]:
        entry, replace = resolve(file)
        if todo := undone(file):
            failed += 1
            print(f"{entry.kernel.name}: to do: {', '.join(sorted(todo))}")
            continue
        faults = check_kernel(entry, replace, seed) + (strict_faults(entry, replace) if strict else [])
        failed += bool(faults)
        count = f"{len(faults)} fault{'s' if len(faults) > 1 else ''}" if faults else "clean"
        print(f"{entry.kernel.name}: {count}")
        for fault in faults:
            print(f"  {fault}")
    if failed:
        raise typer.Exit(1)


@kernels.command()
def profile(file: File) -> None:
    """Count what a kernel asks of memory, beside the minimum, with the roofline of some chips."""
    import mlx.core as mx

    from tiny_llm.kernels.profile import profile
    from tiny_llm.kernels.sim import Simulator

    entry, replace = resolve(file)
    arguments = entry.typical(mx.float32)
    simulator = Simulator(trace=True, replace=replace)
    entry.run(arguments, simulator)
    print(profile(simulator.reports[0], entry.operations * arguments[0].size))


@kernels.command()
def roofline(
    model: Annotated[
        str | None, option("A model directory, GGUF file, hub name or alias; the small one inside if not set.")
    ] = None,
    context: Annotated[int, typer.Option(min=1, max=10**9, help="Tokens of each sequence.")] = 1024,
    rows: Annotated[int, typer.Option(min=1, max=10**6, help="Sequences that get a token in one step.")] = 1,
    bits: Annotated[
        float | None,
        option("Bits of a weight; as the model's files have them if not set.", min=1, max=64),
    ] = None,
    code: ExercisesFolder = None,
) -> None:
    """What a decode step of a model costs at least, and how many tokens per second that allows on some chips."""
    borrow(code)
    from tiny_llm.engine.llm import POCKET
    from tiny_llm.model import hub
    from tiny_llm.views.step_costs import describe_step

    print(describe_step(hub.resolve(model) if model else POCKET, model or "pocket", context, rows, bits))

"""The command line. Commands import the engine when they run, so that --help needs no mlx."""

import os
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Annotated, Any

import typer

from tiny_llm._start import INTERRUPTED
from tiny_llm.cli.agent import app as agent
from tiny_llm.cli.bench import bench
from tiny_llm.cli.chat import chat
from tiny_llm.cli.course import app as course
from tiny_llm.cli.doctor import doctor
from tiny_llm.cli.errors import report, short_warnings
from tiny_llm.cli.generate import generate
from tiny_llm.cli.kernels import kernels
from tiny_llm.cli.models import models
from tiny_llm.cli.pocket import app as pocket
from tiny_llm.cli.process import OutputEnd, handled_signals, point_to_nothing, prepared_streams
from tiny_llm.cli.quantize import quantize
from tiny_llm.cli.rag_eval import app as rag
from tiny_llm.cli.serve import keys, serve
from tiny_llm.cli.terminal import escaped
from tiny_llm.cli.train import app as train
from tiny_llm.cli.viz_engine import viz

PROGRAM = "tiny-llm"

app = typer.Typer(
    name=PROGRAM,
    help="Run Qwen and Llama language models on this machine.",
    rich_markup_mode=None,
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (chat, generate, serve, bench, quantize, doctor):
    app.command()(command)
app.add_typer(agent, name="agent")
app.add_typer(models, name="models")
app.add_typer(keys, name="keys")
app.add_typer(kernels, name="kernels")
app.add_typer(course, name="course")
app.add_typer(pocket, name="pocket")
app.add_typer(rag, name="rag")
app.add_typer(train, name="train")
app.add_typer(viz, name="viz")


def print_version(wanted: bool) -> None:
    if wanted:
        try:
            version = metadata.version(PROGRAM)
        except metadata.PackageNotFoundError:
            version = "(not installed, run from its source)"
        print(PROGRAM, version)
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[bool, typer.Option("--version", callback=print_version, is_eager=True, help="Version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")] = False,
) -> None:
    if debug:
        os.environ["TINY_LLM_DEBUG"] = "1"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 for a failure, 2 for wrong usage, 130 for Ctrl-C, 143 for SIGTERM.

    Errors are one line on stderr. --debug counts wherever it stands.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    end = given.index("--") if "--" in given else len(given)
    if "--debug" in given[:end]:
        given = ["--debug", *(word for word in given[:end] if word != "--debug"), *given[end:]]
    try:
        with handled_signals(), prepared_streams(), short_warnings():
            return run(given)
    except ValueError as error:  # a stream that is missing
        report(error)
        return 1


def run(given: Sequence[str]) -> int:
    """Run one command on streams that take any text; returns the exit code."""
    code = 0
    try:
        code = exit_code_of(given)
        sys.stdout.flush()
    except (OutputEnd, BrokenPipeError) as end:
        point_to_nothing(sys.stdout)  # the interpreter's own flush must not complain either
        error = end.error if isinstance(end, OutputEnd) else end
        if code == 0 and not isinstance(error, BrokenPipeError):  # a reader that has seen enough is no failure
            report(OSError(error.errno, error.strerror, "stdout"))
        return code or 1
    return code


def exit_code_of(given: Sequence[str]) -> int:
    try:
        return as_code(app(given, prog_name=PROGRAM, standalone_mode=False))
    except (OutputEnd, BrokenPipeError):
        raise
    except SystemExit as end:
        return as_code(end.code)
    except (KeyboardInterrupt, typer.Abort):
        print(file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        return fail(error)


def as_code(result: object) -> int:
    """A command's result as an exit code: what is no number is none."""
    return result if isinstance(result, int) else 0


def fail(error: Exception) -> int:
    """Show `error`, typer's or any other, in one line; returns the exit code."""
    if not hasattr(error, "format_message"):
        report(error)
        return 1
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error.format_message())
        return 2
    context = getattr(error, "ctx", None)
    path = context.command_path if context else PROGRAM
    print(f"{path}: {usage_message(error)} (see {path} --help)", file=sys.stderr)
    return int(getattr(error, "exit_code", 1))


def usage_message(error: Any) -> str:
    """Typer's message in one line, with the offending value and the nearest option where it leaves them out."""
    text = escaped(" ".join(error.format_message().split())).replace("Value error, ", "").rstrip(".")
    if (near := getattr(error, "possibilities", None)) and (name := getattr(error, "option_name", None)):
        return f"No such option: {name}; did you mean {' or '.join(sorted(near))}?"
    if hasattr(error.__cause__, "errors"):  # pydantic's, which typer converts values with
        found = repr(error.__cause__.errors()[0]["input"])
        return text if found in text else f"{text}, found {found}"
    return text

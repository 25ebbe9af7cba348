"""`tiny-llm chat`: talk to a model, at a terminal or through a pipe."""

import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, TextIO, cast

import typer

from tiny_llm.cli.commands import Commands
from tiny_llm.cli.errors import report, usage
from tiny_llm.cli.inputs import LARGEST, lines_of, text_of
from tiny_llm.cli.options import (
    DialogueOptions,
    EngineOptions,
    KeepOptions,
    SamplingOptions,
    option,
    settings_of,
    with_options,
)
from tiny_llm.cli.session import Session, remark
from tiny_llm.cli.terminal import note

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession

    from tiny_llm.engine.llm import LLM


@dataclass(frozen=True)
class RemoteOptions:
    """A server that runs the model."""

    server: Annotated[
        str | None, option("Talk to a model of this server, --model by its name there.", metavar="URL")
    ] = None
    api_key: Annotated[str | None, option("The key for the server.", envvar="TINY_LLM_API_KEY")] = None


@with_options
def chat(
    engine: EngineOptions,
    sampling: SamplingOptions,
    dialogue: DialogueOptions,
    keep: KeepOptions,
    remote: RemoteOptions,
) -> None:
    """Talk to a model.

    /help lists what can be typed besides messages. If the input is not a terminal, each of its lines is a message
    (a \\ at the end joins it with the next), and the answers go to stdout as plain text.
    """
    settings = settings_of(sampling)
    llm = engine.load() if remote.server is None else connect(remote, engine, keep)
    session = Session(llm, settings, dialogue.template(), dialogue.system)
    with keep.kept(llm):
        if sys.stdin.isatty():
            note(f"{llm.name}, context of {llm.max_context} tokens. /help lists the commands, /quit ends.")
            talk(session)
            answered = True
        else:
            answered = relay(session, sys.stdin)
    if not answered:
        raise typer.Exit(1)


def connect(remote: RemoteOptions, engine: EngineOptions, keep: KeepOptions) -> "LLM":
    """Return a server's model in the form of a model of this process."""
    from tiny_llm.apps.chat.remote import RemoteLLM

    assert remote.server is not None
    with usage("--server"):
        if keep.prompt_cache is not None or engine != EngineOptions(model=engine.model, kernels=engine.kernels):
            raise ValueError("its model runs elsewhere: leave out --prompt-cache and the options of the engine")
    return cast("LLM", RemoteLLM(remote.server, engine.model, remote.api_key))


def talk(session: Session) -> None:
    """The conversation at a terminal, until /quit or Ctrl-D."""
    from tiny_llm.cli.editor import make_editor

    commands = Commands(session)
    editor = make_editor(commands.names())
    with suppress(EOFError):
        while True:
            listen(session, commands, editor)


def listen(session: Session, commands: Commands, editor: "PromptSession[str]") -> None:
    """One line from the terminal. Raises EOFError for /quit and Ctrl-D."""
    try:
        line = editor.prompt("> ")
        if line.strip():
            take(session, commands, line, "message")
    except KeyboardInterrupt:
        remark("/quit or Ctrl-D ends the chat")


def relay(session: Session, stream: TextIO) -> bool:
    """The conversation through a pipe; False if something failed on the way."""
    commands, ok = Commands(session), True
    with suppress(EOFError):
        for number, line in joined_lines(stream):
            if line.strip():
                ok &= take(session, commands, line, f"line {number}")
    return ok


def take(session: Session, commands: Commands, line: str, source: str) -> bool:
    """Obey a command or answer a message. What goes wrong is shown in a line, and the chat goes on."""
    try:
        line = text_of(line, source)
        if line.startswith("/"):
            commands.run(line)
        else:
            session.send(line)
    except (EOFError, BrokenPipeError):
        raise
    except Exception as error:
        sys.stdout.flush()
        report(error)
        return False
    return True


def joined_lines(stream: TextIO) -> Iterator[tuple[int, str]]:
    """Each message and the number of its last line; a line that ends in a backslash goes on in the next.

    Raises ValueError for a message that is longer than LARGEST.
    """
    parts: list[str] = []
    length = number = 0
    for number, line in enumerate(lines_of(stream), 1):
        length += len(line)
        if length > LARGEST:
            raise ValueError(f"line {number}: expected a message of at most {LARGEST:,} characters, found more")
        if line.endswith("\\"):
            parts.append(line[:-1])
            continue
        yield number, "\n".join([*parts, line])
        parts.clear()
        length = 0
    if parts:
        yield number, "\n".join(parts)

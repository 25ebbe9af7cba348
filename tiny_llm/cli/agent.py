"""`tiny-llm agent`: let a model use tools in a folder; its sessions, and its tools for other programs."""

import asyncio
import os
import signal
import sys
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tiny_llm.cli.agent_view import AgentView, ask_user, describe, session_folder
from tiny_llm.cli.errors import usage
from tiny_llm.cli.inputs import text_of
from tiny_llm.cli.options import EngineOptions, SamplingOptions, given, option, settings_of, with_options
from tiny_llm.cli.rag import FOLDER, IndexOptions
from tiny_llm.cli.terminal import note, table

if TYPE_CHECKING:
    from tiny_llm.apps.agent.documents import Documents
    from tiny_llm.apps.agent.loop import Agent
    from tiny_llm.apps.agent.nouns import AgentLimits, ApprovalRules
    from tiny_llm.apps.agent.session import AgentSession

RootFolder = Annotated[Path, option("The only folder whose files the tools reach; the current one if not set.")]
SessionName = Annotated[str, typer.Argument(help="A session, or last.")]


class _Tasks(typer.core.TyperGroup):
    """Treat a first word that is no command as a task: `agent "…"` is `agent run "…"`."""

    def parse_args(self, context: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help", "-h"):
            args = ["run", *args]
        return super().parse_args(context, args)


app = typer.Typer(
    cls=_Tasks, help="Let a model use tools in a folder; `agent TASK` is `agent run TASK`.", no_args_is_help=True
)


@dataclass(frozen=True)
class AgentOptions:
    """What an agent may do, and its bounds."""

    root: RootFolder = Path(".")
    yes: Annotated[
        bool, option("Approve calls with effects, except after the model has read text from outside.", "--yes")
    ] = False
    allow: Annotated[
        list[str] | None, option("Approve these calls without asking; may be repeated.", metavar="TOOL[:PATH-PATTERN]")
    ] = None
    deny: Annotated[list[str] | None, option("Refuse these calls; may be repeated.", metavar="TOOL[:PATH-PATTERN]")] = (
        None
    )
    tool: Annotated[list[str] | None, option("Offer only these built-in tools; may be repeated.", metavar="NAME")] = (
        None
    )
    documents: Annotated[
        Path | None,
        option("The index that search_documents searches, made by `rag add`; that of the root if not set."),
    ] = None
    http: Annotated[bool, option("Offer http_get as well; you are asked for each address.", "--http")] = False
    mcp: Annotated[
        list[str] | None, option("Offer the tools of an MCP server as well; may be repeated.", metavar="COMMAND|URL")
    ] = None
    steps: Annotated[int | None, option("Most replies of the model; 12 if not set.", min=1)] = None
    seconds: Annotated[float | None, option("Most seconds of a run; 600 if not set.", min=1)] = None
    thinking: Annotated[bool, option("Let the model think before it calls and answers.", "--thinking")] = False
    constrain: Annotated[bool, option("Let a grammar make calls well formed (the default), or not.")] = True

    def limits(self) -> "AgentLimits":
        from tiny_llm.apps.agent.nouns import AgentLimits

        with usage("--steps and --seconds"):
            return AgentLimits(**given(steps=self.steps, seconds=self.seconds))

    def rules(self) -> "ApprovalRules":
        from tiny_llm.apps.agent.nouns import ApprovalRules

        return ApprovalRules(tuple(self.allow or ()), tuple(self.deny or ()), self.yes)


@app.command()
@with_options
def run(
    engine: EngineOptions,
    sampling: SamplingOptions,
    agent: AgentOptions,
    task: Annotated[str | None, typer.Argument(help="What to do; not needed with --resume.")] = None,
    resume: Annotated[str | None, option("Go on with a session, or with the last one.", metavar="SESSION|last")] = None,
    fork: Annotated[str | None, option("Begin with the messages of another session.", metavar="SESSION|last")] = None,
    system: Annotated[str | None, option("System prompt; the one that pocket was trained with if not set.")] = None,
) -> None:
    """Work on a task with tools. Ctrl-C stops the run; at a terminal you can then say more.

    Each step is written to the file of a session before the next step begins, so that --resume goes on after a crash.
    `agent undo` takes file changes back.
    """
    if task is None and resume is None:
        raise typer.BadParameter("say what to do, or name a session with --resume", param_hint="TASK")
    if resume is not None and fork is not None:
        raise typer.BadParameter("give --resume or --fork, not both", param_hint="--fork")
    if system is not None and (resume is not None or fork is not None):
        raise typer.BadParameter("a session has a system prompt already; leave it out", param_hint="--system")
    with usage("TASK"):
        told = None if task is None else text_of(task, "task")
    with usage("--system"):
        system = None if system is None else text_of(system, "system prompt")
    settings = settings_of(sampling)
    llm = engine.load()  # before any import of apps: with --code they are the learner's
    from tiny_llm.apps.agent.chat import LLMChat

    session = _session(agent.root, resume, fork, system)
    try:
        with usage("--model"):
            model = LLMChat(llm, settings, {"enable_thinking": agent.thinking}, agent.constrain)
        reason = asyncio.run(_work(model, session, agent, told))
        model.close()
    finally:
        session.close()
    note(f"session {session.path.stem if session.path else ''}: `tiny-llm agent --resume last` goes on with it")
    if reason != "answered":
        print(f"stopped: {describe(reason)}", file=sys.stderr)
        raise typer.Exit(1)


def _session(root: Path, resume: str | None, fork: str | None, system: str | None) -> "AgentSession":
    """Open the session that the options name, or a new one."""
    from tiny_llm.apps.agent.session import AgentSession
    from tiny_llm.config.prompts import builtin_tools

    folder = session_folder()
    if resume is not None:
        with usage("--resume"):
            return AgentSession(folder.find(resume))
    if fork is not None:
        with usage("--fork"):
            old = AgentSession(folder.find(fork))
        try:
            return old.fork(folder.new())
        finally:
            old.close()
    return AgentSession(folder.new(), system or builtin_tools().system, str(root.resolve()))


async def _work(model: Any, session: "AgentSession", options: AgentOptions, task: str | None) -> str:
    """Run the agent until its answer stands. Returns why the last run ended."""
    from tiny_llm.apps.agent.builtin import HTTP_GET, Builtin, LongOutputs, make_builtin
    from tiny_llm.apps.agent.files import Root as Files
    from tiny_llm.apps.agent.loop import Agent
    from tiny_llm.apps.agent.mcp_client import mcp_tools

    outputs = LongOutputs()
    folder = Path(session.about("root") or options.root)
    with usage("--root"):
        files = Files(folder, session.change)
    with usage("--documents"):
        documents = open_documents(options.documents or index_below(folder))
    with usage("--tool"):
        tools = make_builtin(Builtin(files, outputs, documents), options.tool)
    tools += [HTTP_GET] if options.http else []
    async with AsyncExitStack() as stack:
        if options.mcp:
            with usage("--mcp"):
                tools += await stack.enter_async_context(mcp_tools(options.mcp, taken=[tool.name for tool in tools]))
        limits, rules = options.limits(), options.rules()
        with usage("--allow and --deny"):
            rules.check([tool.name for tool in tools])
        agent = Agent(model, tools, session, limits=limits, rules=rules, approve=ask_user, outputs=outputs)
        reason = await run_shown(agent, task)
        while reason == "cancelled" and sys.stdin.isatty():
            more = input("say more, or press Enter to end: ")
            if not more.strip():
                break
            reason = await run_shown(agent, more)
    files.close()
    if documents is not None:
        documents.close()
    return reason


def index_below(folder: Path) -> Path | None:
    """Return the index that `tiny-llm rag add` made in a folder; None where there is none."""
    index = folder / FOLDER
    return index if index.is_dir() else None


def open_documents(index: Path | None) -> "Documents | None":
    """Open an index for tools. Raises ValueError for a folder without one."""
    if index is None:
        return None
    from tiny_llm.apps.agent.documents import Documents
    from tiny_llm.apps.rag.retriever import Retriever

    options = IndexOptions(index)
    return Documents(lambda: Retriever(options.open(create=False)))


async def run_shown(agent: "Agent", task: str | None) -> str:
    """Run the agent once and show what it does; Ctrl-C cancels the run. Returns why it ended."""
    view = AgentView()
    loop = asyncio.get_running_loop()
    with suppress(NotImplementedError, RuntimeError, ValueError):  # only the main thread gets signals
        loop.add_signal_handler(signal.SIGINT, agent.cancel)
    reason = ""
    try:
        async for event in agent.run(task):
            view.show(event)
            if event.kind == "end":
                reason = event.data["reason"]
    finally:
        view.finish()
        with suppress(NotImplementedError, RuntimeError, ValueError):
            loop.remove_signal_handler(signal.SIGINT)
    return reason


@app.command("mcp")
def mcp_command(
    root: RootFolder = Path("."), tool: Annotated[list[str] | None, option("Only these tools.")] = None
) -> None:
    """Serve the built-in tools as an MCP server on stdin and stdout, for other programs."""
    from tiny_llm.apps.agent.builtin import Builtin, LongOutputs, make_builtin
    from tiny_llm.apps.agent.files import Root as Files
    from tiny_llm.apps.agent.mcp_server import mcp_server, serve_stdio

    outputs = LongOutputs()
    with usage("--root and --tool"):
        tools = make_builtin(Builtin(Files(root), outputs), tool)
    serve_stdio(mcp_server(tools, outputs))


@app.command()
def sessions() -> None:
    """List the sessions, newest first, with their first task."""
    found = session_folder().first_tasks()
    table([(name, " ".join(task.split())[:60] or "(no task)") for name, task in found])


@app.command()
def undo(session: SessionName = "last") -> None:
    """Take back the file changes that a session made for its last task."""
    from tiny_llm.apps.agent.files import Root as Files
    from tiny_llm.apps.agent.session import AgentSession

    with usage("SESSION"):
        opened = AgentSession(session_folder().find(session))
    try:
        files = Files(Path(opened.about("root") or os.curdir))
        for path in opened.undo(files) or ["nothing to take back"]:
            print(path)
    finally:
        opened.close()


@app.command()
def replay(session: SessionName = "last") -> None:
    """Show again what happened in a session, without a model and without running tools."""
    from tiny_llm.apps.agent.session import AgentSession

    with usage("SESSION"):
        opened = AgentSession(session_folder().find(session))
    view = AgentView(whole=True)
    for event in opened.events:
        view.show(event)
    opened.close()

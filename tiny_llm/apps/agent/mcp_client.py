"""Tools of MCP servers: programs that speak over stdio, and addresses that speak HTTP. Needs the extra mcp.

The tools are listed once, in the server's order, because another list would change the prompt and lose its prefix in
the cache, and because a server could give a tool that was approved another meaning. A call of a tool that is gone
fails.
"""

import re
import shlex
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

from tiny_llm.apps.agent.tools import AgentTool, ToolArguments, ToolError
from tiny_llm.config.fields import require

if TYPE_CHECKING:
    from mcp import Client

SECONDS = 30.0  # that a server may take for an answer
ODD = re.compile(r"[^a-zA-Z0-9_.-]")  # characters that a grammar, a prompt or a terminal may read as their own
MOST_TOOLS = 64  # of one server
MOST_PAGES = 20  # of a list of tools
LONGEST_TEXT = 1_000  # characters of a description
REMEDY = 'install the extra: pip install "tiny-llm[mcp]"'


@asynccontextmanager
async def mcp_tools(
    servers: Sequence[Any], seconds: float = SECONDS, taken: Sequence[str] = ()
) -> AsyncIterator[list[AgentTool]]:
    """Connect to servers and yield their tools; disconnect afterwards.

    A server is a command line, an address that begins with http:// or https://, or anything else that `mcp.Client`
    takes. A name that is `taken`, also by an earlier server, gets a number: read, read_2. An odd character in a name
    becomes "_". Raises ValueError for a server that can't be reached, or does not list its tools.
    """
    stack = AsyncExitStack()
    tools: dict[str, AgentTool] = {}
    try:
        for server in servers:
            client = await _connected(stack, server, seconds)
            for tool in await _listed(client, str(server)):
                name = _free_name(ODD.sub("_", tool.name), {*taken, *tools})
                tools[name] = _made(client, name, tool, seconds)
        yield list(tools.values())
    finally:
        await stack.aclose()  # `async with` would wrap the caller's errors in a group of the clients' tasks


async def _connected(stack: AsyncExitStack, server: Any, seconds: float) -> "Client":
    try:
        from mcp import Client, StdioServerParameters
    except ImportError:
        raise ValueError(f"mcp: the package is missing; {REMEDY}") from None
    target = server
    if isinstance(server, str) and not server.startswith(("http://", "https://")):
        words = shlex.split(server)
        require(bool(words), "mcp: expected a command or an address of a server, found an empty text")
        target = StdioServerParameters(command=words[0], args=words[1:])
    try:
        return await stack.enter_async_context(Client(target, read_timeout_seconds=seconds))
    except Exception as error:
        raise ValueError(f"mcp: {server}: no MCP server answers there: {in_words(error)}") from None


async def _listed(client: "Client", server: str) -> list[Any]:
    """Return all tools of a server. Raises ValueError for too many, or a list without an end."""
    found: list[Any] = []
    cursor = None
    for _ in range(MOST_PAGES):
        try:
            page = await client.list_tools(cursor=cursor)
        except Exception as error:
            raise ValueError(f"mcp: {server}: the server does not list its tools: {in_words(error)}") from None
        found += page.tools
        cursor = page.next_cursor
        if cursor is None or len(found) > MOST_TOOLS:
            break
    too_many = cursor is not None or len(found) > MOST_TOOLS
    require(not too_many, f"mcp: {server}: expected at most {MOST_TOOLS} tools, found more; name another server")
    return found


def _free_name(name: str, taken: set[str]) -> str:
    number = 1
    free = name
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    return free


def _made(client: "Client", name: str, tool: Any, seconds: float) -> AgentTool:
    """Return an MCP tool as one of the agent. What a server says of its own tools is not trusted."""

    async def run(arguments: ToolArguments) -> str:
        try:
            result = await client.call_tool(tool.name, dict(arguments), read_timeout_seconds=seconds)
        except Exception as error:
            raise ToolError(in_words(error)) from None
        text = "\n".join(_text_of(block) for block in result.content)
        if result.is_error:
            raise ToolError(text or "the tool failed")
        return text or "(no output)"

    description = " ".join((tool.description or "").split())[:LONGEST_TEXT]
    return AgentTool(name, description, tool.input_schema, run, effects=True, foreign=True)


def _text_of(block: Any) -> str:
    """Return a part of a result as text: a model here reads no pictures."""
    text = getattr(block, "text", None)
    return text if isinstance(text, str) else f"({getattr(block, 'type', 'part')}: not shown)"


def in_words(error: BaseException) -> str:
    """Return an error in one line; of a group its first."""
    inner = getattr(error, "exceptions", None)
    while inner:
        error = inner[0]
        inner = getattr(error, "exceptions", None)
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"

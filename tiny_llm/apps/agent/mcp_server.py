"""The built-in tools as an MCP server, for other programs. Needs the extra mcp."""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tiny_llm.apps.agent.act import ToolRunner
from tiny_llm.apps.agent.builtin import LongOutputs
from tiny_llm.apps.agent.mcp_client import REMEDY
from tiny_llm.apps.agent.nouns import AgentCall
from tiny_llm.apps.agent.tools import AgentTool, ToolError, by_name, check_arguments

if TYPE_CHECKING:
    from mcp.server.lowlevel import Server

NAME = "tiny-llm"
SECONDS = 30.0  # of one call


def mcp_server(tools: Sequence[AgentTool], outputs: LongOutputs, seconds: float = SECONDS) -> "Server[Any]":
    """Return a server that lists the tools in their order and runs their calls. A failure is an error's text."""
    try:
        from mcp import types
        from mcp.server.lowlevel import Server
    except ImportError:
        raise ValueError(f"mcp: the package is missing; {REMEDY}") from None
    offered = by_name(list(tools))
    runner = ToolRunner(offered, outputs, seconds, repeats=1)
    listed = [
        types.Tool(
            name=tool.name,
            description=tool.description,
            input_schema=dict(tool.parameters),
            annotations=types.ToolAnnotations(read_only_hint=not tool.effects),
        )
        for tool in offered.values()
    ]

    async def list_tools(context: Any, request: Any) -> Any:
        return types.ListToolsResult(tools=listed)

    async def call_tool(context: Any, request: Any) -> Any:
        text, failed = await call(runner, request.name, request.arguments or {})
        return types.CallToolResult(content=[types.TextContent(type="text", text=text)], is_error=failed)

    return Server(NAME, on_list_tools=list_tools, on_call_tool=call_tool)


async def call(runner: ToolRunner, name: str, arguments: dict[str, Any]) -> tuple[str, bool]:
    """Return the text of a call's result, and whether the call failed."""
    tool = runner.tools.get(name)
    if tool is None:
        return f"unknown tool {name[:100]}; known are {', '.join(runner.tools)}", True
    try:
        check_arguments(tool.parameters, arguments)
    except ToolError as error:
        return str(error), True
    result = await runner.run(AgentCall("mcp", name, arguments, ""))
    return (result.message if result.failed else result.text), result.failed


def serve_stdio(server: "Server[Any]") -> None:
    """Serve on stdin and stdout until stdin ends."""
    from mcp import stdio_server

    async def serve() -> None:
        async with stdio_server() as (reading, writing):
            await server.run(reading, writing, server.create_initialization_options())

    asyncio.run(serve())

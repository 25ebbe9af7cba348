"""Tools of MCP servers, and the built-in tools as one. The servers are real, in memory, on stdio and on HTTP."""

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.apps.agent.scripted import make_agent, results, run, yes
from tiny_llm.apps.agent.builtin import Builtin, LongOutputs, make_builtin
from tiny_llm.apps.agent.files import Root
from tiny_llm.apps.agent.mcp_client import mcp_tools
from tiny_llm.apps.agent.mcp_server import mcp_server
from tiny_llm.apps.agent.tools import AgentTool, ToolError

pytest.importorskip("mcp")
SERVER = """
import os, sys
from mcp.server import MCPServer

server = MCPServer("odd")

@server.tool()
def die() -> str:
    os._exit(1)

@server.tool()
def flood() -> str:
    return "x" * 5_000_000

@server.tool()
def change() -> str:
    server.remove_tool("flood")
    return "changed"

@server.tool()
def hang() -> str:
    import time
    time.sleep(60)
    return "late"

@server.tool()
def fail(why: str) -> str:
    raise ValueError(why)

if len(sys.argv) > 1:
    server.run("streamable-http", port=int(sys.argv[1]))
else:
    server.run("stdio")
"""


def with_tools(servers: list[Any], use: Callable[[dict[str, AgentTool]], Any], seconds: float = 20) -> Any:
    async def main() -> Any:
        async with mcp_tools(servers, seconds) as tools:
            return await use({tool.name: tool for tool in tools})

    return asyncio.run(asyncio.wait_for(main(), 120))


async def answer(tool: AgentTool, **arguments: Any) -> str:
    try:
        result = tool.run(arguments)
        return result if isinstance(result, str) else await result
    except ToolError as error:
        return f"failed: {error}"


@pytest.fixture
def odd(tmp_path: Path) -> str:
    (tmp_path / "server.py").write_text(SERVER)
    return f"{sys.executable} {tmp_path / 'server.py'}"


def test_the_built_in_tools_are_served(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hi")
    outputs = LongOutputs()
    builtin = make_builtin(Builtin(Root(tmp_path), outputs))

    async def use(tools: dict[str, AgentTool]) -> None:
        assert list(tools) == [tool.name for tool in builtin]
        assert tools["edit_file"].parameters == builtin[4].parameters
        assert await answer(tools["calculator"], expression="6 * 7") == "42"
        assert await answer(tools["calculator"], expression="1 / 0") == "failed: division by zero"
        assert await answer(tools["calculator"]) == "failed: the argument expression is missing"
        assert await answer(tools["read_file"], path="a.txt") == "hi"
        assert await answer(tools["read_file"], path="../a.txt") == "failed: permission denied: ../a.txt"

    with_tools([mcp_server(builtin, outputs)], use)


def test_agent_mcp_serves_on_stdio(tmp_path: Path) -> None:
    command = f"{sys.executable} -m tiny_llm agent mcp --root {tmp_path} --tool write_file --tool clock"

    async def use(tools: dict[str, AgentTool]) -> list[str]:
        assert await answer(tools["write_file"], path="a.txt", content="x") == "Wrote a.txt."
        return list(tools)

    assert with_tools([command], use) == ["clock", "write_file"]
    assert (tmp_path / "a.txt").read_text() == "x"


def test_two_servers_may_have_tools_of_one_name(tmp_path: Path) -> None:
    outputs = LongOutputs()
    servers = [mcp_server(make_builtin(Builtin(Root(tmp_path), outputs), ["clock"]), outputs) for _ in range(2)]

    async def use(tools: dict[str, AgentTool]) -> list[str]:
        return list(tools)

    assert with_tools(servers, use) == ["clock", "clock_2"]


def test_names_that_are_taken_and_errors_of_the_caller(tmp_path: Path) -> None:
    """An error of the caller must come out as it is, not in a group of the client's tasks."""
    outputs = LongOutputs()
    server = mcp_server(make_builtin(Builtin(Root(tmp_path), outputs), ["clock"]), outputs)

    async def main() -> None:
        async with mcp_tools([server], taken=["clock"]) as tools:
            assert [tool.name for tool in tools] == ["clock_2"]
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        asyncio.run(main())


def test_an_odd_server_gives_results_that_a_model_can_act_on(odd: str) -> None:
    async def use(tools: dict[str, AgentTool]) -> None:
        assert (await answer(tools["fail"], why="because")).startswith("failed: Error executing tool fail")
        assert len(await answer(tools["flood"])) == 5_000_000
        assert await answer(tools["change"]) == "changed"
        assert "flood" in await answer(tools["flood"])
        assert (await answer(tools["flood"])).startswith("failed: ")
        assert (await answer(tools["hang"])).startswith("failed: ")
        assert (await answer(tools["die"])).startswith("failed: ")
        assert (await answer(tools["change"])).startswith("failed: ")

    with_tools([odd], use, seconds=5)


def test_a_flood_is_cut_for_the_model_and_taints(odd: str, tmp_path: Path) -> None:
    async def use(tools: dict[str, AgentTool]) -> None:
        agent = make_agent(tmp_path, [("flood", {})], "Well.", tools=list(tools.values()), approve=yes)
        events = [event async for event in agent.run("?")]
        (text,) = results(events)
        assert len(text) < 5_000
        assert agent.session.tainted

    with_tools([odd], use)


def test_a_tool_of_a_server_is_asked_for(odd: str, tmp_path: Path) -> None:
    async def use(tools: dict[str, AgentTool]) -> list[str]:
        agent = make_agent(tmp_path, [("change", {})], "Well.", tools=list(tools.values()))
        return results([event async for event in agent.run("?")])

    assert with_tools([odd], use) == ["Error: the user did not approve change"]


def test_http(odd: str, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([*odd.split(), str(port)], stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)

        async def use(tools: dict[str, AgentTool]) -> str:
            return await answer(tools["change"])

        assert with_tools([f"http://127.0.0.1:{port}/mcp"], use) == "changed"
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("server", ["/bin/false", "/none/such", "http://127.0.0.1:9/mcp", "  "])
def test_a_server_that_is_not_there(server: str) -> None:
    async def use(tools: dict[str, AgentTool]) -> None:
        raise AssertionError

    with pytest.raises(ValueError, match="mcp: "):
        with_tools([server], use, seconds=5)


def test_the_loop_runs_beside_a_server(tmp_path: Path) -> None:
    assert results(run(make_agent(tmp_path, [("calculator", {"expression": "1"})], "One."))) == ["1"]


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_clients_of_both_handshakes_are_served(tmp_path: Path, mode: Any) -> None:
    from mcp import Client

    outputs = LongOutputs()
    server = mcp_server(make_builtin(Builtin(Root(tmp_path), outputs), ["calculator"]), outputs)

    async def use() -> str:
        async with Client(server, mode=mode) as client:
            result = await client.call_tool("calculator", {"expression": "6 * 7"})
            return str(getattr(result.content[0], "text", ""))

    assert asyncio.run(use()) == "42"

"""Run one tool call. Every failure becomes a result that the model can act on."""

import asyncio
import contextlib
import inspect
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from tiny_llm.apps.agent.builtin import LongOutputs
from tiny_llm.apps.agent.nouns import AgentCall
from tiny_llm.apps.agent.tools import AgentTool, RunTool, ToolArguments, ToolError, check_arguments
from tiny_llm.config.prompts import builtin_tools
from tiny_llm.decode.tool_values import dump_json

LONGEST_ERROR = 500  # characters


class CallResult(NamedTuple):
    """The result of a call as the model sees it. `foreign`: it holds text that the user did not write."""

    text: str
    failed: bool = False
    foreign: bool = False

    @property
    def message(self) -> str:
        """A failure's text without "Error: "."""
        return self.text.removeprefix(builtin_tools().failure(""))


class ToolRunner:
    """Runs calls of `tools`, counts equal ones, and cuts long results."""

    def __init__(self, tools: Mapping[str, AgentTool], outputs: LongOutputs, seconds: float, repeats: int):
        self.tools, self.outputs, self.seconds, self.repeats = tools, outputs, seconds, repeats
        self._seen: Counter[tuple[str, str]] = Counter()

    def new_run(self) -> None:
        """Forget the calls of earlier runs."""
        self._seen.clear()

    @property
    def is_stuck(self) -> bool:
        """Whether one call was made so often that the run should end."""
        return max(self._seen.values(), default=0) >= self.repeats

    def fault(self, call: AgentCall) -> str | None:
        """Return why a call can't run: an unknown tool, wrong arguments, or a call that was just made."""
        tool = self.tools.get(call.name)
        if tool is None:
            return f"unknown tool {call.name[:100]}; known are {', '.join(self.tools)}"
        if call.arguments is None:
            return "the arguments are no JSON object"
        try:
            check_arguments(tool.parameters, call.arguments)
            key = key_of(call)
        except ValueError as error:
            return str(error)[:LONGEST_ERROR]
        self._seen[key] += 1
        if self._seen[key] > 1:
            return "this call was made before, with the result above: use that, or make another call"
        return None

    async def run(self, call: AgentCall) -> CallResult:
        """Run a call without a fault, and return its result."""
        tool = self.tools[call.name]
        assert call.arguments is not None
        with tool_span(call):
            try:
                running = in_thread(tool.run, call.arguments)
                text = await asyncio.wait_for(running, self.seconds)
            except asyncio.TimeoutError:
                return self.failure(f"timeout after {self.seconds:g} seconds", tool.foreign)
            except ToolError as error:
                return self.failure(str(error), tool.foreign)
            except Exception as error:  # a tool's own mistake must not end the run
                return self.failure(f"{type(error).__name__}: {error}", tool.foreign)
        if tool.effects:  # after a change an equal call of another tool may have another result
            key = key_of(call)
            self._seen = Counter({key: self._seen[key]})
        return CallResult(self.outputs.cut(clean(text)), foreign=tool.foreign)

    def failure(self, message: str, foreign: bool = False) -> CallResult:
        """Return the result of a call that failed, in the words of builtin_tools.toml."""
        return CallResult(builtin_tools().failure(self.outputs.cut(clean(message))), True, foreign)


def key_of(call: AgentCall) -> tuple[str, str]:
    """Return what two equal calls have in common. Raises ValueError for arguments that UTF-8 can't hold."""
    assert call.arguments is not None
    return call.name, dump_json(dict(sorted(call.arguments.items())))


def clean(text: Any) -> str:
    """Return a result as a text that UTF-8 can hold."""
    written = text if isinstance(text, str) else str(text)
    return written.encode("utf-8", "replace").decode()


async def in_thread(run: RunTool, arguments: ToolArguments) -> Any:
    """Return a tool's result without blocking the event loop.

    The thread is a daemon, because a tool that hangs must not keep the program from ending.
    """
    if inspect.iscoroutinefunction(run):
        return await run(arguments)
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def settle(result: Any, error: Exception | None) -> None:
        if future.done():  # the call was given up meanwhile
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def work() -> None:
        result, error = None, None
        try:
            result = run(arguments)
        except Exception as found:
            error = found
        except BaseException as found:  # SystemExit and the like
            error = RuntimeError(f"{type(found).__name__}: {found}")
        with contextlib.suppress(RuntimeError):  # the event loop was closed
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=work, name="tiny-llm tool", daemon=True).start()
    return await future


@contextmanager
def tool_span(call: AgentCall) -> Iterator[None]:
    """Record the call as an OpenTelemetry span `execute_tool NAME`, where OpenTelemetry is installed."""
    try:
        from opentelemetry import trace
    except ImportError:
        yield
        return
    attributes = {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": call.name,
        "gen_ai.tool.call.id": call.id,
        "gen_ai.tool.type": "function",
    }
    with trace.get_tracer("tiny_llm.agent").start_as_current_span(f"execute_tool {call.name}", attributes=attributes):
        yield

"""`tiny-llm serve`: models over HTTP; `tiny-llm keys`: who may use them."""

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tiny_llm._blas import cache_dir
from tiny_llm.cli.agent import open_documents
from tiny_llm.cli.errors import usage
from tiny_llm.cli.options import NO_MODEL, EngineOptions, option, with_options
from tiny_llm.cli.terminal import dim, num_bytes_of
from tiny_llm.config.scheduler import SchedulerConfig
from tiny_llm.config.serving import ServingConfig

if TYPE_CHECKING:
    from fastapi import FastAPI

    from tiny_llm.apps.agent.hosted import HostedTools
    from tiny_llm.server.models import Models
    from tiny_llm.server.observe import Observer

INSTALL = 'serve: needs fastapi and uvicorn; install them with pip install "tiny-llm[server]"'
KEYS_FILE = Path("~/.config/tiny-llm/keys.json")


@dataclass(frozen=True)
class ListenOptions:
    """Where the server listens, and to whom it answers."""

    host: Annotated[str | None, option("Address to listen on; 127.0.0.1, this machine alone, if not set.")] = None
    port: Annotated[int | None, option("Port to listen on; 8000 if not set, 0 for any free one.", "--port", "-p")] = (
        None
    )
    keys_file: Annotated[Path | None, option("Accept the keys of this file, which `tiny-llm keys` writes.")] = None
    api_key: Annotated[str | None, option("Accept this key.", envvar="TINY_LLM_API_KEY")] = None
    without_key: Annotated[
        bool | None, option("Listen on addresses that other machines reach, without any key.", "--without-key")
    ] = None
    allowed_host: Annotated[
        list[str] | None, option("A name of this server in Host headers; may be repeated.", metavar="NAME")
    ] = None
    allowed_origin: Annotated[
        list[str] | None, option("A web page that may call the API; may be repeated.", metavar="URL")
    ] = None


@dataclass(frozen=True)
class LimitOptions:
    """How much the server takes in, and how long it waits."""

    max_requests: Annotated[int | None, option("Unfinished requests at once; one more gets 429. 1024.")] = None
    max_sequences: Annotated[int | None, option("Sequences that run at once; 32 if not set.")] = None
    token_budget: Annotated[int | None, option("Tokens of a step; 512 if not set.")] = None
    step_ms: Annotated[
        float | None,
        option(
            "Time between tokens, in ms, that steps keep to: the tokens of a step follow the machine's speed.",
            min=0.1,
            max=60_000,
        ),
    ] = None
    kv_bytes: Annotated[str | None, option("Memory of each model's pool of blocks: 2GB.", metavar="BYTES")] = None
    disk_folder: Annotated[Path | None, option("Keep blocks there that the pool has no room for.")] = None
    memory_cap: Annotated[str | None, option("Memory of all loaded models together: 16GB.", metavar="BYTES")] = None
    idle_unload: Annotated[float | None, option("Unload a model that is unused for this many seconds.")] = None
    pin: Annotated[list[str] | None, option("Load this model at once and keep it; may be repeated.")] = None
    responses_folder: Annotated[
        Path | None, option("Where /v1/responses stores its answers; in ~/.cache/tiny-llm if not set.")
    ] = None
    responses_bytes: Annotated[
        str | None, option("Stored responses of each key: 256MB if not set.", metavar="BYTES")
    ] = None
    max_body: Annotated[str | None, option("Largest request: 16MB if not set.", metavar="BYTES")] = None
    cache_per_tenant: Annotated[bool | None, option("Share no cached prefixes between keys.", "--cache-per-tenant")] = (
        None
    )
    request_seconds: Annotated[float | None, option("Seconds that an answer may take; 600 if not set.")] = None
    drain_seconds: Annotated[float | None, option("After SIGTERM: seconds for running requests; 30 if not set.")] = None

    def serving(self) -> ServingConfig:
        """Return the settings of each model's engine."""
        step_seconds = None if self.step_ms is None else self.step_ms / 1000
        shares = given(max_sequences=self.max_sequences, token_budget=self.token_budget, step_seconds=step_seconds)
        kv_bytes = sized("--kv-bytes", self.kv_bytes)
        settings = given(max_requests=self.max_requests, kv_bytes=kv_bytes, disk_folder=self.disk_folder)
        with usage():
            return ServingConfig(scheduler=SchedulerConfig(**shares), **settings)


@dataclass(frozen=True)
class HostedOptions:
    """The tools that /v1/responses runs itself; none if not set."""

    documents: Annotated[
        Path | None, option("Let file_search search this index, which `tiny-llm rag add` makes.", metavar="INDEX")
    ] = None
    agent: Annotated[
        Path | None, option("Let clients use the agent's built-in tools on this folder.", metavar="FOLDER")
    ] = None
    allow: Annotated[
        list[str] | None,
        option("Let these calls with effects run; may be repeated.", metavar="TOOL[:PATH-PATTERN]"),
    ] = None
    deny: Annotated[list[str] | None, option("Refuse these calls; may be repeated.", metavar="TOOL[:PATH-PATTERN]")] = (
        None
    )

    def tools(self) -> "HostedTools":
        """Open the index and the folder."""
        from tiny_llm.apps.agent.files import Root
        from tiny_llm.apps.agent.hosted import HostedTools
        from tiny_llm.apps.agent.nouns import ApprovalRules

        with usage("--documents"):
            documents = open_documents(self.documents)
        with usage("--agent"):
            root = None if self.agent is None else Root(self.agent)
        return HostedTools(documents, root, ApprovalRules(tuple(self.allow or ()), tuple(self.deny or ())))


@dataclass(frozen=True)
class WatchOptions:
    """What the server tells about its work. /metrics is always there."""

    otlp: Annotated[str | None, option("Send a trace of each request to this OTLP/HTTP collector.", metavar="URL")] = (
        None
    )
    log_format: Annotated[Literal["auto", "json", "short"] | None, option("Form of the log on stderr.")] = None
    log_prompts: Annotated[bool | None, option("Allow prompts in the log.", "--log-prompts")] = None
    audit_log: Annotated[
        Path | None, option("Write who asked what route when, with status and tokens, to this file.")
    ] = None

    def observer(self) -> "Observer":
        """Return the observer of all requests. Without an option it counts metrics alone."""
        from tiny_llm.server.audit import AuditLog
        from tiny_llm.server.logs import Logs
        from tiny_llm.server.observe import Observer
        from tiny_llm.server.tracing import Tracing

        wants_log = self.log_format is not None or self.log_prompts is not None
        logs = Logs(form=self.log_format or "auto", prompts=bool(self.log_prompts)) if wants_log else None
        tracing = Tracing(self.otlp) if self.otlp is not None else None
        audit = AuditLog(self.audit_log) if self.audit_log is not None else None
        return Observer(None, tracing, logs, audit)


@with_options
def serve(
    engine: EngineOptions,
    listen: ListenOptions,
    limits: LimitOptions,
    watch: WatchOptions,
    hosted: HostedOptions,
    model: Annotated[
        list[str] | None,
        option(
            "A directory, GGUF file, hub name or alias, or NAME=one of these; may be repeated.",
            "--model",
            "-m",
            metavar="[NAME=]MODEL",
        ),
    ] = None,
) -> None:
    """Serve models over HTTP, with the OpenAI API and the Anthropic API.

    The first model is loaded at once, the others when they are asked for. Without a model the small one inside is
    served, as `pocket`.
    """
    engine.install_code()  # before the engine is imported
    with installed():
        from tiny_llm.server import models, run
        from tiny_llm.server.keys import KeyFile
        from tiny_llm.server.settings import ServerSettings
    with usage():
        settings = ServerSettings(**settings_of(listen, limits))
        specs = [models.spec_of(text, limits.pin or ()) for text in model or ()] or [models.ModelSpec("pocket")]
        models.check_pins(limits.pin or (), specs)
    config, serving = engine.config(), limits.serving()
    keys = KeyFile(settings.keys_file, settings.api_key)
    observer = watch.observer()
    tools = hosted.tools()
    served = models.Models(
        specs,
        config,
        serving,
        observe=observer.emit_of,
        unloaded=observer.unloaded,
        idle_seconds=settings.idle_unload,
        memory_cap=settings.memory_cap,
    )
    listener = run.bind(settings)
    url = run.url_of(listener)
    if not model:
        print(dim(NO_MODEL, sys.stderr), file=sys.stderr, flush=True)
    make_app = load_and_import(served)
    names = ", ".join(spec.name for spec in specs)

    def ready() -> None:
        print(f"{names} at {url}/v1 (the API: {url}/docs)", flush=True)

    run.run(make_app(served, settings, keys, observer, tools), listener, ready)


@contextmanager
def installed() -> Iterator[None]:
    """Within it a package that is missing raises a ValueError that says how to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ValueError(f"{INSTALL} ({error})") from error


def load_and_import(served: "Models") -> Callable[..., "FastAPI"]:
    """Load the models in a thread, and meanwhile import FastAPI, which takes as long. Return `make_app`."""
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(served.load_now)
        with installed():
            from tiny_llm.server.app import make_app
        loading.result()
    return make_app


def settings_of(listen: ListenOptions, limits: LimitOptions) -> dict[str, Any]:
    """Return the options that are set, under ServerSettings' names."""
    return given(
        host=listen.host,
        port=listen.port,
        keys_file=listen.keys_file,
        api_key=listen.api_key,
        without_key=listen.without_key,
        allowed_hosts=tuple(listen.allowed_host or ()),
        allowed_origins=tuple(listen.allowed_origin or ()),
        max_body=sized("--max-body", limits.max_body),
        cache_per_tenant=limits.cache_per_tenant,
        request_seconds=limits.request_seconds,
        drain_seconds=limits.drain_seconds,
        idle_unload=limits.idle_unload,
        memory_cap=sized("--memory-cap", limits.memory_cap),
        responses_folder=limits.responses_folder or cache_dir() / "responses",
        responses_bytes=sized("--responses-bytes", limits.responses_bytes),
    )


def given(**values: Any) -> dict[str, Any]:
    """Return the values that are set."""
    return {name: value for name, value in values.items() if value is not None}


def sized(name: str, text: str | None) -> int | None:
    """Return a size such as 2GB in bytes."""
    if text is None:
        return None
    with usage(name):
        return num_bytes_of(text)


keys = typer.Typer(help="Add, list and remove the keys of `tiny-llm serve --keys-file`.", no_args_is_help=True)
FilePath = Annotated[Path, typer.Option("--file", help="The file of key hashes.")]


@keys.command()
def add(
    name: str,
    file: FilePath = KEYS_FILE,
    requests_per_minute: Annotated[int | None, option("Requests that the key may send in a minute.")] = None,
    tokens_per_minute: Annotated[int | None, option("Tokens of prompts and answers in a minute.")] = None,
    concurrent: Annotated[int | None, option("Requests that may run at once.")] = None,
    weight: Annotated[float | None, option("The key's share of the engine beside other keys; 1 if not set.")] = None,
) -> None:
    """Make a key and print it. Only its hash is stored, so it can't be shown again."""
    store = _keys_module()
    limits = given(
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        concurrent=concurrent,
        weight=weight,
    )
    path = Path(os.path.expanduser(file))
    path.parent.mkdir(parents=True, exist_ok=True)
    print(store.add_key(path, name, **limits))


@keys.command("list")
def list_keys(file: FilePath = KEYS_FILE) -> None:
    """List the keys by name, with their limits."""
    store = _keys_module()
    path = Path(os.path.expanduser(file))
    for key in store.read_keys(path) if path.exists() else ():
        limits = [f"{limit} {getattr(key, limit)}" for limit in store.LIMITS if getattr(key, limit) is not None]
        if key.weight != 1:
            limits.append(f"weight {key.weight:g}")
        print(key.name, ", ".join(limits), sep="\t")


@keys.command()
def remove(name: str, file: FilePath = KEYS_FILE) -> None:
    """Remove a key. Running servers refuse it from their next request on."""
    _keys_module().remove_key(Path(os.path.expanduser(file)), name)


def _keys_module() -> Any:
    from tiny_llm.server import keys as module

    return module

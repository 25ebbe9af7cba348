"""The options that commands share, each declared once. All default to None, "not set"."""

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, cast

import typer

from tiny_llm.cli.errors import usage
from tiny_llm.cli.inputs import check_text, read_file, text_of
from tiny_llm.cli.terminal import dim, note, num_bytes_of
from tiny_llm.config import EngineConfig, SamplingParams, Structured
from tiny_llm.config.speculation import SpeculationConfig

if TYPE_CHECKING:
    from tiny_llm.course.overlay import Overlay
    from tiny_llm.engine.llm import LLM

Returned = TypeVar("Returned")


def with_options(command: Callable[..., Returned]) -> Callable[..., Returned]:
    """Let typer see each field of a dataclass parameter as an option of its own; `command` gets the dataclass.

    An option that the command declares itself replaces the field of the same name, which keeps its default.
    """
    parameters = inspect.signature(command).parameters.values()
    groups: dict[str, Any] = {p.name: p.annotation for p in parameters if is_dataclass(p.annotation)}
    flat = [p for p in parameters if p.name not in groups]
    own = {p.name for p in flat}
    for group in groups.values():
        flat += [p for p in inspect.signature(group).parameters.values() if p.name not in own]

    @functools.wraps(command)
    def run(**values: Any) -> Returned:
        made = {}
        for name, group in groups.items():
            names = [f.name for f in fields(group) if f.name not in own]
            made[name] = group(**{each: values.pop(each) for each in names})
        return command(**values, **made)

    run.__signature__ = inspect.Signature([p.replace(kind=p.KEYWORD_ONLY) for p in flat])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in flat}
    return run


def option(
    help: str,
    *names: str,
    metavar: str | None = None,
    envvar: str | None = None,
    min: float | None = None,
    max: float | None = None,
) -> Any:
    """An option whose default is not shown; a number outside of `min` to `max` is wrong usage."""
    check = None if min is None and max is None else number
    return typer.Option(
        *names, help=help, metavar=metavar, envvar=envvar, show_default=False, min=min, max=max, callback=check
    )


def given(**values: Any) -> dict[str, Any]:
    """Return the options that are set. The others keep the default that their setting has."""
    return {name: value for name, value in values.items() if value is not None}


def number(value: float | None) -> float | None:
    """Refuse `nan`, which is neither below nor above any bound."""
    if value is not None and value != value:
        raise typer.BadParameter(f"expected a number, found {value}")
    return value


ExercisesFolder = Annotated[
    str | None,
    option("Run on the course's exercises: mine for code/, or another folder.", "--code", metavar="mine|DIR"),
]
AsJson = Annotated[bool, option("Print one JSON object.", "--json")]


def borrow(code: str | None) -> "Overlay | None":
    """Let the engine, which is not imported yet, run on the learner's files if they are named."""
    if code is None:
        return None
    from tiny_llm.course.desk import install

    overlay = install(code)
    print(overlay, file=sys.stderr, flush=True)
    return overlay


SPECULATION = {  # options beside --speculate, and their names in SpeculationConfig
    "max_draft": "max_draft",
    "draft_p_min": "p_min",
    "draft_model": "model",
    "beams": "beams",
    "adaptive": "adaptive",
}
NO_MODEL = "no model named: this is the small one that ships inside; --model takes another"


@dataclass(frozen=True)
class EngineOptions:
    """Which model, and how it runs."""

    model: Annotated[
        str | None, option("A directory, GGUF file, hub name or alias (see `tiny-llm models list`).", "--model", "-m")
    ] = None
    ops: Annotated[
        Literal["fused", "plain"] | None,
        option("Fastest or readable implementation of each operation that no kernel computes."),
    ] = None
    kernels: Annotated[
        Literal["metal", "cuda", "cpu", "sim", "plain", "mlx"] | None,
        option(
            "What computes: our kernels on metal, cuda or sim (anywhere, slowly), their plain twins, our CPU kernels, "
            "or MLX alone.",
            envvar="TINY_LLM_KERNELS",
        ),
    ] = None
    activations: Annotated[
        Literal["float32", "int8"] | None,
        option(
            "On a CPU: int8 rounds the activations in products of up to 32 rows with packed weights. Faster, but texts "
            "change: of 200 greedy answers of SmolLM2-135M, 88 stayed equal. They depend on the requests beside them, "
            "too."
        ),
    ] = None
    expert_bytes: Annotated[
        str | None,
        option(
            "Of a model with experts: leave them in the files, and keep at most this much of them in memory: 4GB.",
            metavar="BYTES",
        ),
    ] = None
    dtype: Annotated[
        Literal["auto", "float32", "float16", "bfloat16"] | None, option("Number format of weights and arithmetic.")
    ] = None
    max_context: Annotated[int | None, option("Tokens a conversation may hold; the model's own limit if not set.")] = (
        None
    )
    prefill_chunk: Annotated[int | None, option("Prompt tokens per forward pass.")] = None
    cache: Annotated[
        Literal["contiguous", "rotating", "quantized"] | None,
        option("Keep every token, the first and newest ones, or all in few bits, with which texts may change."),
    ] = None
    window: Annotated[int | None, option("With a rotating cache: tokens that are seen, sinks included; 1024.")] = None
    sinks: Annotated[int | None, option("With a rotating cache: first tokens that stay in sight; 4.")] = None
    kv_bits: Annotated[int | None, option("Bits of a number, 8 or 4, in a quantized (8) or rotating cache (all).")] = (
        None
    )
    kv_group_size: Annotated[
        int | None, option("There: numbers that share a scale, 32, 64 or 128; 64 where it fits.")
    ] = None
    speculate: Annotated[
        Literal["none", "suffix", "draft", "lookahead", "medusa", "eagle"] | None,
        option(
            "Guess the next tokens and verify many at once: suffix guesses what followed the same words before, draft "
            "asks a small model, lookahead lets the model guess for itself, medusa and eagle ask trained heads."
        ),
    ] = None
    draft_model: Annotated[
        str | None,
        option("The small model, with the model's tokenizer, or the directory of the heads; pocket's own ship inside."),
    ] = None
    max_draft: Annotated[int | None, option("Guesses of a step at most; 4 to 24 if not set.")] = None
    draft_p_min: Annotated[
        float | None, option("Leave guesses out that are less likely than this to be right; 0.3 if not set.")
    ] = None
    beams: Annotated[int | None, option("Lines at each level of eagle's tree, 1 for a chain; 4 if not set.")] = None
    adaptive: Annotated[
        bool | None,
        option("Choose the number of guesses for each step by measured times; else always as many as possible."),
    ] = None
    code: ExercisesFolder = None

    def config(self) -> EngineConfig:
        own = ("model", "code", "speculate", *SPECULATION)  # not named as in EngineConfig
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in own}
        values["speculation"] = self._speculation()
        if self.code is not None:  # the exercises are the plain operations
            if self.ops == "fused":
                raise typer.BadParameter("fused operations are not the exercises; leave it out", param_hint="--ops")
            if self.activations == "int8":
                raise typer.BadParameter(
                    "products in int8 are not the exercises; leave it out", param_hint="--activations"
                )
            values["ops"] = "plain"
        if self.expert_bytes is not None:
            with usage("--expert-bytes"):
                values["expert_bytes"] = num_bytes_of(self.expert_bytes)
        with usage():
            return EngineConfig(**given(**values))

    def _speculation(self) -> SpeculationConfig | None:
        values = given(**{setting: getattr(self, name) for name, setting in SPECULATION.items()})
        if self.speculate in (None, "none") and values:
            with usage(", ".join(f"--{name.replace('_', '-')}" for name in SPECULATION)):
                raise ValueError("is for guesses: name who makes them, such as --speculate draft, or leave it out")
        with usage("--speculate"):
            return None if self.speculate is None else SpeculationConfig(self.speculate, **values)

    def install_code(self) -> bool:
        """Put the learner's files in the place of the engine's, if asked for; return whether they hold the lesson."""
        overlay = borrow(self.code)
        if overlay is None:
            return False
        if overlay.own_kernels and self.kernels not in ("metal", "cuda", "sim"):
            print(f"{', '.join(overlay.own_kernels)}: not in use; --kernels sim runs them", file=sys.stderr)
        if overlay.own_native and self.kernels != "cpu":
            print(f"{', '.join(overlay.own_native)}: not in use; --kernels cpu runs it", file=sys.stderr)
        if self.kernels == "cpu":
            overlay.compile_headers()
        return overlay.runs_lesson

    def load(self) -> "LLM":
        """Load the model that was named, or the one that ships with the package."""
        config = self.config()
        if self.model is not None and not self.model.strip():
            raise typer.BadParameter(
                "the name is empty; give a directory, a GGUF file, a hub name or an alias", param_hint="--model"
            )
        with usage("--model"):
            check_text(self.model or "", "model")
        lesson = self.install_code()
        if self.model is not None:
            note(f"loading {self.model} …")
        from tiny_llm.engine import llm

        loaded = llm.load(self.model, config=config, lesson=lesson)
        if self.model is None:
            print(dim(NO_MODEL, sys.stderr), file=sys.stderr, flush=True)
        if self.kernels is not None or self.activations is not None:
            from tiny_llm.kernels.table import describe_operations

            print(dim(describe_operations(loaded.model, config), sys.stderr), file=sys.stderr, flush=True)
        return loaded


@dataclass(frozen=True)
class KeepOptions:
    """What outlives the process."""

    prompt_cache: Annotated[
        Path | None,
        option("Keep what is computed of the conversation in a file: read if it is there, written at the end."),
    ] = None

    @contextmanager
    def kept(self, llm: "LLM") -> Iterator[None]:
        """Within it `llm` goes on from the file, and when it ends without a failure the file is as the model left it.

        Raises ValueError for a file that won't do, before anything is computed.
        """
        path = self.prompt_cache
        if path is None:
            yield
            return
        if not path.parent.is_dir():
            raise typer.BadParameter(f"{path.parent}: expected a folder, found none", param_hint="--prompt-cache")
        if path.exists():
            note(f"{llm.load_cache(path)} tokens are in {path}")
        yield
        llm.save_cache(path)


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is chosen."""

    max_tokens: Annotated[int | None, option("Tokens to write at most.")] = None
    temperature: Annotated[float | None, option("0 takes the likeliest token each time; higher is more varied.")] = None
    top_k: Annotated[int | None, option("Choose among this many likeliest tokens; 0 for all.")] = None
    top_p: Annotated[float | None, option("Choose among the likeliest tokens that make up this probability.")] = None
    min_p: Annotated[float | None, option("Leave out tokens below this share of the likeliest one's chance.")] = None
    repetition_penalty: Annotated[float | None, option("Above 1: tokens already in the text get less likely.")] = None
    presence_penalty: Annotated[float | None, option("Taken from the logit of each token already written.")] = None
    frequency_penalty: Annotated[float | None, option("The same, for each time it was written.")] = None
    logit_bias: Annotated[
        list[str] | None, option("Add a value to a token's logit; may be repeated.", metavar="ID=VALUE")
    ] = None
    seed: Annotated[int | None, option("Same seed, same text.")] = None
    thinking_budget: Annotated[
        int | None, option("Tokens of a thought at most; then the model is made to close it and to answer.")
    ] = None
    stop: Annotated[list[str] | None, option("End before this text; may be repeated.", metavar="TEXT")] = None


@dataclass(frozen=True)
class SearchOptions:
    """What only a single answer, and no conversation, can ask for."""

    n: Annotated[int | None, option("Number of independent answers.", "--n", "-n")] = None
    beam_width: Annotated[int | None, option("Above 1: search for the likeliest text instead of sampling.")] = None
    length_penalty: Annotated[float | None, option("Beam search ranks by log-probability / length ** this.")] = None
    logprobs: Annotated[int | None, option("Log-probabilities of the chosen token and of the N likeliest.")] = None
    stop_token_ids: Annotated[list[int] | None, option("End at this token; may be repeated.", metavar="ID")] = None
    ignore_eos: Annotated[bool | None, option("Go on past the end that the model wants.", "--ignore-eos")] = None
    skip_special_tokens: Annotated[
        bool | None, option("Leave special tokens out of the text (the default), or show them.")
    ] = None
    structured: Annotated[
        str | None, option("The form of the answer; @FILE reads it.", metavar="json_schema|regex|lark=TEXT")
    ] = None


@dataclass(frozen=True)
class DialogueOptions:
    """What the chat template is given."""

    system: Annotated[str | None, option("System prompt: what the model is told before the conversation.")] = None
    thinking: Annotated[
        bool | None, option("Let the model think before it answers, or not.", "--thinking/--no-thinking")
    ] = None

    def __post_init__(self) -> None:
        if self.system is not None:
            with usage("--system"):
                object.__setattr__(self, "system", text_of(self.system, "system prompt"))

    def template(self) -> dict[str, Any]:
        return {} if self.thinking is None else {"enable_thinking": self.thinking}


def settings_of(*groups: SamplingOptions | SearchOptions) -> dict[str, Any]:
    """The options that are set, under SamplingParams' names and checked by it."""
    values = {f.name: getattr(group, f.name) for group in groups for f in fields(group)}
    settings = {name: value for name, value in values.items() if value is not None and value != []}
    with usage():
        if "logit_bias" in settings:
            settings["logit_bias"] = parse_logit_bias(settings["logit_bias"])
        if "structured" in settings:
            settings["structured"] = parse_structured(settings["structured"])
        if "stop" in settings:
            settings["stop"] = [text_of(text, "stop") for text in settings["stop"]]
        for name in {"stop", "stop_token_ids"} & settings.keys():
            settings[name] = tuple(settings[name])
        SamplingParams.resolve(settings)
    return settings


def parse_structured(entry: str) -> Structured:
    """`regex=[0-9]+`, or with @FILE the file's text. Raises ValueError naming what is wrong."""
    kind, equals, text = entry.partition("=")
    if not equals:
        raise ValueError(f"structured: expected KIND=TEXT such as regex=[0-9]+, found {entry!r}")
    if text.startswith("@"):
        try:
            text = read_file(Path(text[1:]))
        except OSError as error:
            raise ValueError(f"structured: can't read {text[1:]}: {error.strerror}") from error
        except ValueError as error:
            raise ValueError(f"structured: can't read {error}") from error
    return Structured(cast(Any, kind), text_of(text, "structured"))


def parse_logit_bias(entries: list[str]) -> dict[int, float]:
    """`["13=-100"]` as `{13: -100.0}`. Raises ValueError naming the entry."""
    biases = {}
    for entry in entries:
        token, _, bias = entry.partition("=")
        try:
            biases[int(token)] = float(bias)
        except ValueError:
            raise ValueError(f"logit_bias: expected ID=VALUE such as 13=-100, found {entry!r}") from None
    return biases

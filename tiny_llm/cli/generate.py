"""`tiny-llm generate`: one prompt, one answer, or several of them."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from tiny_llm.cli.errors import usage
from tiny_llm.cli.inputs import read_file, read_stream, text_of
from tiny_llm.cli.options import (
    DialogueOptions,
    EngineOptions,
    KeepOptions,
    SamplingOptions,
    SearchOptions,
    option,
    settings_of,
    with_options,
)
from tiny_llm.cli.session import AnswerView
from tiny_llm.cli.terminal import note, print_json, printable
from tiny_llm.decode.reply import Reply

if TYPE_CHECKING:
    from tiny_llm.engine.llm import LLM, Completion, Stats
    from tiny_llm.engine.prompt import Prompt


@with_options
def generate(
    engine: EngineOptions,
    sampling: SamplingOptions,
    search: SearchOptions,
    dialogue: DialogueOptions,
    keep: KeepOptions,
    prompt: Annotated[str | None, typer.Argument(help="The prompt; - or nothing reads it from stdin.")] = None,
    file: Annotated[Path | None, option("Read the prompt from a file.", "--file", "-f")] = None,
    raw: Annotated[
        bool | None,
        option(
            "Continue the text, or answer it as a message (the default if there is a chat template).", "--raw/--chat"
        ),
    ] = None,
    stream: Annotated[bool | None, option("Show text as it comes (the default), or at the end.")] = None,
    as_json: Annotated[bool, option("Print one JSON object: model, prompt, completions, stats.", "--json")] = False,
    stats: Annotated[
        bool | None, option("Say on stderr how fast it was and what was guessed; the default at a terminal.")
    ] = None,
) -> None:
    """Answer one prompt, or continue it with --raw."""
    settings = settings_of(sampling, search)
    several = settings.get("n", 1) > 1 or settings.get("beam_width", 1) > 1
    if stream and (several or as_json):
        raise typer.BadParameter(
            "shows one answer as it comes; leave out --json, --n and --beam-width", param_hint="--stream"
        )
    if raw and (dialogue.system is not None or dialogue.thinking is not None):
        raise typer.BadParameter("a raw prompt has no chat template for --system and --thinking", param_hint="--raw")
    text = read_prompt(prompt, file)
    llm = engine.load()
    if raw is None and not llm.tokenizer.templates:
        note("the model has no chat template: it continues the text")
        raw = True
    request = text if raw else messages(text, dialogue.system)
    whole, template = stream is False or several or as_json, dialogue.template()
    with keep.kept(llm):
        if not whole:
            deltas = llm.stream(request, template=template, **settings)
            show_text(llm, request, template, (delta.text for delta in deltas))
            show_stats(llm, llm.last_stats, stats)
            return
        answer = llm.generate(request, template=template, **settings)
    completions = answer if isinstance(answer, list) else [answer]
    if as_json:
        from tiny_llm.views.answers import answer_data

        print_json(answer_data(llm, completions))
    else:
        show_whole(llm, request, template, completions)
    if stats or not as_json:
        show_stats(llm, completions[0].stats, stats)


def read_prompt(argument: str | None, file: Path | None) -> str:
    """The prompt from the one place that was named. Raises BadParameter for none, two, or an empty one."""
    if argument is not None and file is not None:
        raise typer.BadParameter("give the prompt or --file, not both", param_hint="PROMPT")
    if argument is None and file is None and sys.stdin.isatty():
        raise typer.BadParameter("give it as an argument, with --file or on stdin", param_hint="PROMPT")
    with usage("PROMPT" if file is None else "--file"):
        if file is not None:
            text = read_file(file).removesuffix("\n")
        elif argument in (None, "-"):
            text = read_stream(sys.stdin, "stdin").removesuffix("\n")
        else:
            text = text_of(str(argument), "prompt")
    if not text.strip():
        raise typer.BadParameter("the prompt is empty; write what the model should answer", param_hint="PROMPT")
    return text


def messages(text: str, system: str | None) -> list[dict[str, str]]:
    first = [{"role": "system", "content": system}] if system else []
    return [*first, {"role": "user", "content": text}]


def show_stats(llm: "LLM", stats: "Stats | None", wanted: bool | None) -> None:
    """Write an answer's figures to stderr: if `wanted`, and with None where stderr is a terminal."""
    if stats is None or wanted is False:
        return
    from tiny_llm.views.answers import counts_in_words, timing

    for line in [timing(stats), *(f"{name}: {words}" for name, words in counts_in_words(llm))]:
        if wanted:
            print(line, file=sys.stderr)
        else:
            note(line)


def show_text(llm: "LLM", request: "Prompt", template: dict[str, Any], texts: Iterable[str]) -> None:
    """Write an answer's pieces as they come; thinking goes where chat puts it. A raw text is continued as it is."""
    if isinstance(request, str):
        for text in texts:
            print(printable(text, sys.stdout), end="", flush=True)
        print()
        return
    view = AnswerView()
    reply = Reply(llm.tokenizer.render(cast(Any, request), **template).opens_thought)
    for text in texts:
        view.show(reply.feed(text))
    view.show(reply.finish())
    view.finish()


def show_whole(llm: "LLM", request: "Prompt", template: dict[str, Any], completions: Sequence["Completion"]) -> None:
    for place, completion in enumerate(completions, 1):
        if len(completions) > 1:
            print(f"--- {place} of {len(completions)} ({completion.finish_reason})", flush=True)
        show_text(llm, request, template, [completion.text])

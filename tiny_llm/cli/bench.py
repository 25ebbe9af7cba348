"""`tiny-llm bench`: how fast a model is on this machine."""

import random
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tiny_llm.cli.options import AsJson, EngineOptions, with_options
from tiny_llm.cli.terminal import note, print_json, table

if TYPE_CHECKING:
    from tiny_llm.engine.llm import LLM, Stats


@with_options
def bench(
    engine: EngineOptions,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Length of the prompt.")] = 512,
    max_tokens: Annotated[int, typer.Option(min=2, help="Tokens to write.")] = 128,
    runs: Annotated[int, typer.Option(min=1, max=10_000, help="Measured runs, after one that warms up.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Measure prefill, decoding, time to first token and memory of a model."""
    llm = engine.load()
    from tiny_llm.views.speed import at_most, summarize

    if prompt_tokens + max_tokens > llm.max_context:
        raise typer.BadParameter(
            f"prompt-tokens + max-tokens: expected at most the context of {llm.max_context}, "
            f"found {prompt_tokens} + {max_tokens}"
        )
    stats = [run(llm, prompt_tokens, max_tokens, seed) for seed in range(runs + 1)][1:]
    figures = [*summarize(stats), at_most(llm, prompt_tokens + max_tokens)]
    if as_json:
        about = {"model": llm.name, "prompt_tokens": prompt_tokens, "max_tokens": max_tokens, "runs": runs}
        print_json(about | {"rows": [vars(figure) for figure in figures]})
        return
    print(f"{llm.name}: prompt {prompt_tokens}, {max_tokens} written, median and range of {runs} runs")
    table([figure.row() for figure in figures])


def run(llm: "LLM", prompt_tokens: int, max_tokens: int, seed: int) -> "Stats":
    """Run one request with a prompt of its own, so that nothing comes from the cache of the last request."""
    draw = random.Random(seed)
    prompt = [(seed + 1) % llm.config.vocab_size]
    prompt += [draw.randrange(llm.config.vocab_size) for _ in range(prompt_tokens - 1)]
    settings: dict[str, Any] = {"max_tokens": max_tokens, "temperature": 0.0, "ignore_eos": True}
    for _ in llm.stream(prompt, **settings):
        pass
    assert llm.last_stats is not None
    note(f"run {seed}" if seed else "warm-up")
    return llm.last_stats

"""`tiny-llm viz schedule|pages|radix|speculation`: pictures of the serving engine from its event log."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tiny_llm.cli.errors import usage
from tiny_llm.cli.options import ExercisesFolder, borrow, option, with_options
from tiny_llm.cli.viz import DRAWN, Model, Out, viz, write

if TYPE_CHECKING:
    from tiny_llm.engine.events import Event

__all__ = ["viz"]

First = Annotated[int, option("The first step to show.")]
Last = Annotated[int | None, option("The last step to show; the log's last if not given.")]


@dataclass(frozen=True)
class LogOptions:
    """The event log to draw: a file, or that of a small simulated load."""

    log: Annotated[Path | None, option("An event log (JSON lines); a small simulated load if not given.")] = None
    blocks: Annotated[int, option("Without --log: blocks in the pool.", max=DRAWN)] = 22
    budget: Annotated[int, option("Without --log: tokens a step may hold.", max=10_000)] = 8
    code: ExercisesFolder = None

    def events(self) -> "list[Event]":
        """Read the log or simulate the load, on the learner's files if they are named."""
        borrow(self.code)
        from tiny_llm.views import replay

        with usage("--log" if self.log else "--blocks and --budget"):
            return replay.load(self.log, self.blocks, self.budget)


@viz.command()
@with_options
def schedule(
    load: LogOptions,
    first: First = 1,
    last: Last = None,
    trace: Annotated[Path | None, option("Write a Chrome trace, too (open it in ui.perfetto.dev).")] = None,
    out: Out = None,
) -> None:
    """Who computes what in each step: decodes and chunks of prompts by slot."""
    events = load.events()
    from tiny_llm.views import schedule
    from tiny_llm.views.trace import chrome_trace

    with usage("--first and --last"):
        drawing = schedule.draw("schedule", events, first, last)
    if trace:
        trace.write_text(chrome_trace(events), encoding="utf-8")
    write("schedule", "Slots, step by step", [drawing], out)


@viz.command()
@with_options
def pages(
    load: LogOptions,
    first: First = 1,
    last: Last = None,
    out: Out = None,
) -> None:
    """The pool's blocks by request and the block tables, step by step (arrow keys in the page)."""
    events = load.events()
    from tiny_llm.views import pages

    with usage("--first and --last"):
        drawings = pages.frames(events, first, last)
    write("pages", "The pool, step by step", drawings, out, drawings[-1].alt, stepper=True)


@viz.command()
@with_options
def radix(
    load: LogOptions,
    step: Annotated[int | None, option("The step to show; the log's last if not given.")] = None,
    out: Out = None,
) -> None:
    """The prefix tree, who reads it, and why prefixes were not found."""
    events = load.events()
    from tiny_llm.views import radix

    with usage("--step"):
        drawing = radix.draw("radix", events, step)
    write("radix", "The prefix tree", [drawing], out)


@viz.command()
def speculation(
    prompt: Annotated[str, option("The question that is answered with drafts.")] = "Count from 3 to 9.",
    model: Model = None,
    drafter: Annotated[
        Literal["suffix", "draft", "lookahead", "medusa", "eagle"], option("Who guesses, see chat's --speculate.")
    ] = "draft",
    draft_model: Annotated[str | None, option("The draft model, or the directory of the heads.")] = None,
    max_draft: Annotated[int, option("Guesses of a step.", min=1, max=63)] = 6,
    max_tokens: Annotated[int, option("Tokens of the answer at most.", min=1, max=DRAWN)] = 48,
    out: Out = None,
) -> None:
    """The tree of guesses of each step, and which of them were right (arrow keys in the page)."""
    from tiny_llm.config import EngineConfig
    from tiny_llm.config.speculation import SpeculationConfig
    from tiny_llm.engine.events import Event
    from tiny_llm.engine.serving import Engine
    from tiny_llm.views import speculation

    events: list[Event] = []
    with usage("--drafter and --draft-model"):
        wanted = SpeculationConfig(drafter, max_draft, model=draft_model, p_min=0.0, adaptive=False)
    with Engine(model, config=EngineConfig(speculation=wanted), emit=events.append) as engine:
        engine.generate([[{"role": "user", "content": prompt}]], temperature=0.0, max_tokens=max_tokens)
        word = engine.llm.tokenizer.token
    with usage("--drafter and --prompt"):
        drawings = speculation.frames(events, word)
    write("speculation", "Drafts, step by step", drawings, out, speculation.describe(events, word), stepper=True)

"""`tiny-llm doctor`: what this machine offers, and what to do where something is missing."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from tiny_llm.cli.options import option
from tiny_llm.cli.terminal import print_json, table

if TYPE_CHECKING:
    from tiny_llm.course.doctor import CourseFact
    from tiny_llm.doctor import Fact


def doctor(as_json: Annotated[bool, option("Print one JSON list of facts.", "--json")] = False) -> None:
    """Check this machine and say what to do where something is missing.

    The exit code is 1 if something keeps the engine from running.
    """
    from tiny_llm.doctor import collect

    facts = collect()
    if as_json:
        print_json([vars(fact) for fact in facts])
    else:
        show_facts(facts)
    exit_on_failure(facts)


def show_facts(facts: "Sequence[Fact | CourseFact]") -> None:
    """Print a line for each fact, with its remedy."""
    table([(fact.state, fact.name, "; ".join(filter(None, (fact.value, fact.remedy)))) for fact in facts])


def exit_on_failure(facts: "Sequence[Fact | CourseFact]") -> None:
    """End with exit code 1 if a fact is a failure."""
    if any(fact.state == "fail" for fact in facts):
        raise typer.Exit(1)

"""`tiny-llm doctor`: what this machine offers, and what to do where something is missing."""

from typing import Annotated

import typer

from tiny_llm.cli.options import option
from tiny_llm.cli.terminal import print_json, table


def doctor(as_json: Annotated[bool, option("Print one JSON list of facts.", "--json")] = False) -> None:
    """Check this machine and say what to do where something is missing.

    The exit code is 1 if something keeps the engine from running.
    """
    from tiny_llm.doctor import collect

    facts = collect()
    if as_json:
        print_json([vars(fact) for fact in facts])
    else:
        table([(fact.state, fact.name, fact.value + (f"; {fact.remedy}" if fact.remedy else "")) for fact in facts])
    if any(fact.state == "fail" for fact in facts):
        raise typer.Exit(1)

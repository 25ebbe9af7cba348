"""`tiny-llm course`: the exercises, from the next task to a passed one."""

import os
from typing import TYPE_CHECKING, Annotated

import typer

from tiny_llm.cli.doctor import exit_on_failure, show_facts
from tiny_llm.cli.options import option

if TYPE_CHECKING:
    from tiny_llm.course.desk import Desk
    from tiny_llm.course.doctor import CourseFact
    from tiny_llm.doctor import Fact

app = typer.Typer(help="Learn by writing the engine's parts: tasks, checks, hints.", no_args_is_help=True)
TaskId = Annotated[str | None, typer.Argument(metavar="[TASK]", help="Such as w1.1.2; the next open one if not given.")]
LearnerFolder = Annotated[str, option("Folder with your files, if it is not code/.", "--code", metavar="DIR")]


def desk(code: str = "mine") -> "Desk":
    from tiny_llm.course.desk import Desk

    return Desk.open(code)


@app.callback()
def common(
    no_color: Annotated[bool, option("Plain text, as with NO_COLOR in the environment.", "--no-color")] = False,
) -> None:
    if no_color:
        os.environ["NO_COLOR"] = "1"


@app.command()
def doctor() -> None:
    """What is missing, with the command that mends it; the exit code is 1 if something the course needs is."""
    from tiny_llm.course.doctor import collect
    from tiny_llm.doctor import collect as machine

    facts: list[Fact | CourseFact] = [*collect(), *machine()]
    show_facts(facts)
    exit_on_failure(facts)


@app.command()
def status(code: LearnerFolder = "mine") -> None:
    """How far you are, and about how long the rest takes."""
    desk(code).status()


@app.command(name="next")
def next_task(code: LearnerFolder = "mine") -> None:
    """The next open task: file and line, chapter, and what it builds on."""
    desk(code).next()


@app.command()
def test(
    task: TaskId = None,
    everything: Annotated[bool, option("All tasks, not only up to the first that fails.", "--all")] = False,
    code: LearnerFolder = "mine",
) -> None:
    """Test your files: one task, or all in order up to the first that fails.

    The exit code is 1 if a test failed, or if the named task is not done.
    """
    if not desk(code).test(task, everything):
        raise typer.Exit(1)


@app.command()
def watch(code: LearnerFolder = "mine") -> None:
    """Test again whenever a file is saved. Keys: h hint, d diff, l list, n next, q quit."""
    from tiny_llm.course.watch import watch as run

    run(desk(code))


@app.command()
def hint(
    task: TaskId = None,
    level: Annotated[int | None, option("1 a question, 2 the approach, 3 pseudo-code; one more each time.")] = None,
) -> None:
    """A hint, one level further each time: a question, the approach, pseudo-code."""
    desk().hint(task, level)


@app.command()
def diff(
    task: TaskId = None,
    give_up: Annotated[bool, option("Show the reference although the task is not passed.", "--give-up")] = False,
    code: LearnerFolder = "mine",
) -> None:
    """Your solution beside the reference's, once it passed."""
    desk(code).diff(task, give_up)


@app.command()
def skip(task: TaskId = None) -> None:
    """Go on without solving a task: the reference's solution runs in its place. `test` takes it up again."""
    desk().skip(task)


@app.command()
def reset(
    what: Annotated[str, typer.Argument(metavar="TASK|FILE", help="A task such as w1.1.2, or a file: attention.py.")],
) -> None:
    """Begin a task or a whole file again; what you had is copied to code/saved first."""
    desk().reset(what)


@app.command()
def quiz(
    chapter: Annotated[str, typer.Argument(help="Such as 1.3.")],
    answers: Annotated[bool, option("Print questions and answers without asking.", "--answers")] = False,
) -> None:
    """The questions of a chapter: predict, debug, estimate."""
    from tiny_llm.course.quiz import run

    run(chapter, answers)


@app.command()
def stubs(
    check: Annotated[bool, option("Only say which files are stale; exit code 1 if any is.", "--check")] = False,
) -> None:
    """For maintainers: make code/ from the engine's sources, or prove that it is fresh."""
    if not desk().stubs(check):
        raise typer.Exit(1)

"""Whatever stands behind an option or in an argument's place: it is taken, or refused in one line that names it.

The options and arguments are the application's own list, so a new one is tried as well.
"""

import shutil
from collections.abc import Iterator
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, NamedTuple

import pytest
import typer

from tests.apps.agent.scripted import ScriptedChat
from tests.cli.conftest import Result, Run
from tests.cli.fake import FakeLLM
from tests.support import make_model
from tiny_llm import LLM, load
from tiny_llm.apps.rag import comparison
from tiny_llm.cli import app
from tiny_llm.course import desk
from tiny_llm.views import record, roofline
from tiny_llm.views.speed import Figure

ROOT = Path(__file__).parents[2]
HUGE = str(10**400)
ODD = {
    "empty": "",
    "spaces": "   ",
    "negative": "-1",
    "zero": "0",
    "a fraction": "1.5",
    "huge": HUGE,
    "too many digits": "9" * 5000,
    "huge with an exponent": "1e400",
    "no number": "nan",
    "infinite": "inf",
    "a word": "soon",
    "other digits": "٣",
    "very long": "x" * 5000,
    "no text": "\udcff",
    "half of a pair": "\ud800",
    "a line break": "1\n2",
    "a NUL": "a\0b",
    "an equals sign": "=",
    "a folder": "/",
    "nobody's home": "~nobody-of-that-name/x",
}
REQUIRED = {  # what the arguments and options that a command can't do without are otherwise
    "model": "{model}",
    "--out": "{folder}/out",
    "file": "rms_norm",
    "files": "rms_norm",
    "what": "w1.1.1",
    "chapter": "1.3",
    "prompt": "hi",
    "question": "hi",
    "name": "somebody",
    "paths": "{folder}/book",
    "task": "hi",
}
NEEDED = {  # parameters without which a command stops, though some option or stdin can take their place
    ("generate", "prompt"),
    ("kernels", "check", "files"),
    ("agent", "run", "task"),
}


RUN, MEASURE, QUESTIONS_ON = record.run, roofline.measure, comparison.questions_on


def nothing(*_: object, **__: object) -> list[Any]:
    return []


def figures_of_nothing(*_: object) -> tuple[dict[str, float], dict[str, Any]]:
    return {}, {}


@lru_cache
def short_run(model: str | None, prompt: str, stop: bool = True) -> Any:
    """A picture's run of the model; on the beginning of the prompt alone, for the sake of time."""
    return RUN(model, prompt, stop)


METAVARS = {"files": ["FILE"], "kernels": ["KERNEL"], "task": ["TASK"], "what": ["TASK|FILE"]}


class NoOverlay(str):
    """An overlay that is not put before the engine of the tests, and says nothing."""

    own_kernels = ()
    own_native = ()
    runs_lesson = False


def folder_alone(name: str) -> NoOverlay:
    desk.code_folder(name)
    return NoOverlay()


class AnsweringChat(ScriptedChat):
    """A model of an agent that answers at once. It calls no tool, so that no file is changed."""

    def close(self) -> None:
        pass


WORK = {  # done elsewhere: what takes long, asks the network or changes files
    ("tiny_llm.cli.bench", "run"): nothing,
    ("tiny_llm.views.speed", "summarize"): nothing,
    ("tiny_llm.views.speed", "at_most"): lambda *_: Figure("decode", 1, 1, 1, "tokens/s"),
    ("tiny_llm.cli.quantize", "perplexity"): lambda *_: 2.0,
    ("tiny_llm.views.record", "run"): lambda model, prompt, stop=True: short_run(model, prompt[:8], stop),
    ("tiny_llm.views.record", "record_reference"): lambda *_: short_run(None, "hi").notes,
    ("tiny_llm.views.roofline", "measure"): lambda names: MEASURE(names or ["axpby"]),
    ("tiny_llm.course.desk", "install"): folder_alone,
    ("tiny_llm.course.watch", "watch"): nothing,
    ("tiny_llm.apps.rag.comparison", "questions_on"): lambda name: QUESTIONS_ON(name)[:1],
    ("tiny_llm.apps.rag.comparison", "book_pages"): lambda _: [],
    ("tiny_llm.apps.agent.chat", "LLMChat"): lambda *_: AnsweringChat("Done."),
    ("tiny_llm.cli.serve", "load_and_import"): lambda _: nothing,
    ("tiny_llm.server.run", "run"): nothing,
    ("tiny_llm.pocket.train", "train"): nothing,
    ("tiny_llm.pocket.evaluate", "evaluate"): figures_of_nothing,
}


class OddLLM(FakeLLM):
    """It also keeps its cache in a file."""

    def load_cache(self, path: Path) -> int:
        return len(path.read_bytes())

    def save_cache(self, path: Path) -> None:
        path.write_bytes(b"kept")


class Place(NamedTuple):
    """Where a value can stand: a command's path and one of its parameters."""

    path: tuple[str, ...]
    name: str  # --max-tokens, or the name of an argument
    required: tuple[str, ...]  # the names of the other parameters that must be given

    @property
    def is_option(self) -> bool:
        return self.name.startswith("-")


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if hasattr(command, "commands"):
        for name, child in command.commands.items():
            yield from commands(child, (*path, name))
    else:
        yield path, command


def name_of(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return str(parameter.name)
    return str(max(parameter.opts, key=len))


def places() -> Iterator[Place]:
    for path, command in commands(typer.main.get_command(app)):
        taking = [each for each in command.params if not getattr(each, "is_flag", False) and each.name != "help"]
        needed = [each for each in taking if each.required or (*path, name_of(each)) in NEEDED]
        for parameter in taking:
            yield Place(path, name_of(parameter), tuple(name_of(each) for each in needed if each is not parameter))


PLACES = list(places())


def test_the_list_is_the_applications() -> None:
    found = {(" ".join(place.path), place.name) for place in PLACES}
    assert {("generate", "--max-tokens"), ("chat", "--system"), ("kernels check", "files")} <= found
    assert {("viz mask", "--keys"), ("pocket train", "--steps"), ("quantize", "model")} <= found
    assert len(found) > 150


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place to work in that looks like a checkout, with a model."""
    made = tmp_path_factory.mktemp("odd")
    shutil.copytree(ROOT / "code", made / "code")
    (made / "tests" / "week1").mkdir(parents=True)
    (made / "book").mkdir()
    shutil.copy(ROOT / "book" / "quizzes.toml", made / "book")
    make_model(made / "model")
    return made


@pytest.fixture
def in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder, with an empty one in it as the current one."""
    monkeypatch.chdir(mkdtemp(dir=folder))
    monkeypatch.setenv("HOME", str(folder))  # the file of keys lies there
    for (module, name), stand_in in WORK.items():  # by import_module, since the package has functions of these names
        monkeypatch.setattr(import_module(module), name, stand_in)
    monkeypatch.setattr(desk.Desk, "test", lambda *_: True)
    return folder


@lru_cache
def small_model() -> LLM:
    """A real one: retrieval counts tokens and makes vectors."""
    return load()


def line_of(place: Place, value: str, folder: Path) -> list[str]:
    words = list(place.path)
    if place.path[0] in ("rag", "agent") and value == ODD["a folder"]:
        value = str(folder)  # not all files of the machine
    for name in place.required:
        given = REQUIRED[name].format(folder=folder, model=folder / "model")
        words += [name, given] if name.startswith("-") else [given]
    if place.is_option:
        return [*words, f"{place.name}={value}"] if place.name.startswith("--") else [*words, place.name, value]
    return [*words, "--", value]


def complaint(result: Result, place: Place) -> str:
    """What is wrong with the way in which a value was taken or refused; empty if nothing is."""
    if "unexpected" in result.err or "Traceback" in result.err:
        return "an internal error"
    told = result.err.lstrip("\n")
    if result.code == 0 or (result.code == 1 and not told):  # a verdict, as of two runs that differ
        return ""
    if result.code not in (1, 2):
        return f"exit code {result.code}"
    if result.out:
        return "half an output"
    if told.count("\n") != 1:
        return "not one line"
    beginning = "error: " if result.code == 1 else "tiny-llm " + " ".join(place.path)
    if not told.startswith(beginning):
        return f"does not begin with {beginning!r}"
    if result.code == 2 and not any(name in result.err for name in names_of(place)):
        return "does not name the option"
    return ""


def names_of(place: Place) -> list[str]:
    """How an error may call an option or argument."""
    name = place.name.lstrip("-")
    spelled = [name, name.replace("-", "_"), name.replace("-", " "), name.upper(), *METAVARS.get(name, ())]
    return [place.name, *place.required, *spelled]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: " ".join([*place.path, place.name]))
def test_odd_values_are_taken_or_refused_in_one_line(run: Run, in_folder: Path, place: Place) -> None:
    """A third of the values in each place; every command, and every kind of option, meets all of them."""
    found = {}
    for name, value in list(ODD.items())[PLACES.index(place) % 3 :: 3]:
        shutil.rmtree(in_folder / "out", ignore_errors=True)
        llm = small_model() if place.path[0] == "rag" else OddLLM("yes")
        result = run(*line_of(place, value, in_folder), llm=llm)
        if wrong := complaint(result, place):
            found[name] = f"{wrong}: {result.code} {result.out[:80]!r} {result.err[:300]!r}"
    assert found == {}

"""What goes wrong, in one line; and where the traceback goes when it is asked for."""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from tiny_llm.cli.terminal import escaped

MEMORY_REMEDY = "choose a smaller or a quantized model, a smaller --max-context, or close other programs"


def debugging() -> bool:
    """Whether errors show their traceback: `--debug`, or TINY_LLM_DEBUG in the environment."""
    return os.environ.get("TINY_LLM_DEBUG", "") not in ("", "0")


def one_line(error: BaseException) -> str:
    """What a user reads of `error`: value and remedy, without line breaks and what else a terminal would obey."""
    return escaped(_words(error))


def _words(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "allocate" in text):
        return f"not enough memory{': ' if text else ''}{text}; {MEMORY_REMEDY}"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, UnicodeError):
        return f"expected UTF-8 text: {text}"
    if isinstance(error, ValueError | OSError) or type(error) is ArithmeticError:  # logits that are no numbers
        return text or type(error).__name__
    return f"unexpected {type(error).__name__}: {text} (--debug shows where)"


def report(error: BaseException, prefix: str = "error") -> None:
    """Write `error` to stderr: one line, or the whole traceback when debugging."""
    if debugging():
        import traceback

        traceback.print_exception(type(error), error, error.__traceback__)
    else:
        print(f"{prefix}: {one_line(error)}", file=sys.stderr)


@contextmanager
def short_warnings() -> Iterator[None]:
    """Within it a Python warning, such as that of an unknown key in a model's files, is one line on stderr."""
    before = warnings.showwarning
    warnings.showwarning = _show_warning
    try:
        yield
    finally:
        warnings.showwarning = before


def _show_warning(message: Warning | str, *place: object, **options: object) -> None:
    print(f"warning: {escaped(' '.join(str(message).split()))}", file=sys.stderr)


@contextmanager
def usage(option: str | None = None) -> Iterator[None]:
    """Within it a ValueError is the fault of the command line, of `option` if that is given: exit code 2."""
    try:
        yield
    except OSError:  # some of them are ValueErrors as well
        raise
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error

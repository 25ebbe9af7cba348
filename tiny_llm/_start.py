"""What the program needs before its other modules are imported: Ctrl-C ends it without a traceback.

A program that imports tiny_llm keeps its own handling of Ctrl-C.
"""

import os
import sys
from itertools import pairwise
from types import FrameType, TracebackType

INTERRUPTED = 130  # exit code, as shells have it: 128 + SIGINT


def is_program() -> bool:
    """Whether Python was started to run `tiny-llm` or `python -m tiny_llm`."""
    name = sys.argv[0] if getattr(sys, "argv", None) else ""
    if name != "-m":
        return os.path.basename(name) == "tiny-llm"
    words = sys.orig_argv
    return "-mtiny_llm" in words or ("-m", "tiny_llm") in pairwise(words)


def end_quietly() -> None:
    """From now on Ctrl-C ends the process at once with exit code 130. Where Ctrl-C is ignored, it stays so."""
    sys.excepthook = _hook
    import signal  # after the hook, because it takes milliseconds

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _quit)


def _hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        os._exit(INTERRUPTED)
    sys.__excepthook__(kind, error, trace)


def _quit(number: int, frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)

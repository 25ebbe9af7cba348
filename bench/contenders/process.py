"""What each contender's process does: read a job from stdin as JSON, run it, print its result as JSON.

This file and `llama_cpp_peer.py` run in a Python without tiny_llm and MLX, so they need only the standard library and
NumPy.
"""

import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

Job = dict[str, Any]
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # what proc(5) wants written into clear_refs


def main(jobs: Mapping[str, Callable[[Job], Job]]) -> None:
    """Run the job on stdin and print its result and the peak memory, in MB above the size after the imports."""
    job = json.load(sys.stdin)
    after_imports = start_of_memory()
    result = jobs[job["job"]](job)
    result["memory"] = peak_memory() - after_imports
    print(json.dumps(result))


def start_of_memory() -> float:
    """Return the resident memory in MB, and forget the peak so far where the system can do that."""
    if not STATUS.exists():
        return peak_memory()
    CLEAR_REFS.write_text(RESET_PEAK)
    return resident("VmRSS")


def peak_memory() -> float:
    """Return the peak of the resident memory in MB."""
    if STATUS.exists():
        return resident("VmHWM")
    import resource  # macOS, where the peak is in bytes

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def resident(name: str) -> float:
    found = re.search(rf"{name}:\s+(\d+) kB", STATUS.read_text())
    assert found is not None, f"{STATUS} has no line {name}"
    return int(found[1]) * 1024 / 1e6


def timed(tokens: Iterable[int], prompt_length: int) -> Job:
    """Read tokens as they are made. Returns them, with prefill and decode in tokens a second."""
    begin = time.perf_counter()
    first = begin
    read: list[int] = []
    for token in tokens:
        read.append(int(token))
        if len(read) == 1:
            first = time.perf_counter()
    end = time.perf_counter()
    return {"tokens": read, "prefill": prompt_length / (first - begin), "decode": (len(read) - 1) / (end - first)}


def total_speed(generate: Callable[[], list[list[int]]]) -> Job:
    """Return the tokens of many answers, and how many were made a second, prompts included in the time."""
    begin = time.perf_counter()
    answers = generate()
    seconds = time.perf_counter() - begin
    return {"tokens": answers, "speed": sum(map(len, answers)) / seconds}

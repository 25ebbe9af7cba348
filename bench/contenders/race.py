"""Contenders, each a fresh process a round, in turns."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bench.common import Row, paired

HERE = Path(__file__).parent
OURS, MLX_LM, LLAMA_CPP = "ours.py", "mlx_lm_peer.py", "llama_cpp_peer.py"
Result = dict[str, Any]


@dataclass(frozen=True)
class Contender:
    """An engine with its settings; `script` runs its jobs in `python`. A slow one runs in its first `rounds` only."""

    name: str
    script: str
    model: Path
    threads: int
    python: str = sys.executable
    settings: Mapping[str, Any] = field(default_factory=dict)
    paged: bool = False
    rounds: int | None = None

    def run(self, job: Mapping[str, Any]) -> Result:
        """Run a job in a fresh process. Raises RuntimeError with the last line of what the process complained of."""
        own = {"model": str(self.model), "threads": self.threads, "settings": self.settings, "paged": self.paged}
        command = [self.python, str(HERE / self.script)]
        done = subprocess.run(
            command, input=json.dumps(own | job), capture_output=True, text=True, env=environment(self.threads)
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise RuntimeError(lines[-1])
        return json.loads(done.stdout.splitlines()[-1])


def environment(threads: int) -> dict[str, str]:
    """The environment of a process that computes with so many threads."""
    return os.environ | {"OPENBLAS_NUM_THREADS": str(threads)}


class Race:
    """Runs jobs in turns and keeps a line for each contender that had to be left out."""

    def __init__(self, rounds: int):
        self.rounds = rounds
        self.left_out: dict[str, str] = {}

    def run(
        self, contenders: Iterable[Contender], job: Mapping[str, Any], rounds: int | None = None
    ) -> dict[str, list[Result]]:
        """Return each contender's results, one a round. The order alternates from round to round.

        `rounds`: None for all of the race's.
        """
        running = [contender for contender in contenders if contender.name not in self.left_out]
        results: dict[str, list[Result]] = {contender.name: [] for contender in running}
        for i in range(rounds or self.rounds):
            for contender in list(running)[:: -1 if i % 2 else 1]:
                if contender.rounds is not None and i >= contender.rounds:
                    continue
                result = self.attempt(contender.name, job["job"], partial(contender.run, job))
                if result is None:
                    running.remove(contender)
                    del results[contender.name]
                else:
                    results[contender.name].append(result)
        return results

    def attempt(self, name: str, what: str, call: Callable[[], Result]) -> Result | None:
        """Return what `call` gives and say on stderr how long it took; None, with the contender left out, if it fails.

        It fails by raising RuntimeError.
        """
        begin = time.perf_counter()
        try:
            result = call()
        except RuntimeError as error:
            self.leave_out(name, str(error))
            return None
        print(f"{what}, {name}: {time.perf_counter() - begin:.1f} s", file=sys.stderr)
        return result

    def leave_out(self, name: str, reason: str) -> None:
        self.left_out[name] = reason
        print(f"{name} is left out: {reason}", file=sys.stderr)


@dataclass(frozen=True)
class Pair:
    """A row to make of two contenders' results: `figure` of ours beside the peer's."""

    case: str
    figure: str
    ours: str
    peer: str
    unit: str = "tok/s"
    target: str | None = None

    def row(self, results: Mapping[str, Sequence[Result]]) -> list[Row]:
        """Return the row, or nothing where a contender was left out."""
        if self.ours not in results or self.peer not in results:
            return []
        rounds = min(len(results[self.ours]), len(results[self.peer]))
        ours, peer = ([each[self.figure] for each in results[name][:rounds]] for name in (self.ours, self.peer))
        if rounds == 1:
            return [Row(self.case, self.unit, ours[0], peer[0], ours[0] / peer[0], None, self.target)]
        return [paired(self.case, self.unit, ours, peer, self.target)]


def rows_of(pairs: Iterable[Pair], results: Mapping[str, Sequence[Result]]) -> list[Row]:
    return [row for pair in pairs for row in pair.row(results)]


def first_output(command: Sequence[str], threads: int) -> Result:
    """Return the seconds from the start of a process to the first byte that it writes to stdout.

    Raises RuntimeError with the last line of what the process complained of.
    """
    begin = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(threads), bufsize=0
    )
    byte = process.stdout.read(1)
    seconds = time.perf_counter() - begin
    _, complaint = process.communicate()
    if not byte.strip() or process.returncode:
        lines = complaint.decode().strip().splitlines() or ["it wrote nothing"]
        raise RuntimeError(lines[-1])
    return {"seconds": seconds}

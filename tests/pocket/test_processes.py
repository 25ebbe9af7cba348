"""Processes that share a step's batches come to the weights of one process alone, and one of them writes."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mlx.core as mx

from tests.pocket.test_trainer import TINY
from tiny_llm.pocket.train import train

SHARED = replace(TINY, batches=2)
ONE_OF_TWO = """
import sys
from pathlib import Path
from tests.pocket.test_processes import SHARED
from tiny_llm.pocket.train import train
train(SHARED, Path(sys.argv[1]), steps=4)
"""


def free_addresses(number: int) -> list[list[str]]:
    """An address of its own for each process, as MLX's ring wants them."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    found = [[f"127.0.0.1:{each.getsockname()[1]}"] for each in sockets]
    for each in sockets:
        each.close()
    return found


def test_two_processes_make_the_weights_of_one(tmp_path: Path) -> None:
    train(SHARED, tmp_path / "one", steps=4)
    hosts = tmp_path / "hosts.json"
    hosts.write_text(json.dumps(free_addresses(2)))
    started = [
        subprocess.Popen(
            [sys.executable, "-c", ONE_OF_TWO, str(tmp_path / "two")],
            env={**os.environ, "MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts), "PYTHONPATH": os.getcwd()},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120)[0] for process in started]
    assert all(process.returncode == 0 for process in started), said
    alone, together = (mx.load(str(tmp_path / name / "model" / "model.safetensors")) for name in ("one", "two"))
    assert isinstance(alone, dict) and isinstance(together, dict) and alone.keys() == together.keys()
    for name, array in alone.items():
        difference = mx.abs(array.astype(mx.float32) - together[name].astype(mx.float32)).max()
        assert difference.item() < 1e-3, name

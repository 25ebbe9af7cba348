"""Processes that share a step's batches come to the weights of one process alone, and one of them writes."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest

from tests.pocket.test_trainer import TINY
from tiny_llm.pocket.train import train
from tiny_llm.pocket.trainer import PocketTrainer

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


def test_a_step_counts_the_tokens_of_all_its_batches(tmp_path: Path) -> None:
    alone, shared = (PocketTrainer(recipe, tmp_path, lambda text: [1], "x").step() for recipe in (TINY, SHARED))
    assert shared["tokens"] == 2 * alone["tokens"]


def test_gradients_are_means_over_the_batches(tmp_path: Path) -> None:
    trainer = PocketTrainer(SHARED, tmp_path, lambda text: [1], "x")
    rng = np.random.default_rng(5)
    first, second = (trainer.batch(rng) for _ in range(2))
    parts = [trainer.gradients([batch, batch])[1]["embed_tokens"]["weight"] for batch in (first, second)]
    both = trainer.gradients([first, second])[1]["embed_tokens"]["weight"]
    assert mx.allclose(both, (parts[0] + parts[1]) / 2, atol=1e-7)
    assert not mx.allclose(both, parts[0], atol=1e-5)


def test_batches_that_processes_cannot_share_evenly_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mx.distributed, "init", lambda: SimpleNamespace(rank=lambda: 0, size=lambda: 3))
    with pytest.raises(ValueError, match="3 processes can't share 2 batches of a step evenly"):
        PocketTrainer(SHARED, tmp_path, lambda text: [1], "x")

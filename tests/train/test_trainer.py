"""A training run, whatever it learns: interrupted it comes to the same, and a step is a mean over its batches."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest

from tests.train.examples import SETTINGS, Repeating
from tiny_llm.train.optimizer import flatten

SHARED = replace(SETTINGS, batches=2)


def run(directory: Path, *stops: int) -> Repeating:
    """Train to the end, with a fresh process's worth of state after each number of steps in `stops`."""
    directory.mkdir()
    for stop in (*stops, 10**6):
        trainer = Repeating(directory)
        trainer.resume()
        while not trainer.done and trainer.progress.step < stop:
            trainer.write({"answers": trainer.step()["answers"]})
        trainer.save()
    return trainer


@pytest.mark.parametrize("stops", [(1,), (4, 5)])
def test_an_interrupted_run_ends_with_the_same_weights_log_and_state(tmp_path: Path, stops: tuple[int, ...]) -> None:
    whole, again = run(tmp_path / "whole"), run(tmp_path / "again", *stops)
    assert whole.progress.tokens >= SETTINGS.tokens and again.state() == whole.state()
    assert whole.told == whole.progress.step
    assert again.log.read_text() == whole.log.read_text()
    for name, array in flatten(whole.weights).items():
        assert mx.array_equal(array, flatten(again.weights)[name]), name


def test_a_step_counts_the_tokens_of_all_its_batches(tmp_path: Path) -> None:
    alone, shared = (Repeating(tmp_path, settings).step() for settings in (SETTINGS, SHARED))
    assert shared["tokens"] == 2 * alone["tokens"]


def test_gradients_are_means_over_the_batches(tmp_path: Path) -> None:
    trainer = Repeating(tmp_path, SHARED)
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
        Repeating(tmp_path, SHARED)

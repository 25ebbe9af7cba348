"""Batches: random repeats whose targets are what came before."""

import numpy as np
import pytest

from tiny_llm.train.batches import repeated


@pytest.mark.parametrize(("period", "alphabet"), [(4.0, 64.0), (20.0, 500.0), (44.0, 2048.0)])
def test_targets_of_repeats_stand_one_period_before(period: float, alphabet: float) -> None:
    batch = repeated(period, alphabet, 2048, 512, np.random.default_rng(0))
    tokens = np.array(batch.tokens).reshape(batch.positions.shape)
    width = tokens.shape[1]
    for at, target in zip(batch.at.tolist(), batch.targets.tolist(), strict=True):
        row, place = divmod(at, width)
        assert tokens[row, place + 1] == target
        text = tokens[row, : place + 1].tolist()
        assert any(text[-n - 1] == text[-1] and text[-n] == target for n in range(2, int(period) + 1))
    assert len(set(tokens.reshape(-1).tolist())) <= alphabet

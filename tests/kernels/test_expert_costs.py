"""The bound of a model with experts counts the chosen experts alone."""

from pathlib import Path

import numpy as np
import pytest
from mlx.utils import tree_flatten

from tests.support import make_model
from tiny_llm import load
from tiny_llm.cli import main
from tiny_llm.config import EngineConfig
from tiny_llm.kernels.roofline import matrix_weights, step_bytes, step_operations
from tiny_llm.model.loader import load_config, load_weights
from tiny_llm.views.speed import bytes_read

SHAPES = {
    "qwen3_moe": {"num_experts": 8, "num_experts_per_tok": 3, "num_hidden_layers": 4, "decoder_sparse_step": 2},
    "qwen2_moe": {"num_experts": 6, "num_experts_per_tok": 2},
}


def read_by_a_token(path: Path) -> int:
    """The numbers of all matrices, a layer's experts by the share that is chosen, without the embedding."""
    config = load_config(path)
    assert config.moe is not None
    total = 0
    for name, array in tree_flatten(load_weights(path, config)):
        if "embed_tokens" in name or array.ndim < 2:
            continue
        size = array.size
        if ".experts." in name:
            size = size // config.moe.num_experts * config.moe.experts_per_token
        total += size
    return total


@pytest.mark.parametrize("kind", SHAPES)
def test_the_weights_that_a_token_meets_are_those_of_the_chosen_experts(tmp_path: Path, kind: str) -> None:
    """All MLPs counted as dense ones, with an intermediate size that no layer has."""
    path = make_model(tmp_path, kind, **SHAPES[kind])
    config = load_config(path)
    assert matrix_weights(config) == read_by_a_token(path)
    attention = step_operations(config, 10) - 2 * matrix_weights(config)
    assert step_operations(config, 10, 5) == 5 * (2 * read_by_a_token(path) + attention)
    llm = load(path, config=EngineConfig(kernels="mlx"))
    assert bytes_read(llm, 10) == pytest.approx(step_bytes(config, 10, 1, 32, 32))


def test_more_rows_read_more_experts_until_all_are_read(tmp_path: Path) -> None:
    config = load_config(make_model(tmp_path, "qwen3_moe", **SHAPES["qwen3_moe"]))
    assert config.moe is not None
    rng = np.random.default_rng(0)
    one = 2 * 3 * 64 * 64  # an expert of each of the two layers that have experts
    assert config.moe.further_weights(64, 1) == pytest.approx(0, abs=1e-6)
    for rows in (2, 5):
        found = [len({e for _ in range(rows) for e in rng.permutation(8)[:3]}) for _ in range(4000)]
        assert config.moe.further_weights(64, rows) == pytest.approx(one * (np.mean(found) - 3), rel=0.02)
    assert config.moe.further_weights(64, 1000) == pytest.approx(one * (8 - 3))


def test_the_command_counts_the_experts_of_all_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_model(tmp_path, "qwen3_moe", **SHAPES["qwen3_moe"])
    config = load_config(path)
    assert config.moe is not None
    line = ["--rows", "64", "--context", "16", "--bits", "16"]
    assert main(["kernels", "roofline", "--model", str(path), *line]) == 0
    moved = step_bytes(config, 16, 64) + 2 * config.moe.further_weights(64, 64)
    assert f"{moved / 1e6:,.1f} MB" in capsys.readouterr().out

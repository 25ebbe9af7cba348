"""The kernels in the real model: `--kernels`."""

from pathlib import Path

import mlx.core as mx
import pytest

from tests.support import make_model
from tiny_llm.config import EngineConfig
from tiny_llm.engine.llm import load
from tiny_llm.kernels.table import with_kernels
from tiny_llm.model.ops import PLAIN


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "random-qwen3")


@pytest.mark.parametrize("ops", ["plain", "fused"])
@pytest.mark.parametrize("kernels", ["sim", "plain"])
def test_the_model_answers_the_same_on_kernels(model_dir: Path, ops: str, kernels: str) -> None:
    def logits(config: EngineConfig) -> mx.array:
        llm = load(model_dir, config=config)
        cache = llm._new_cache()
        return llm.model(mx.arange(11), cache)

    expected = logits(EngineConfig(ops="plain"))
    assert mx.allclose(logits(EngineConfig(ops=ops, kernels=kernels)), expected, rtol=1e-4, atol=5e-5)


def test_every_launch_is_a_kernels(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that is never dispatched would go unnoticed: seven launches for each layer, and the last norm."""
    from tiny_llm.kernels.sim import Simulator

    names: list[str] = []
    launch = Simulator.launch

    def counted(self: Simulator, interface, *arguments):
        names.append(interface.name)
        return launch(self, interface, *arguments)

    monkeypatch.setattr(Simulator, "launch", counted)
    llm = load(model_dir, config=EngineConfig(kernels="sim"))
    mx.eval(llm.model(mx.arange(3), llm._new_cache()))
    layers = llm.config.num_hidden_layers
    assert {name: names.count(name) for name in names} == {
        "rms_norm": 4 * layers + 1,
        "rope": 2 * layers,
        "swiglu": layers,
    }


def test_half_precision_weights_of_another_type(model_dir: Path) -> None:
    table, x = with_kernels(PLAIN, "sim"), mx.random.normal((2, 3, 8)).astype(mx.bfloat16)
    normed = table.rms_norm(x, mx.ones(8), 1e-6)
    assert normed.shape == x.shape and normed.dtype == mx.bfloat16


def test_a_back_end_that_is_not_here() -> None:
    with pytest.raises(ValueError, match="no cuda here; use sim or plain"):
        with_kernels(PLAIN, "cuda")
    with pytest.raises(ValueError, match="kernels: expected one of metal, cuda, sim, plain, found 'gpu'"):
        EngineConfig(kernels="gpu")

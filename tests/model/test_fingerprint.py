"""A model's fingerprint: the same for the same model, another for any other."""

from pathlib import Path

import mlx.core as mx

from tests.model.parity import ours
from tests.support import make_model
from tiny_llm.model.fingerprint import SAMPLES, fingerprint
from tiny_llm.model.loader import load_config, load_weights


def of(path: Path, dtype: mx.Dtype | None = None) -> str:
    config = load_config(path)
    return fingerprint(config, load_weights(path, config, dtype))


def test_it_tells_models_apart_and_does_not_care_where_they_lie(tmp_path: Path) -> None:
    path = make_model(tmp_path / "a")
    others = {
        "seed": make_model(tmp_path / "b", seed=1),
        "shape": make_model(tmp_path / "c", rope_theta=5e5),
        "packed": make_model(tmp_path / "d", quantize={"bits": 8, "group_size": 32}),
        "half": make_model(tmp_path / "e", dtype="bfloat16"),
    }
    prints = {name: of(other) for name, other in others.items()} | {"cast": of(path, mx.float16)}
    assert len({of(path), *prints.values()}) == 6
    assert of(make_model(tmp_path / "again")) == of(path)


def test_one_weight_that_is_multiplied_shows(tmp_path: Path) -> None:
    model = ours(make_model(tmp_path, hidden_size=256, intermediate_size=512))
    before = fingerprint(model.config, model.weights)
    weight = model.weights["layers"][1]["down_proj"]
    assert weight["weight"].size > SAMPLES
    weight["weight"] = weight["weight"] * 1.01
    assert fingerprint(model.config, model.weights) != before

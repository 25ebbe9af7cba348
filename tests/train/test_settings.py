"""The rate of learning as training goes on."""

import pytest

from tiny_llm.train.settings import Settings


def test_rates_warm_up_stay_and_fall() -> None:
    settings = Settings(tokens=1000, warmup_steps=4, decay_share=0.5, final_rate=0.1)
    assert [settings.rate(step, 1) for step in range(5)] == [0.25, 0.5, 0.75, 1, 1]
    assert settings.rate(9, 0.5) == 1
    assert settings.rate(9, 0.25) == pytest.approx(0.55)
    assert settings.rate(9, 0) == pytest.approx(0.1)

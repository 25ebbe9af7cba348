"""The parts of bench/real.py that judge: the float64 reference, equal texts, who runs when and what becomes a row."""

from pathlib import Path

import numpy as np
import pytest

from bench import real
from bench.contenders.exact import error, exact_logits
from bench.contenders.race import Contender, Pair, Race, Result
from tests.support import make_model


def make_contender(name: str, rounds: int | None = None) -> Contender:
    return Contender(name, "none.py", Path("none"), 1, rounds=rounds)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the contenders that ran, each of which gives its place as `speed`; "broken" fails."""
    ran: list[str] = []

    def run(self: Contender, job: Result) -> Result:
        ran.append(self.name)
        if self.name == "broken":
            raise RuntimeError("no such library")
        return {"speed": float(len(ran))}

    monkeypatch.setattr(Contender, "run", run)
    return ran


@pytest.mark.parametrize("quantize", [None, {"bits": 4, "group_size": 32}])
def test_the_reference_computes_the_model(tmp_path: Path, quantize: dict[str, int] | None) -> None:
    import mlx.core as mx
    from mlx_lm.utils import load_model

    path = make_model(tmp_path / "llama", "llama", quantize=quantize, rope_theta=1e5)
    model = load_model(path)[0]
    prompts = [[1, 5, 9, 200, 3], [7]]
    found = np.array([np.array(model(mx.array([prompt])))[0, -1] for prompt in prompts])
    exact = exact_logits(path, prompts)
    assert error(found, exact) < 1e-5
    assert error(found + 0.1 * exact.std(), exact) > 0.05


def test_the_contenders_take_turns(calls: list[str]) -> None:
    results = Race(3).run([make_contender("a"), make_contender("b", rounds=2)], {"job": "batch"})
    assert calls == ["a", "b", "b", "a", "a"]
    assert results == {"a": [{"speed": 1.0}, {"speed": 4.0}, {"speed": 5.0}], "b": [{"speed": 2.0}, {"speed": 3.0}]}


def test_a_contender_that_fails_twice_is_left_out(calls: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    race = Race(2)
    results = race.run([make_contender("broken"), make_contender("a")], {"job": "batch"})
    assert calls == ["broken", "broken", "a", "a"]
    assert list(results) == ["a"] and race.left_out == {"broken": "no such library"}
    assert "broken is left out: no such library" in capsys.readouterr().err
    assert Pair("32 chats, broken", "speed", "a", "broken").row(results) == []


def test_a_row_pairs_the_rounds_that_both_ran() -> None:
    results = {"a": [{"speed": 2.0}, {"speed": 4.0}, {"speed": 9.0}], "b": [{"speed": 1.0}, {"speed": 1.0}]}
    (row,) = Pair("batch, b", "speed", "a", "b", target="ratio ≥ 3").row(results)
    assert (row.ours, row.peer, row.ratio, row.target) == (3.0, 1.0, 3.0, "ratio ≥ 3")


@pytest.mark.parametrize(
    ("found", "gaps", "same"),
    [
        ([1, 2, 3], [1.0, 1.0, 1.0], True),
        ([1, 9, 3], [1.0, 0.5, 1.0], False),
        ([1, 9], [1.0, 0.0005, 1.0], True),
        ([1, 2], [1.0, 1.0, 1.0], False),
        ([1, 2, 3, 4], [0.0, 0.0, 1.0], False),
    ],
)
def test_texts_are_equal_up_to_a_near_tie(found: list[int], gaps: list[float], same: bool) -> None:
    assert real.same_text(found, [1, 2, 3], gaps) is same


def test_the_questions_are_two_hundred() -> None:
    assert len(set(real.QUESTIONS)) == 200

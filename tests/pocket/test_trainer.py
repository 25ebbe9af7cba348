"""A training run can be stopped anywhere: what comes out is the same, and nothing that was saved is lost."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from tiny_llm.model.directory import load_config
from tiny_llm.model.loader import load_weights
from tiny_llm.pocket.card import runs
from tiny_llm.pocket.lessons.mix import Mix
from tiny_llm.pocket.recipe import RECIPES, Recipe, Repeats, Size
from tiny_llm.pocket.sampling import Sampling
from tiny_llm.pocket.tokenizer import VOCAB_SIZE, shipped_tokenizer
from tiny_llm.pocket.train import train
from tiny_llm.pocket.trainer import BY_ERROR, PocketTrainer
from tiny_llm.train import checkpoint
from tiny_llm.train.batches import repeated
from tiny_llm.train.optimizer import flatten

TINY = Recipe(
    Size(hidden=128, layers=1, mlp=128, heads=2, kv_heads=1),
    tokens=9000,
    step_tokens=256,
    repeats=Repeats(max_tokens=1024),
    foundation_tokens=1500,
    textwork_share=0.25,
    long_share=0.25,
    sampling=Sampling(every=2000, lessons=2),
    max_length=256,
    max_long_length=768,
    warmup_steps=3,
)


def encode(text: str) -> list[int]:
    return shipped_tokenizer().encode(text, add_special_tokens=False).ids


def run(directory: Path, *stops: int, recipe: Recipe = TINY) -> PocketTrainer:
    """Train to the end, with a fresh process's worth of state after each number of steps in `stops`."""
    for stop in (*stops, 10**6):
        trainer = PocketTrainer(recipe, directory, encode, "tiny")
        trainer.resume()
        while not trainer.done and trainer.progress.step < stop:
            entry = trainer.step()
            trainer.write({"stage": trainer.progress.stage, "answers": entry["answers"]})
        trainer.save()
    return trainer


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> PocketTrainer:
    return run(tmp_path_factory.mktemp("whole"))


def test_all_stages_come_in_order(whole: PocketTrainer) -> None:
    stages = [json.loads(line)["stage"] for line in whole.log.read_text().splitlines()]
    assert list(dict.fromkeys(stages)) == ["repeats", "foundation", "everything", "textwork", "long"]


def test_the_model_learns(whole: PocketTrainer) -> None:
    losses: dict[str, list[float]] = {}
    for line in whole.log.read_text().splitlines():
        entry = json.loads(line)
        if "answers" in entry:
            losses.setdefault(entry["stage"], []).append(entry["answers"])
    assert np.mean(losses["everything"]) < 0.8 * np.mean(losses["repeats"])


@pytest.mark.parametrize("stops", [(2,), (6, 7), (12, 18), (20, 27)])
def test_an_interrupted_run_ends_with_the_same_weights(
    tmp_path: Path, whole: PocketTrainer, stops: tuple[int, ...]
) -> None:
    again = run(tmp_path, *stops)
    assert again.progress == whole.progress
    assert again.stream.state() == whole.stream.state()
    for name, array in flatten(whole.weights).items():
        assert mx.array_equal(array, flatten(again.weights)[name]), name
    for name, array in flatten(whole.published).items():
        assert mx.array_equal(array, flatten(again.published)[name]), name
    assert again.log.read_text() == whole.log.read_text()


def test_errors_are_measured_when_a_lesson_stage_begins_and_regularly_after(whole: PocketTrainer) -> None:
    lines = [json.loads(line) for line in whole.log.read_text().splitlines()]
    measured = [line for line in lines if "errors" in line]
    first = {stage: next(line["step"] for line in lines if line["stage"] == stage) for stage in BY_ERROR}
    assert {stage: next(line["step"] for line in measured if line["stage"] == stage) for stage in BY_ERROR} == first
    assert measured[-1]["errors"] == whole.progress.errors
    for line in measured:
        assert set(line["errors"]) == set(line["weights"]) and sum(line["weights"].values()) == pytest.approx(
            1, abs=1e-3
        )
        assert all(0 <= error <= 1 for error in line["errors"].values())


def test_steps_after_the_last_checkpoint_are_done_again(tmp_path: Path, whole: PocketTrainer) -> None:
    """What a kill loses is weights and log lines since the checkpoint; both come back the same."""
    trainer = PocketTrainer(TINY, tmp_path, encode, "tiny")
    for step in range(9):
        entry = trainer.step()
        trainer.write({"stage": trainer.progress.stage, "answers": entry["answers"]})
        if step == 4:
            trainer.save()
    with trainer.log.open("a") as log:
        log.write('{"step": 10, "cut in the mid')
    assert run(tmp_path).log.read_text() == whole.log.read_text()


def test_training_goes_on_from_a_trained_model(tmp_path: Path) -> None:
    """Tokens add up, lessons are new ones, and the model says what it was made from."""
    train(TINY, tmp_path / "first", steps=3)
    model = tmp_path / "first" / "model"
    first = json.loads((model / "pocket.json").read_text())
    trainer = train(TINY, tmp_path / "second", steps=2, after=model)
    made = json.loads((tmp_path / "second" / "model" / "pocket.json").read_text())
    assert made["after"] == first and made["tokens"] > first["tokens"] and made["steps"] == 2
    assert trainer.progress.stage == "everything"
    assert trainer.recipe.seed != TINY.seed and trainer.digest != PocketTrainer(TINY, tmp_path, encode, "x").digest
    again = train(TINY, tmp_path / "second", steps=1, after=model)
    assert again.progress.step == 3 and again.parent == first


def test_a_smaller_model_grows_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(TINY, tmp_path / "first", steps=2)
    model = tmp_path / "first" / "model"
    larger = replace(TINY, size=replace(TINY.size, layers=2, mlp=256))
    trainer = train(larger, tmp_path / "second", steps=1, after=model)
    growth = {"layers": [1, 2], "mlp": [128, 256]}
    assert trainer.progress.first_tokens == json.loads((model / "pocket.json").read_text())["tokens"]
    first_line = json.loads((tmp_path / "second" / "log.jsonl").read_text().splitlines()[0])
    assert first_line["grown"] == growth
    made = json.loads((tmp_path / "second" / "model" / "pocket.json").read_text())
    assert made["grown"] == growth and "layers 1 → 2" in capsys.readouterr().out
    assert list(runs(made))[-1].endswith("(grown first: 1 → 2 layers, 128 → 256 mlp)")
    again = train(larger, tmp_path / "second", steps=1, after=model)
    assert again.made()["grown"] == growth and len(again.weights["layers"]) == 2


def test_the_learning_rate_falls_over_the_tokens_of_the_run_itself(tmp_path: Path) -> None:
    trainer = PocketTrainer(TINY, tmp_path, encode, "x")
    trainer.progress.first_tokens = trainer.progress.tokens = TINY.tokens - 1000
    assert trainer.left == 1
    trainer.progress.tokens += 750
    assert trainer.left == 0.25
    assert TINY.rate(100, 0.0) == 0


def test_changed_lessons_are_learned_from_the_checkpoint_when_that_is_wanted(tmp_path: Path) -> None:
    first = train(TINY, tmp_path, steps=3)
    weights, optimizer = flatten(first.weights), first.optimizer.state
    changed = replace(TINY, everything=Mix({"text": 1.0}))
    with pytest.raises(ValueError, match="or --relearn to go on"):
        train(changed, tmp_path, steps=1)
    again = PocketTrainer(changed, tmp_path, encode, "changed")
    assert again.resume(relearn=True)
    assert all(mx.array_equal(array, weights[name]) for name, array in flatten(again.weights).items())
    assert all(mx.array_equal(array, optimizer[name]) for name, array in again.optimizer.state.items())
    note = json.loads(again.log.read_text().splitlines()[-1])
    assert (note["step"], note["relearn"], note["recipe"]) == (3, first.digest, "changed")
    again.step()
    assert again.made()["steps"] == 1 and again.made()["after"] == {**first.made()}
    again.save()
    third = PocketTrainer(changed, tmp_path, encode, "changed")
    assert third.resume() and third.made() == again.made()


def test_relearning_needs_the_same_shape(tmp_path: Path) -> None:
    train(TINY, tmp_path, steps=1)
    larger = replace(TINY, size=replace(TINY.size, layers=2))
    with pytest.raises(ValueError, match="a model of another shape than this recipe's: use another --out"):
        train(larger, tmp_path, steps=1, relearn=True)


def test_what_is_no_pocket_model_of_this_size_is_not_gone_on_from(tmp_path: Path) -> None:
    train(TINY, tmp_path / "first", steps=1)
    model = tmp_path / "first" / "model"
    with pytest.raises(ValueError, match="another size than this recipe's: choose the fitting --size"):
        PocketTrainer(RECIPES["draft"], tmp_path, encode, "x").follow(model)
    with pytest.raises(ValueError, match=r"nowhere/model\.safetensors: not there: name the directory"):
        train(TINY, tmp_path / "second", after=tmp_path / "nowhere")
    (model / "pocket.json").unlink()
    with pytest.raises(ValueError, match=r"pocket\.json: not there, so this is no pocket model"):
        PocketTrainer(TINY, tmp_path, encode, "x").follow(model)


@pytest.mark.parametrize("text", ["no json", "[]", "{}", '{"tokens": "many"}'])
def test_a_model_that_does_not_tell_its_tokens_is_not_gone_on_from(tmp_path: Path, text: str) -> None:
    train(TINY, tmp_path / "first", steps=1)
    model = tmp_path / "first" / "model"
    (model / "pocket.json").write_text(text)
    with pytest.raises(ValueError, match=r"pocket\.json: expected an object that tells its tokens, found"):
        train(TINY, tmp_path / "second", after=model)
    assert not (tmp_path / "second").exists()


def test_a_file_is_no_place_to_train(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file: a file, where training wants a folder: name another with --out"):
        train(TINY, tmp_path / "file", steps=1)


def test_who_has_nothing_left_to_do_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(TINY, tmp_path)
    assert train(TINY, tmp_path).done
    assert "nothing left to do" in capsys.readouterr().out


def test_the_digest_knows_settings_tokenizer_and_lessons(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shipped_tokenizer().to_str()
    digest = RECIPES["target"].digest(text)
    assert RECIPES["target"].digest(text) == digest
    assert RECIPES["draft"].digest(text) != digest
    assert RECIPES["target"].digest(text + " ") != digest
    monkeypatch.setattr("tiny_llm.pocket.lessons.context.ABSENT", "Nobody knows.")
    assert RECIPES["target"].digest(text) != digest


def test_how_long_training_goes_on_is_no_part_of_the_digest() -> None:
    from dataclasses import replace

    recipe = RECIPES["target"]
    assert replace(recipe, tokens=1).digest("") == recipe.digest("")
    assert replace(recipe, seed=2).digest("") != recipe.digest("")


def test_killed_while_training_it_goes_on(tmp_path: Path) -> None:
    """kill -9 of the real command at an arbitrary moment; the next start resumes and leaves a model that loads."""
    code = (
        "from pathlib import Path; import sys; import tiny_llm.pocket.train as t\n"
        "from tests.pocket.test_trainer import TINY\n"
        "t.SAVE_EVERY = t.LOG_EVERY = 1\n"
        "t.train(TINY, Path(sys.argv[1]), steps=int(sys.argv[2]))"
    )
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), "1000000"], cwd=root, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / checkpoint.PREVIOUS).exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path), "1"], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "going on at step" in done.stdout
    config = load_config(tmp_path / "model")
    weights = load_weights(tmp_path / "model", config, mx.float32)
    assert weights["layers"][0]["qkv_proj"]["weight"].shape == (256, 128)
    assert (tmp_path / "loss.svg").read_text().startswith("<svg")


def test_the_saved_model_is_the_trained_one(tmp_path: Path) -> None:
    trainer = train(TINY, tmp_path, steps=2)
    config = load_config(tmp_path / "model")
    loaded = flatten(load_weights(tmp_path / "model", config, mx.float32))
    for name, array in flatten(trainer.weights).items():
        np.testing.assert_allclose(loaded[name], array, rtol=2**-8, atol=1e-6)
    made = json.loads((tmp_path / "model" / "pocket.json").read_text())
    assert made["tokens"] == trainer.progress.tokens
    assert made["params"] == sum(array.size for array in loaded.values())


@pytest.mark.parametrize("name", ["target", "deep"])
def test_the_model_has_at_most_ten_megabytes(name: str) -> None:
    weights = flatten(RECIPES[name].random_weights())
    parameters = sum(array.size for array in weights.values())
    assert 2 * parameters <= 10_000_000


@pytest.mark.parametrize("name", ["target", "deep", "draft"])
def test_shapes_fit_every_quantization_group(name: str) -> None:
    size = RECIPES[name].size
    assert size.hidden % 128 == size.mlp % 128 == size.heads * size.head_dim % 128 == 0


@pytest.mark.parametrize("stage", ["everything", "textwork", "long"])
def test_some_batches_after_the_foundation_are_repeats_of_any_token(tmp_path: Path, stage: str) -> None:
    repeats, lessons = (
        PocketTrainer(replace(TINY, refresh_share=share), tmp_path, encode, "x") for share in (1.0, 0.0)
    )
    rng = np.random.default_rng(3)
    rng.random()
    expected = repeated(TINY.repeats.longest_period, VOCAB_SIZE, VOCAB_SIZE, TINY.step_tokens, rng)
    for trainer in (repeats, lessons):
        trainer.progress.stage = stage
    assert mx.array_equal(repeats.batch(np.random.default_rng(3)).tokens, expected.tokens)
    (start,) = encode("<|im_start|>")
    assert mx.any(lessons.batch(np.random.default_rng(3)).tokens == start)

"""Pictures of a run: what they show comes from the code under test, and the first wrong tensor is named."""

import re
import subprocess
import sys
import xml.dom.minidom
from collections.abc import Callable
from html import unescape
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from tests.book.pages import checkout
from tests.support import make_model
from tiny_llm.cli import main
from tiny_llm.config import RopeConfig, SamplingParams
from tiny_llm.model import attention, ops
from tiny_llm.model.qwen3 import Qwen3
from tiny_llm.views import divergence, mask, record, rope, sampling
from tiny_llm.views.svg import Drawing, page

ROOT = Path(__file__).parents[2]
TOKENS = [3, 1, 4, 1, 5]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("viz") / "model")


@pytest.fixture(scope="module")
def model(path: Path) -> Qwen3:
    return record.load(path)


@pytest.fixture(scope="module")
def reference(path: Path) -> record.Notes:
    return record.record_reference(path, TOKENS)


def parsed(drawing: Drawing) -> xml.dom.minidom.Document:
    assert "\n\n" not in drawing.svg()
    return xml.dom.minidom.parseString(drawing.svg())


def test_every_tensor_is_recorded_in_order(reference: record.Notes) -> None:
    names = list(reference)
    assert names[0] == "embed_tokens" and names[-2:] == ["norm", "logits"]
    layer = ["input_layernorm", "qkv_proj", "q_norm", "k_norm", "queries", "keys", "values", "attended", "o_proj"]
    layer += ["post_attention_layernorm", "gate_up_proj", "swiglu", "down_proj"]
    assert names[1:-2] == [f"layer {i} {name}" for i in range(2) for name in layer]
    assert reference["logits"].shape == (len(TOKENS), 320)


def test_the_same_code_agrees_to_the_bit(model: Qwen3, reference: record.Notes) -> None:
    rows = divergence.compare(reference, record.record(model, TOKENS))
    assert [row.largest for row in rows] == [0.0] * len(reference)
    assert divergence.describe_differences(rows).startswith(f"All {len(reference)} tensors agree")


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_tied_and_biased_models_are_recorded(tmp_path: Path, kind: str) -> None:
    model = record.load(make_model(tmp_path / kind, kind, tie_word_embeddings=True))
    notes = record.record(model, TOKENS)
    expected = model(mx.array(TOKENS), record.RecomputeCache(model.config, ops.PLAIN))
    np.testing.assert_array_equal(notes["logits"], np.array(expected))
    assert ("layer 0 q_norm" in notes) == (kind == "qwen3")


WRONG: dict[str, tuple[dict[str, Callable[..., mx.array]], str, str]] = {
    "no rotation": ({"rope": lambda x, rotation: x}, "layer 0 queries", "rope.py"),
    "gate and up exchanged": (
        {"swiglu": lambda x: ops.swiglu(mx.concatenate(mx.split(x, 2, axis=-1)[::-1], axis=-1))},
        "layer 0 swiglu",
        "ops.swiglu",
    ),
    "eps": ({"rms_norm": lambda x, w, eps: ops.rms_norm(x, w, 0.1)}, "layer 0 input_layernorm", "ops.rms_norm"),
    "no scale": (
        {"attention": lambda q, k, v, scale, window: attention.causal_attention(q, k, v, 1.0, window)},
        "layer 0 attended",
        "attention.py",
    ),
    "shape": ({"swiglu": lambda x: x}, "layer 0 swiglu", "ops.swiglu"),
    "NaN": ({"embedding": lambda t, w, n: ops.embedding(t, w, n) * mx.nan}, "embed_tokens", "ops.embedding"),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_first_wrong_tensor_is_named(name: str, model: Qwen3, reference: record.Notes) -> None:
    functions, first, where = WRONG[name]
    notes: record.Notes = {}
    try:
        record.record(model, TOKENS, ops.PLAIN._replace(**functions), notes)
    except ValueError:
        assert name == "shape"
    rows = divergence.compare(reference, notes)
    assert next(row.name for row in rows if row.differs) == first
    words = divergence.describe_differences(rows)
    assert re.search(rf"^{first} .*<- the first that differs$", words, re.MULTILINE)
    assert where in words.splitlines()[-1]
    assert first in divergence.draw("d", rows).alt


def test_the_place_of_the_largest_difference_is_told() -> None:
    want = np.zeros((2, 3), np.float32)
    want[0, 0] = 2
    got = want.copy()
    got[1, 2] = 1
    (row,) = divergence.compare({"logits": want}, {"logits": got})
    assert row.largest == pytest.approx(0.5)
    assert row.words == "at token 1, channel 2: yours 1.0000, reference 0.0000"


def test_mask_and_weights_are_those_of_the_run(model: Qwen3, reference: record.Notes) -> None:
    visible, weights = mask.head_of(reference, 1, 3)
    assert visible == np.tril(np.ones((5, 5), bool)).tolist()
    q, k = (reference[f"layer 1 {name}"].astype(np.float64) for name in ("queries", "keys"))
    scores = np.where(visible, q[:, 3] @ k[:, 1].T / np.sqrt(32), -np.inf)
    e = np.exp(scores - scores.max(axis=1, keepdims=True))
    np.testing.assert_allclose(weights, e / e.sum(axis=1, keepdims=True), atol=1e-5)
    drawing = mask.draw_mask("m", "Mask", visible, ["<a>", "b", "c", "d", "e"], weights)
    tips = [t.firstChild.data for t in parsed(drawing).getElementsByTagName("title")]
    assert "<a> sees <a>, weight 1.000" in tips and "<a> does not see e, weight 0.000" in tips


def test_the_window_shows() -> None:
    assert [sum(row) for row in mask.mask_of(3, 6, 2)] == [2, 2, 2]
    for sizes, name in (((9, 8), "queries"), ((0, 4), "queries"), ((2, 4, 0), "window")):
        with pytest.raises(ValueError, match=name):
            mask.mask_of(*sizes)


def test_a_layer_or_head_that_is_not_there_is_refused(reference: record.Notes) -> None:
    with pytest.raises(ValueError, match="layer: expected 0 to 1, found 2"):
        mask.head_of(reference, 2, 0)
    with pytest.raises(ValueError, match="head: expected 0 to 3, found 4"):
        mask.head_of(reference, 0, 4)


def test_rotation_and_scores_follow_the_formula() -> None:
    pairs = rope.turned_pairs(RopeConfig(100.0), 4, [0, 3])
    np.testing.assert_allclose(pairs[1], [(1, 0), (np.cos(0.3), np.sin(0.3))], atol=1e-6)
    rows = rope.scores(RopeConfig(), [1, 0, 0, 0], [1, 0, 0, 0], 4)
    np.testing.assert_allclose(rows, np.cos(np.subtract.outer(np.arange(4), np.arange(4))), atol=1e-6)
    for drawing in rope.pictures(RopeConfig(), 8, 5):
        assert parsed(drawing)
    with pytest.raises(ValueError, match="head_dim"):
        rope.turned_pairs(RopeConfig(), 3, [0])


def test_stages_are_exact_shares() -> None:
    logits = [2.0, 1.0, 0.0, -1.0]
    params = SamplingParams(temperature=0.5, top_k=3, top_p=0.9, min_p=0.2)
    found = dict(sampling.stages(logits, params))
    e = np.exp(np.array(logits))
    np.testing.assert_allclose(found["softmax of the logits"], e / e.sum(), rtol=1e-5)
    np.testing.assert_allclose(found["temperature 0.5"], e**2 / (e**2).sum(), rtol=1e-5)
    np.testing.assert_allclose(found["top-k 3"][3], 0)
    np.testing.assert_allclose(found["top-p 0.9"], [*(e[:2] ** 2 / (e[:2] ** 2).sum()), 0, 0], rtol=1e-5)
    np.testing.assert_allclose(found["min-p 0.2"], [1, 0, 0, 0])
    penalized = dict(sampling.stages(logits, SamplingParams(temperature=1.0, presence_penalty=1.0), [2, 0, 0, 0]))
    np.testing.assert_allclose(penalized["penalties"][0], penalized["penalties"][1], rtol=1e-5)
    assert parsed(sampling.draw_stages("s", list("a&c<"), list(found.items())))


def test_a_page_needs_no_other_file() -> None:
    drawing = mask.draw_mask("m", "a < b", mask.mask_of(2, 2), ["\"'", "&"])
    text = page("T & U", [drawing], "x < y")
    assert "<h1>T &amp; U</h1>" in text and "x &lt; y" in text and drawing.alt in unescape(text)
    assert not re.search(r'(href|src)="', text)


def run(path: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tiny_llm.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "viz", *words, "--model", str(path)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_divergence_runs_the_learners_files(path: Path, tmp_path: Path) -> None:
    """A mistake in code/ is found in the learner's run, and not in the reference's, made in another process."""
    state = "wrong: w1.2.3 neighbours are paired: dimension i belongs to i + D/2"
    done = run(path, checkout(tmp_path, state), "divergence", "--code", "mine")
    assert done.returncode == 1 and "layer 0 queries" in done.stdout and "rope.py" in done.stdout
    assert "first that differs is layer 0 queries" in (tmp_path / "divergence.html").read_text(encoding="utf-8")


def test_divergence_is_quiet_about_right_files(path: Path, tmp_path: Path) -> None:
    done = run(path, checkout(tmp_path, "solved: 1.1 1.2 1.3 1.4 1.5"), "divergence")
    assert done.returncode == 0 and done.stdout.startswith("All 29 tensors agree")


def test_a_run_that_stops_shows_how_far_it_came(path: Path, tmp_path: Path) -> None:
    folder = checkout(tmp_path, "solved: 1.1 1.2 1.3 1.4 1.5")
    file = folder / "code" / "week1" / "ops.py"
    file.write_text(file.read_text().replace("return silu(gate) * up", "return silu(gate) * nothing"))
    done = run(path, folder, "divergence")
    assert done.returncode == 1 and "NameError" in done.stdout and "layer 0 swiglu" in done.stdout


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["mask", "--queries", "9"], "queries: expected 1 to 8 (the keys), found 9"),
        (["mask", "--window", "0"], "window: expected at least 1, found 0"),
        (["rope", "--head-dim", "3"], "head_dim: expected an even number"),
        (["rope", "--positions", "0"], "positions: expected at least 1, found 0"),
        (["rope", "--out", "a.svg"], "ends in .html, found a.svg"),
        (["mask", "--out", "a.txt"], "ends in .html or .svg, found a.txt"),
        (["sampling", "--temperature", "0"], "temperature: expected above 0"),
    ],
)
def test_bad_input_is_one_line(words: list[str], complaint: str, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["viz", *words]) == 2
    error = capsys.readouterr().err
    assert complaint in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_pictures_of_a_model(path: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["viz", "mask", "--prompt", "the\ncat", "--model", str(path), "--out", "m.svg"]) == 0
    assert xml.dom.minidom.parse("m.svg").documentElement.tagName == "svg"
    assert main(["viz", "sampling", "--model", str(path), "--top-k", "2", "--tokens", "4"]) == 0
    assert capsys.readouterr().out.count("out") == 2
    assert "top-k 2" in Path("sampling.html").read_text(encoding="utf-8")

"""Training of heads: what is learned is what the engine will ask for, and it is found again in the engine."""

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from tests.engine.test_heads import eagle, eagle_chain, eagle_states, medusa_tokens, outputs_of, with_heads
from tests.engine.test_loop import GREEDY, request, run
from tests.engine.test_speculation import prompt
from tests.support import make_model
from tiny_llm import LLM, load
from tiny_llm.config import EngineConfig
from tiny_llm.config.speculation import SpeculationConfig
from tiny_llm.model.eagle import EagleHead
from tiny_llm.model.medusa import MedusaHeads
from tiny_llm.train.heads import (
    AHEAD,
    BATCH_TOKENS,
    Row,
    Sample,
    UnrolledAttention,
    head_taps,
    rows,
    samples,
    train_eagle,
    train_medusa,
)

LAYERS = 6


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    path = make_model(tmp_path_factory.mktemp("target"), num_hidden_layers=LAYERS)
    return load(path, config=EngineConfig(kernels="mlx"))


@pytest.fixture(scope="module")
def texts(llm: LLM) -> list[tuple[list[int], list[int]]]:
    """Prompts that begin alike, so that their answers have something in common to learn."""
    prompts = [[*prompt(1, 6), seed % 7] for seed in range(14)]
    answers = llm.generate(prompts, replace(GREEDY, max_tokens=40))
    return [(tokens, answer.tokens) for tokens, answer in zip(prompts, answers, strict=True)]


def sample(tokens: list[int], num_prompt: int) -> Sample:
    return Sample(np.array(tokens, np.int32), num_prompt, np.zeros((len(tokens), 4), np.float16))


def test_targets_stay_within_their_text() -> None:
    row = Row.of([sample([1, 2, 3, 4], 2), sample([5, 6, 7], 1)])
    tokens, own = row.ahead(2)
    assert tokens.tolist()[:5] == [3, 4, 5, 6, 7]
    assert own.tolist() == [True, True, False, False, True, False, False]
    assert row.places.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert row.answer.tolist() == [False, False, True, True, False, True, True]


def test_all_samples_come_in_turn() -> None:
    found = [sample([i] * 100, 50) for i in range(9)]
    seen = [token for row in rows(found, 9, 3) for token in np.array(row.tokens)[np.array(row.places) == 0]]
    assert sorted(seen[:9]) == list(range(9)) and sorted(seen[9:18]) == list(range(9))
    assert all(row.tokens.size >= BATCH_TOKENS for row in rows(found, 3, 0))


def test_the_unrolled_head_computes_what_a_drafter_does(llm: LLM) -> None:
    """At guess s, entry t: features of the model up to t - s, then the head's own outputs, with the text's tokens."""
    head = eagle(llm)
    one, other = prompt(3, 9), prompt(4, 7)
    row = Row.of(samples(llm.model, [(one[:4], one[4:]), (other[:3], other[3:])], head.taps))
    cache = UnrolledAttention(row, head.config.head_dim**-0.5)
    following, _ = row.ahead(1)
    features = head.combine(row.features)
    begin = 0
    found = []
    for _ in range(AHEAD):
        states = head.states(following, features, cache)
        found.append(np.array(states))
        features = mx.roll(states, 1, 0)
    for tokens in (one, other):
        parts = outputs_of(llm, tokens, head.taps)
        real = np.concatenate(parts, axis=1) @ np.array(head.weights["fc.weight"]).T
        for root in range(len(tokens) - AHEAD):
            mixed = real[: root + 1]
            for guess in range(AHEAD):
                embedded = np.array(llm.model.embed(mx.array(tokens[1 : root + guess + 2])))
                want = eagle_states(head, embedded, mixed)[-1]
                np.testing.assert_allclose(found[guess][begin + root + guess], want, atol=2e-2, rtol=2e-2)
                mixed = np.concatenate([mixed, want[None]])
        begin += len(tokens)


def trained(llm: LLM, texts, kind: str, steps: int, seed: int = 0) -> tuple[MedusaHeads | EagleHead, list[float]]:
    losses: list[float] = []
    taps = (LAYERS - 1,) if kind == "medusa" else head_taps(LAYERS)
    found = samples(llm.model, texts, taps)
    if kind == "medusa":
        return train_medusa(llm.model, found, 3, steps, seed, lambda _, loss: losses.append(loss)), losses
    return train_eagle(llm.model, found, 200, steps, seed, lambda _, loss: losses.append(loss)), losses


@pytest.mark.parametrize(("kind", "steps"), [("medusa", 120), ("eagle", 30)])
def test_heads_learn_and_the_model_stays(llm: LLM, texts, kind: str, steps: int, tmp_path: Path) -> None:
    """Guesses in the engine are right as often as those that the test computes for the same texts, exactly."""
    before = np.array(llm.model.unembed(mx.eye(llm.config.hidden_size)))
    heads, losses = trained(llm, texts, kind, steps)
    assert len(losses) == steps and np.mean(losses[-5:]) < 0.6 * np.mean(losses[:3])
    assert np.array_equal(np.array(llm.model.unembed(mx.eye(llm.config.hidden_size))), before)
    heads.save(tmp_path / "heads", {})
    heads = type(heads).from_dir(tmp_path / "heads", llm.model)

    accepted = drafts = 0
    for tokens, answer in texts[:4]:
        text, known = [*tokens, *answer], len(tokens) + 1
        while known < len(text) - 3:
            context = text[:known]
            line = eagle_chain(llm, heads, context, 3) if kind == "eagle" else medusa_tokens(llm, heads, context)
            right = 0
            while right < 3 and line[right] == text[known + right]:
                right += 1
            accepted, drafts, known = accepted + right, drafts + 1, known + right + 1

    loop = with_heads(llm, heads, beams=1, max_draft=3)
    if kind == "medusa":  # the greedy line of the tree
        loop.speculation.drafter.propose = lambda sequences, limits: [
            greedy_line(heads, loop, sequence, limit) for sequence, limit in zip(sequences, limits, strict=True)
        ]
    params = replace(GREEDY, max_tokens=40)
    for i, (tokens, answer) in enumerate(texts[:4]):
        (deltas,) = run(loop, [request(llm, f"{i}", tokens, params)])[f"{i}"].values()
        assert [delta.token for delta in deltas] == answer
    counts = loop.speculation.counts
    assert counts.accepted / counts.drafts == pytest.approx(accepted / drafts, abs=0.15)
    assert accepted / drafts > 0.3


def greedy_line(heads: MedusaHeads, loop, sequence, limit: int):
    from tiny_llm.decode.acceptance import DraftTree

    hidden = loop.speculation.drafter._hidden[sequence.id]
    return DraftTree.chain(heads.logits(hidden[None])[:, 0].argmax(axis=-1).tolist()[:limit])


def test_training_can_be_repeated(llm: LLM, texts) -> None:
    one, _ = trained(llm, texts, "medusa", 3, seed=5)
    other, _ = trained(llm, texts, "medusa", 3, seed=5)
    third, _ = trained(llm, texts, "medusa", 3, seed=6)
    assert np.array_equal(np.array(one.blocks[1][0]["weight"]), np.array(other.blocks[1][0]["weight"]))
    assert not np.array_equal(np.array(one.blocks[1][0]["weight"]), np.array(third.blocks[1][0]["weight"]))


def test_a_new_head_guesses_by_the_last_layer(llm: LLM, texts) -> None:
    """Untrained, its output is the model's own features, and its tokens are the frequent ones."""
    head, _ = trained(llm, texts, "eagle", 0)
    spoken = {token for _, answer in texts for token in answer}
    assert spoken <= set(head.draft_tokens.tolist()) and head.draft_tokens.size == 200
    assert head.taps == (1, 3, 5) and head_taps(28) == (1, 13, 24) and head_taps(2) == (0, 0, 1)


@pytest.mark.parametrize("kind", ["medusa", "eagle"])
def test_the_command(kind: str, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from tiny_llm.cli import app

    path = make_model(tmp_path / "model", vocab_size=512, max_position_embeddings=512)
    (tmp_path / "prompts").write_text("the quick brown fox\nhello there\n\nwhat is the answer?\n")
    line = ["train", kind, "--model", str(path), "--prompts", str(tmp_path / "prompts"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*line, "--max-tokens", "8", "--steps", "2"])
    assert result.exit_code == 0, result.output
    config = SpeculationConfig(kind, model=str(tmp_path / "out"), p_min=0.0)  # type: ignore[arg-type]
    fast = load(path, config=EngineConfig(speculation=config))
    plain = load(path)
    assert fast.generate("the quick", GREEDY).tokens == plain.generate("the quick", GREEDY).tokens
    (tmp_path / "prompts").write_text("\n")
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 2 and "expected a prompt on each line, found none" in result.output

"""The evaluation: padded batches say what single runs say, cases are held out, and scores count what is right."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from tiny_llm.cache.recompute import RecomputeCache
from tiny_llm.config import ModelConfig
from tiny_llm.model.ops import PLAIN
from tiny_llm.model.qwen3 import Qwen3
from tiny_llm.pocket import evaluate
from tiny_llm.pocket.card import ROWS, mlp_of, runs
from tiny_llm.pocket.evaluate import TASKS, Case, Evaluation, acceptance, cases, write_card
from tiny_llm.pocket.greedy import agreement, answers
from tiny_llm.pocket.lessons.words import held_out
from tiny_llm.pocket.recipe import Recipe, Size
from tiny_llm.pocket.tokenizer import save_tokenizer, shipped_tokenizer
from tiny_llm.train.differentiable import EVALUATION
from tiny_llm.train.weights_io import save_model, write_json

SIZE = Size(hidden=128, layers=2, mlp=128, heads=2, kv_heads=1)


def encode(text: str) -> list[int]:
    return shipped_tokenizer().encode(text, add_special_tokens=False).ids


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, weights = tmp_path_factory.mktemp("model"), Recipe(SIZE).random_weights()
    for index, layer in enumerate(weights["layers"]):
        for name in ("o_proj", "down_proj"):
            layer[name]["weight"] = mx.random.normal(layer[name]["weight"].shape, key=mx.random.key(index)) * 0.3
    params = save_model(path, weights, SIZE.hf_config(), (encode("<|im_end|>")[0], 0))
    write_json(path / "pocket.json", {"recipe": "r", "steps": 7, "tokens": 4000, "params": params})
    save_tokenizer(shipped_tokenizer(), path)
    return path


def test_padded_rows_say_what_each_says_alone(directory: Path) -> None:
    model = Evaluation(directory).model
    plain = Qwen3(model.config, model.weights, PLAIN)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 2000, length).tolist() for length in (3, 40, 41, 150, 7)]
    for prompt, said in zip(prompts, answers(model, prompts, 6, stop=-1), strict=True):
        text = list(prompt)
        for token in said:
            logits = plain(mx.array(text), RecomputeCache(model.config, PLAIN))[-1]
            top = mx.sort(logits)[-2:].tolist()
            assert token == mx.argmax(logits).item() or top[1] - top[0] < 1e-4
            text.append(token)
        assert len(said) == 6


def test_an_answer_ends_before_the_stop_token(directory: Path) -> None:
    model = Evaluation(directory).model
    prompts = [[5, 6, 7], [9, 10, 11, 12]]
    free = answers(model, prompts, 8, stop=-1)
    stop = free[0][3]
    cut = answers(model, prompts, 8, stop)
    assert cut[0] == free[0][: free[0].index(stop)]


def test_answers_that_end_leave_the_others_as_they_are(directory: Path) -> None:
    model = Evaluation(directory).model
    prompts = [[5, 6, 7], [9, 10, 11, 12], [3], [7, 7, 8, 9, 1, 2]]
    free = answers(model, prompts, 12, stop=-1)
    for stop in {free[0][2], free[3][5]}:
        expected = [text[: text.index(stop)] if stop in text else text for text in free]
        assert answers(model, prompts, 12, stop) == expected


def test_agreement_counts_tokens_that_the_model_would_choose(directory: Path) -> None:
    model = Evaluation(directory).model
    prompts = [[5, 6, 7], [9, 10, 11, 12]]
    said = answers(model, prompts, 8, stop=-1)
    assert agreement(model, prompts, said) == (16, 16)
    said[0][7] = (said[0][7] + 1) % 2000
    assert agreement(model, prompts, said) == (15, 16)
    assert agreement(model, prompts, [[], []]) == (0, 0)


@pytest.mark.parametrize("task", TASKS)
def test_cases_are_the_same_each_time_and_end_at_the_assistants_turn(task: str) -> None:
    first, second = ([case for case, _ in zip(cases(task, encode), range(12), strict=False)] for _ in range(2))
    assert first == second
    decode = shipped_tokenizer().decode
    for case in first:
        assert case.answer
        ending = decode(case.prompt[-8:], skip_special_tokens=False)
        assert ending.endswith("assistant\n" if task == "think" else "<think>\n\n</think>\n\n")
        assert 0 not in case.answer


def test_needles_have_their_length() -> None:
    for task, tokens in (("needle_512", 512), ("needle_2048", 2048)):
        lengths = [len(case.prompt) for case, _ in zip(cases(task, encode), range(8), strict=False)]
        assert all(0.9 * tokens < length <= tokens + 8 for length in lengths)


def test_tool_cases_are_calls_and_what_follows_results() -> None:
    call, answer = (
        [c for c, _ in zip(cases(t, encode), range(150), strict=False)] for t in ("tool_call", "tool_answer")
    )
    response = encode("</tool_response>")[0]
    assert sum(case.answer[0] == encode("<tool_call>")[0] for case in call) > 90
    assert any(case.family == "tool:none_fits" for case in call)
    assert all(response in case.prompt for case in answer)


def test_families_of_the_evaluation_are_held_out() -> None:
    families = {case.family for case, _ in zip(cases("faq", encode), range(300), strict=False)}
    assert len(families) > 150
    assert held_out("stock")


def test_scores_count_exact_answers(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation = Evaluation(directory)
    chosen = [Case("a", [1, 2], [3, 4]), Case("a", [1, 3], [5]), Case("b", [2], [6])]
    monkeypatch.setattr(evaluation, "cases", lambda task, number: chosen)
    monkeypatch.setattr(evaluation, "say", lambda cases: [[3, 4], [5, 5], [6]])
    score = evaluation.score("faq", 3)
    assert (score.right, score.total, score.share) == (2, 3, 0.6667)
    assert score.families == {"a": (1, 2), "b": (1, 1)}
    assert len(score.failures) == 1


def test_a_directory_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere/config\.json: "):
        Evaluation(tmp_path / "nowhere")


def test_a_model_accepts_its_own_draft(directory: Path) -> None:
    assert acceptance(Evaluation(directory), Evaluation(directory), 10) == 1.0


def test_all_figures_and_the_card(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "LONGEST", 2)
    figures, scores = evaluate.evaluate(directory, directory, 2)
    promised = (
        "tool_call tool_answer context_answer context_absent needle_512 needle_2048 faq multi_turn loop_rate acceptance"
    )
    assert set(promised.split()) | {"params", "bytes", "tokens_trained"} <= set(figures)
    assert figures["tokens_trained"] == 4000
    assert figures["bytes"] == (directory / "model.safetensors").stat().st_size
    assert all(score.total == 2 for score in scores.values())
    json.dumps(figures)
    write_card(directory, figures, 2)
    card = (directory / "README.md").read_text()
    assert f"{figures['params']:,} parameters" in card
    assert all(meaning in card for meaning in ROWS.values())
    assert "4,000 tokens, runs one after the other: 7 steps by recipe `r`" in card


def test_the_card_of_a_model_with_experts_names_its_recipe(directory: Path, tmp_path: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    experts = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    (tmp_path / "config.json").write_text(json.dumps({**config, **experts}))
    (tmp_path / "pocket.json").write_text((directory / "pocket.json").read_text())
    write_card(tmp_path, {"bytes": 5, "loop_rate": 0.25}, 4)
    card = (tmp_path / "README.md").read_text()
    assert "# Pocket (moe)" in card and "A Qwen3 with experts of" in card and "--size moe" in card
    assert "| open prompts whose answer does not end within 600 tokens | 0.250 |" in card


def test_the_card_names_every_run() -> None:
    made = {"recipe": "c", "steps": 3, "after": {"recipe": "b", "steps": 2000, "after": {"recipe": "a", "steps": 1}}}
    assert list(runs(made)) == ["1 steps by recipe `a`", "2,000 steps by recipe `b`", "3 steps by recipe `c`"]


def test_a_text_is_right_however_its_tokens_spell_it(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models found their own spelling of a word and were counted wrong for it."""
    word, letters = encode(" drum"), [token for letter in " drum" for token in encode(letter)]
    assert word != letters
    evaluation = Evaluation(directory)
    monkeypatch.setattr(evaluation, "cases", lambda task, number: [Case("a", [1], word)])
    monkeypatch.setattr(evaluation, "say", lambda cases: [letters])
    assert evaluation.score("faq", 1).right == 1


def test_evaluation_operations_are_the_plain_ones_up_to_rounding() -> None:
    config, weights = ModelConfig.from_hf(SIZE.hf_config(), "test"), Recipe(SIZE).random_weights()
    x = mx.random.normal((5, SIZE.hidden), key=mx.random.key(3))
    fast, plain = (
        Qwen3(config, weights, ops).finish(x, mx.zeros((5, 2, 64)), weights["layers"][0]) for ops in (EVALUATION, PLAIN)
    )
    np.testing.assert_allclose(fast, plain, atol=1e-5)


def test_the_card_names_experts() -> None:
    assert mlp_of({"intermediate_size": 640}) == "MLP 640"
    experts = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "intermediate_size": 64}
    assert mlp_of(experts) == "8 experts of 64 each, 2 of them chosen for a token"

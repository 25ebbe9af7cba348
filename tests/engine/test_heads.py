"""Medusa and EAGLE heads: read what is written, guess what their equations say, and never change an answer."""

import json
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from tests.engine.test_loop import GREEDY, SAMPLED, make_loop, mixed_requests, request, run
from tests.engine.test_speculation import check, prompt
from tests.support import make_model
from tiny_llm import LLM, SamplingParams, load
from tiny_llm.cache.contiguous import ContiguousCache
from tiny_llm.config import EngineConfig
from tiny_llm.config.speculation import SpeculationConfig
from tiny_llm.decode.acceptance import DraftTree
from tiny_llm.engine.drafters import new_drafter
from tiny_llm.engine.guess_tree import Ranked, likeliest_tree
from tiny_llm.engine.loop import Loop
from tiny_llm.engine.speculation import Speculation, SpeculationCounts
from tiny_llm.model.eagle import EagleHead, layer_config, shapes
from tiny_llm.model.medusa import MedusaHeads

LAYERS = 6


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    return load(make_model(tmp_path_factory.mktemp("target"), num_hidden_layers=LAYERS))


def medusa(llm: LLM, count: int = 3, depth: int = 1, shared: bool = True, seed: int = 0) -> MedusaHeads:
    mx.random.seed(seed)
    hidden, vocab = llm.config.hidden_size, llm.config.vocab_size
    blocks, outputs = [], []
    for _ in range(count):
        block = [
            {"weight": 0.3 * mx.random.normal((hidden, hidden)), "bias": 0.1 * mx.random.normal((hidden,))}
            for _ in range(depth)
        ]
        blocks.append(block)
        outputs.append(None if shared else {"weight": mx.random.normal((vocab, hidden))})
    return MedusaHeads(llm.model, blocks, outputs)


def eagle(llm: LLM, vocab: int = 320, seed: int = 0) -> EagleHead:
    mx.random.seed(seed)
    c = llm.config
    data = {"hidden_size": c.hidden_size, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    data |= {"head_dim": 16, "rms_norm_eps": 1e-5, "max_position_embeddings": 512, "rope_theta": 5000.0}
    config = layer_config(data, llm.model)
    weights = {}
    for name, shape in shapes(config, vocab).items():
        random = mx.random.normal(shape)
        weights[name] = 1 + 0.1 * random if len(shape) == 1 else random * shape[1] ** -0.5
    tokens = mx.array(sorted(np.random.default_rng(seed).choice(320, vocab, replace=False).tolist()))
    return EagleHead(llm.model, config, weights, (1, 2, 4), tokens)


def with_heads(llm: LLM, heads: MedusaHeads | EagleHead, **settings) -> Loop:
    kind = "medusa" if isinstance(heads, MedusaHeads) else "eagle"
    names = ("beams", "max_draft", "p_min")
    own = {name: settings.pop(name) for name in names if name in settings}
    config = SpeculationConfig(kind, **{"p_min": 0.0, **own})
    loop = make_loop(llm, **settings)
    drafter = new_drafter(config, heads, loop.store, loop.scheduler.blocks, llm.config.vocab_size)
    loop.speculation = Speculation(config, drafter, SpeculationCounts())
    loop.runner.taps = loop.speculation.taps
    return loop


HEADS = {"medusa": medusa, "medusa with matrices": lambda llm: medusa(llm, 2, 2, False), "eagle": eagle}
HEADS["eagle, few tokens"] = lambda llm: eagle(llm, 100)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("blocks", [200, 50], ids=["room", "preemption"])
def test_every_request_gets_what_it_gets_alone(llm: LLM, heads: str, blocks: int) -> None:
    loop = with_heads(llm, HEADS[heads](llm), blocks=blocks, token_budget=80)
    check(llm, mixed_requests(llm, 12, 3), loop)
    assert loop.speculation.fault is None and loop.speculation.counts.drafts > 30


@pytest.mark.parametrize("beams", [1, 3])
def test_eagle_chains_and_trees(llm: LLM, beams: int) -> None:
    loop = with_heads(llm, eagle(llm), beams=beams, max_draft=7, token_budget=80)
    check(llm, mixed_requests(llm, 8, 4), loop)
    assert loop.speculation.fault is None and loop.speculation.counts.drafts > 30


@pytest.mark.parametrize("heads", ["medusa", "eagle"])
@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_single_prompts_and_several_answers(llm: LLM, heads: str, params: SamplingParams, tmp_path: Path) -> None:
    HEADS[heads](llm).save(tmp_path / "heads", {})
    config = SpeculationConfig(heads, p_min=0.0, model=str(tmp_path / "heads"))
    fast = load(llm.path, config=EngineConfig(speculation=config))
    for asked in (replace(params, max_tokens=20), replace(SAMPLED, max_tokens=20, n=3)):
        assert by_number(fast, asked) == by_number(llm, asked)
    assert fast.speculation.drafts > 10


def by_number(llm: LLM, params: SamplingParams) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for delta in llm.stream(prompt(3), params):
        found.setdefault(delta.index, []).append(delta.token)
    return found


# What a drafter proposes, against its equations computed anew for the whole text.


def outputs_of(llm: LLM, tokens: list[int], layers: tuple[int, ...]) -> list[np.ndarray]:
    """The outputs of layers for all tokens, (T, H) each, by a forward pass of the test's own."""
    model, cache = llm.model, ContiguousCache(llm.config, llm.model.ops)
    _, features = model.layer_outputs(mx.array(tokens), cache, layers)
    return np.split(np.array(features), len(layers), axis=1)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def rms(x: np.ndarray, weight: mx.array, eps: float) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * np.array(weight)


def rotated(x: np.ndarray, positions: np.ndarray, theta: float) -> np.ndarray:
    """x (T, H, D), pairs i and i + D/2."""
    half = x.shape[2] // 2
    angles = positions[:, None] * theta ** (-np.arange(half) / half)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def eagle_states(head: EagleHead, embedded: np.ndarray, features: np.ndarray) -> np.ndarray:
    """The head's outputs for all entries of one text, (T, H): EAGLE-3's layer in numpy, without a cache."""
    c = head.config
    w = {name: np.array(value, np.float64) for name, value in head.weights.items()}
    eps, count = c.rms_norm_eps, len(embedded)
    first = rms(embedded, w["midlayer.input_layernorm.weight"], eps)
    second = rms(features, w["midlayer.hidden_norm.weight"], eps)
    x = np.concatenate([first, second], axis=1)
    q, k, v = (
        (x @ w[f"midlayer.self_attn.{name}_proj.weight"].T).reshape(count, -1, c.head_dim) for name in ("q", "k", "v")
    )
    positions = np.arange(count)
    q, k = rotated(q, positions, c.rope.theta), rotated(k, positions, c.rope.theta)
    group = c.num_attention_heads // c.num_key_value_heads
    seen = np.zeros_like(q)
    for t in range(count):
        for h in range(c.num_attention_heads):
            odds = softmax(k[: t + 1, h // group] @ q[t, h] * c.head_dim**-0.5)
            seen[t, h] = odds @ v[: t + 1, h // group]
    y = features + seen.reshape(count, -1) @ w["midlayer.self_attn.o_proj.weight"].T
    normed = rms(y, w["midlayer.post_attention_layernorm.weight"], eps)
    gate, up = (normed @ w[f"midlayer.mlp.{name}_proj.weight"].T for name in ("gate", "up"))
    return y + (gate / (1 + np.exp(-gate)) * up) @ w["midlayer.mlp.down_proj.weight"].T


def eagle_chain(llm: LLM, head: EagleHead, tokens: list[int], count: int) -> list[int]:
    """The chain that follows a text: features of all its tokens but the last, then the head's own outputs."""
    parts = outputs_of(llm, tokens[:-1], head.taps)
    features = np.concatenate(parts, axis=1) @ np.array(head.weights["fc.weight"]).T
    following = tokens[1:]
    chain: list[int] = []
    for _ in range(count):
        embedded = np.array(llm.model.embed(mx.array(following)))
        out = eagle_states(head, embedded, features)[-1]
        logits = np.array(head.weights["lm_head.weight"]) @ rms(
            out, head.weights["norm.weight"], head.config.rms_norm_eps
        )
        chain.append(int(head.draft_tokens[int(logits.argmax())]))
        features = np.concatenate([features, out[None]])
        following = [*following, chain[-1]]
    return chain


def medusa_tokens(llm: LLM, heads: MedusaHeads, tokens: list[int]) -> list[int]:
    """Each head's likeliest token behind a text: from the last layer's output at the token before the last one."""
    (hidden,) = outputs_of(llm, tokens[:-1], (LAYERS - 1,))
    x = rms(hidden[-1], llm.model.weights["norm"]["weight"], llm.config.rms_norm_eps)
    found = []
    for blocks in heads.blocks:
        y = x
        for block in blocks:
            z = np.array(block["weight"]) @ y + np.array(block["bias"])
            y = y + z / (1 + np.exp(-z))
        found.append(int(np.array(llm.model.unembed(mx.array(y[None], mx.float32))).argmax()))
    return found


def watched(loop: Loop) -> list[tuple[list[int], DraftTree]]:
    """Every text and the draft behind it."""
    drafter = loop.speculation.drafter
    inner, found = drafter.propose, []

    def propose(sequences, limits):
        drafts = inner(sequences, limits)
        found.extend((list(s.tokens), draft) for s, draft in zip(sequences, drafts, strict=True))
        return drafts

    drafter.propose = propose
    return found


def requests_of(llm: LLM) -> list:
    """Prompts that fit into a step, and longer ones; greedy and sampled."""
    settings = replace(GREEDY, max_tokens=24), replace(SAMPLED, max_tokens=24)
    return [request(llm, f"{i}", prompt(i, 16 + 9 * i), settings[i % 2]) for i in range(5)]


@pytest.mark.parametrize("vocab", [320, 200])
def test_eagle_guesses_by_its_equations(llm: LLM, vocab: int) -> None:
    """In batches, in chunks, after rejected guesses: no features are shifted or stale."""
    head = eagle(llm, vocab)
    loop = with_heads(llm, head, beams=1, max_draft=3)
    found = watched(loop)
    run(loop, requests_of(llm))
    drafted = [(tokens, draft) for tokens, draft in found if draft.tokens]
    assert len(drafted) > 60 and len(drafted) > 0.95 * len(found)
    for tokens, draft in drafted[::3]:
        assert list(draft.tokens) == eagle_chain(llm, head, tokens, len(draft.tokens))


def test_eagle_guesses_for_every_answer_of_a_request(llm: LLM) -> None:
    """The features of the prompt are those of the first answer's; the other answers copied its last block."""
    head = eagle(llm)
    loop = with_heads(llm, head, beams=1, max_draft=2)
    found = watched(loop)
    run(loop, [request(llm, "one", prompt(5, 18), replace(SAMPLED, max_tokens=16, n=3))])
    drafted = [(tokens, draft) for tokens, draft in found if draft.tokens]
    assert len(drafted) > 0.9 * len(found) > 30
    for tokens, draft in drafted[::2]:
        assert list(draft.tokens) == eagle_chain(llm, head, tokens, len(draft.tokens))
    assert not loop.speculation.drafter._prompts


def test_eagle_uses_the_entries_of_a_shared_prefix(llm: LLM) -> None:
    """The last entry of a shared block took the other text's next token in, so a few guesses differ."""
    head = eagle(llm)
    loop = with_heads(llm, head, beams=1, max_draft=1)
    run(loop, [request(llm, "first", [*prompt(1, 16), *prompt(2, 9)], GREEDY)])
    found = watched(loop)
    run(loop, [request(llm, "second", [*prompt(1, 16), *prompt(3, 9)], replace(GREEDY, max_tokens=24))])
    same = [list(draft.tokens) == eagle_chain(llm, head, tokens, 1) for tokens, draft in found]
    assert len(same) > 20 and sum(same) > 0.75 * len(same)


def test_medusa_guesses_by_its_equations(llm: LLM) -> None:
    heads = medusa(llm)
    loop = with_heads(llm, heads, max_draft=12)
    found = watched(loop)
    run(loop, requests_of(llm))
    assert len(found) > 60 and all(draft.tokens for _, draft in found)
    for tokens, draft in found[::3]:
        want = medusa_tokens(llm, heads, tokens)
        line = want[: max(draft.depths())]
        assert draft.find(line) is not None and draft.tokens[0] == want[0]


def test_eagle_trees_hold_the_likeliest_lines(llm: LLM) -> None:
    """The likeliest token comes first, and the greedy line behind it is nearly always in the tree."""
    head = eagle(llm, 40)
    loop = with_heads(llm, head, beams=4, max_draft=8, token_budget=80)
    found = watched(loop)
    run(loop, requests_of(llm)[:2])
    checked = 0
    for tokens, draft in found[:12]:
        if draft.tokens:
            draft.check()
            assert draft.tokens[0] == eagle_chain(llm, head, tokens, 1)[0]
            line = eagle_chain(llm, head, tokens, 2)
            checked += draft.find(line) is not None
    assert checked >= 8


def test_the_likeliest_lines_make_the_tree() -> None:
    places = [Ranked([1, 2, 3], np.log([0.6, 0.3, 0.1])), Ranked([4, 5], np.log([0.7, 0.3]))]
    tree = likeliest_tree(places, 5, -100.0)
    assert tree == DraftTree((1, 4, 2, 4, 5), (-1, 0, -1, 2, 0))
    assert len(likeliest_tree(places, 63, -100.0)) == 9
    assert likeliest_tree(places, 63, float(np.log(0.35))) == DraftTree((1, 4), (-1, 0))


# Files


def test_medusa_files(llm: LLM, tmp_path: Path) -> None:
    for shared in (True, False):
        heads = medusa(llm, 2, 2, shared)
        heads.save(tmp_path / f"{shared}", {"note": 1})
        read = MedusaHeads.from_dir(tmp_path / f"{shared}", llm.model)
        assert len(read) == 2 and (read.outputs[0] is None) == shared
        for mine, its in zip(heads.blocks[1], read.blocks[1], strict=True):
            for name, array in mine.items():
                np.testing.assert_allclose(np.array(its[name]), np.array(array), atol=0.01)


def test_eagle_files(llm: LLM, tmp_path: Path) -> None:
    head = eagle(llm, 200)
    head.save(tmp_path / "head", {})
    read = EagleHead.from_dir(tmp_path / "head", llm.model)
    assert read.taps == head.taps and read.config == head.config
    assert read.draft_tokens.tolist() == head.draft_tokens.tolist()
    for name, weight in head.weights.items():
        np.testing.assert_allclose(np.array(read.weights[name]), np.array(weight), atol=0.03)


def changed(path: Path, config: dict | None = None, drop: str = "", add: dict | None = None) -> Path:
    """Change a head's files in place."""
    if config is not None:
        data = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**data, **config}))
    tensors = dict(mx.load(str(path / "model.safetensors")))
    tensors.pop(drop, None)
    mx.eval(tensors)
    mx.save_safetensors(str(path / "model.safetensors"), {**tensors, **(add or {})})
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": {"hidden_size": 65}}, r"hidden_size: expected the model's 64, found 65"),
        ({"config": {"vocab_size": 321}}, r"vocab_size: expected the model's 320, found 321"),
        ({"config": {"base_model_fingerprint": "0123"}}, r"found '0123': these heads were trained for another model"),
        ({"drop": "fc.weight"}, r"fc.weight: expected the shape \(64, 192\), found no such tensor"),
        ({"add": {"extra.weight": mx.zeros((2,))}}, r"expected no further tensors, found extra.weight"),
        ({"add": {"norm.weight": mx.zeros((2,))}}, r"norm.weight: expected the shape \(64,\), found \(2,\)"),
        ({"add": {"d2t": mx.full((200,), 400)}}, r"d2t: expected ids from 0 to 319"),
        ({"add": {"t2d": mx.zeros((320,), mx.bool_)}}, r"t2d: expected the tokens that d2t names"),
        (
            {"config": {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 2, 9]}}},
            r"expected 3 layers from 1 to 6",
        ),
        ({"config": {"draft_vocab_size": 0}}, r"draft_vocab_size: expected an integer from 1"),
    ],
)
def test_broken_files_are_refused(llm: LLM, tmp_path: Path, change: dict, message: str) -> None:
    eagle(llm, 200).save(tmp_path / "head", {})
    with pytest.raises(ValueError, match=message):
        EagleHead.from_dir(changed(tmp_path / "head", **change), llm.model)


def test_missing_and_unsafe_files(llm: LLM, tmp_path: Path) -> None:
    medusa(llm).save(tmp_path, {})
    changed(tmp_path, drop="1.0.linear.bias")
    with pytest.raises(ValueError, match=r"1.0.linear.bias: expected the shape \(64,\), found no such tensor"):
        MedusaHeads.from_dir(tmp_path, llm.model)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"found neither; pytorch_model.bin may hold code: convert it to safetensors"):
        MedusaHeads.from_dir(tmp_path, llm.model)
    with pytest.raises(ValueError, match="the drafter medusa needs Medusa heads, found none named"):
        load(llm.path, config=EngineConfig(speculation=SpeculationConfig("medusa")))
    with pytest.raises(ValueError, match="beams: expected an integer from 1 to 16, found 0"):
        SpeculationConfig("eagle", beams=0)

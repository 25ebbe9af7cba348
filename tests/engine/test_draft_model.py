"""The draft model: whatever it guesses, answers are those without it, and what it computed is used again."""

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
from tiny_llm.config import EngineConfig, SchedulerConfig
from tiny_llm.config.serving import ServingConfig
from tiny_llm.config.speculation import SpeculationConfig
from tiny_llm.engine import draft_model
from tiny_llm.engine.blocks import BlockPool
from tiny_llm.engine.draft_model import FilledBlocks, common_length, likely, widened
from tiny_llm.engine.drafters import new_drafter
from tiny_llm.engine.events import Event
from tiny_llm.engine.loop import Loop
from tiny_llm.engine.request import Request
from tiny_llm.engine.request import Sequence as Running
from tiny_llm.engine.speculation import Drafting, Speculation, SpeculationCounts

DRAFT = SpeculationConfig("draft", 4, p_min=0.0)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    return load(make_model(tmp_path_factory.mktemp("target")))


@pytest.fixture(scope="module")
def near(llm: LLM, tmp_path_factory: pytest.TempPathFactory) -> LLM:
    """A draft model that is often right: the model with changed weights."""
    path = make_model(tmp_path_factory.mktemp("near"))
    found = load(path, config=EngineConfig(kernels="mlx"))
    mx.random.seed(3)
    for layer in found.model.weights["layers"]:
        old = layer["down_proj"]["weight"]
        layer["down_proj"]["weight"] = old + 0.15 * mx.abs(old).mean() * mx.random.normal(old.shape)
    return found


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    """A draft model that is nearly always wrong, of another shape."""
    return load(make_model(tmp_path_factory.mktemp("far"), seed=9, num_hidden_layers=1))


def drafting(llm: LLM, helper: LLM, config: SpeculationConfig = DRAFT, **settings) -> Loop:
    loop = make_loop(llm, **settings)
    scheduler = loop.scheduler
    drafter = new_drafter(config, helper.model, loop.store, scheduler.blocks, llm.config.vocab_size)
    assert drafter is not None
    loop.speculation = Speculation(config, drafter, SpeculationCounts())
    return loop


@pytest.mark.parametrize("helper", ["llm", "near", "far"])
@pytest.mark.parametrize("blocks", [200, 45], ids=["room", "preemption"])
@pytest.mark.parametrize("seed", range(2))
def test_every_request_gets_what_it_gets_alone(
    llm: LLM, helper: str, blocks: int, seed: int, request: pytest.FixtureRequest
) -> None:
    requests = mixed_requests(llm, 12, seed)
    loop = drafting(llm, request.getfixturevalue(helper), blocks=blocks)
    check(llm, requests, loop)
    counts = loop.speculation.counts
    assert loop.speculation.fault is None and counts.drafts > 0
    least, most = {"llm": (0.9, 1.0), "near": (0.2, 0.95), "far": (0.0, 0.2)}[helper]
    assert least <= counts.acceptance_rate <= most


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_the_model_itself_is_always_right(llm: LLM, params: SamplingParams) -> None:
    """Sampled, too: it draws with the same random numbers. So a guess that is one token behind would be seen."""
    requests = [request(llm, f"{i}", prompt(i, 5 + 7 * i), replace(params, max_tokens=26)) for i in range(4)]
    loop = drafting(llm, llm)
    check(llm, requests, loop)
    assert loop.speculation.counts.acceptance_rate == 1.0
    penalty = replace(params, max_tokens=26, repetition_penalty=1.5, presence_penalty=0.5)
    loop = drafting(llm, llm)
    check(llm, [replace(one, params=penalty) for one in requests], loop)
    assert loop.speculation.counts.acceptance_rate == 1.0


def hidden_states_counted(helper: LLM, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    sizes: list[int] = []
    whole = type(helper.model).hidden_states

    def counted(self, tokens, cache):
        if self is helper.model:
            sizes.append(tokens.shape[0])
        return whole(self, tokens, cache)

    monkeypatch.setattr(type(helper.model), "hidden_states", counted)
    return sizes


def test_a_text_is_computed_once(llm: LLM, far: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second request with the same beginning, and a later turn, find what the draft model has computed."""
    sizes = hidden_states_counted(far, monkeypatch)
    loop = drafting(llm, far)
    first = request(llm, "first", prompt(1, 40), replace(GREEDY, max_tokens=6))
    (answer,) = run(loop, [first])["first"].values()
    assert 40 <= sum(sizes) <= 40 + 5 * (2 + 3)
    sizes.clear()
    later = request(llm, "later", [*first.tokens, *(d.token for d in answer), 7, 8], replace(GREEDY, max_tokens=4))
    run(loop, [later])
    assert sum(sizes) < 35


def test_the_draft_model_holds_the_keys_and_values_of_the_text(llm: LLM, near: LLM) -> None:
    """After right and wrong guesses, in the slots of the sequence's own blocks."""
    loop = drafting(llm, near)
    loop.add(request(llm, "one", prompt(7), replace(GREEDY, max_tokens=60)))
    for _ in range(14):
        loop.step()
    (sequence,) = loop.scheduler.running
    drafter = loop.speculation.drafter
    count = drafter.filled.count(sequence)
    assert count > 30 and 0 < loop.speculation.counts.acceptance_rate < 1
    cache = ContiguousCache(near.config, near.model.ops)
    near.model.hidden_states(mx.array(sequence.tokens[:count]), cache)
    for layer in range(near.config.num_hidden_layers):
        mine = drafter.store.sequence(layer, sequence.block_table, count)
        for found, want in zip(mine, (cache.keys[layer], cache.values[layer]), strict=True):
            np.testing.assert_allclose(np.array(found), np.array(want[:, :count]), atol=1e-4)


def test_a_long_text_is_computed_over_several_steps(llm: LLM, near: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding goes on meanwhile, without guesses."""
    monkeypatch.setattr(draft_model, "MOST_TOKENS", 16)
    sizes = hidden_states_counted(near, monkeypatch)
    requests = [request(llm, f"{i}", prompt(i, 60), replace(GREEDY, max_tokens=30)) for i in range(2)]
    loop = drafting(llm, near)
    check(llm, requests, loop)
    assert max(sizes) <= 16 and loop.speculation.counts.accepted > 0


def test_blocks_that_come_from_disk_are_computed_anew(llm: LLM, tmp_path: Path) -> None:
    """The files hold the model's K and V alone; a draft model that is the model itself stays right."""
    slot = 2 * llm.config.num_hidden_layers * llm.config.num_key_value_heads * llm.config.head_dim * 4
    scheduler = SchedulerConfig(token_budget=40, max_sequences=4)
    serving = ServingConfig(30 * 4 * slot, 4, disk_folder=tmp_path, scheduler=scheduler)
    requests = [request(llm, f"{i}", prompt(i % 5, 24), replace(GREEDY, max_tokens=12)) for i in range(15)]
    events: list[Event] = []
    loop = Loop(llm.model, llm.tokenizer, serving, events.append)
    drafter = new_drafter(DRAFT, llm.model, loop.store, loop.scheduler.blocks, llm.config.vocab_size)
    loop.speculation = Speculation(DRAFT, drafter, SpeculationCounts())
    check(llm, requests, loop)
    assert {"evict", "load"} <= {event.kind for event in events}
    assert loop.speculation.fault is None and loop.speculation.counts.acceptance_rate > 0.95


@pytest.mark.filterwarnings("ignore:draft_model:RuntimeWarning")
@pytest.mark.parametrize("cache", ["contiguous", "quantized"])
@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_single_prompts_and_several_answers(llm: LLM, cache: str, params: SamplingParams) -> None:
    """On whole caches, which are forked for the answers, trimmed and kept for the next turn."""
    config = EngineConfig(cache=cache, kernels="mlx")
    plain = load(llm.path, config=config)
    fast = load(llm.path, config=replace(config, speculation=replace(DRAFT, model=str(llm.path))))
    tokens = prompt(3)
    for asked in (replace(params, max_tokens=20), replace(SAMPLED, max_tokens=20, n=3)):
        want = [answer.tokens for answer in several(plain, tokens, asked)]
        assert [answer.tokens for answer in several(fast, tokens, asked)] == want
        tokens = [*tokens, *want[0], 5]
    assert fast.speculation.acceptance_rate > (0.9 if cache == "contiguous" else 0.6)  # the draft model's is not packed


def several(llm: LLM, tokens: list[int], params: SamplingParams) -> list:
    found: dict[int, list[int]] = {}
    for delta in llm.stream(tokens, params):
        found.setdefault(delta.index, []).append(delta.token)
    return [type("Answer", (), {"tokens": found[index]}) for index in sorted(found)]


@pytest.mark.filterwarnings("ignore:draft_model:RuntimeWarning")
def test_lists_of_prompts(llm: LLM) -> None:
    plain = load(llm.path)
    fast = load(llm.path, config=EngineConfig(speculation=replace(DRAFT, model=str(llm.path))))
    prompts = [prompt(i) for i in range(5)]
    want = [answer.tokens for answer in plain.generate(prompts, SAMPLED)]
    assert [answer.tokens for answer in fast.generate(prompts, SAMPLED)] == want
    assert fast.speculation.acceptance_rate > 0.9


@pytest.mark.parametrize("vocab_size", [304, 352])
def test_a_vocabulary_may_be_padded_otherwise(llm: LLM, tmp_path: Path, vocab_size: int) -> None:
    """A smaller one never proposes the missing tokens, and drafts nothing behind them."""
    helper = load(make_model(tmp_path / "helper", vocab_size=vocab_size))
    requests = [
        request(llm, "known", prompt(1), replace(GREEDY, max_tokens=8)),
        request(llm, "unknown", [5, 310, 6], replace(GREEDY, max_tokens=8)),
    ]
    loop = drafting(llm, helper)
    check(llm, requests, loop)
    assert loop.speculation.fault is None and loop.speculation.counts.drafts > 0


def test_logits_of_another_width() -> None:
    logits = mx.array([[1.0, 2.0, 3.0]])
    assert widened(logits, 2).tolist() == [[1.0, 2.0]]
    assert widened(logits, 4).tolist() == [[1.0, 2.0, 3.0, -float("inf")]]


def test_guesses_end_where_they_become_unlikely() -> None:
    assert likely([1, 2, 3], [0.9, 0.5, 0.9], 0.4) == [1, 2, 3]
    assert likely([1, 2, 3], [0.9, 0.5, 0.9], 0.41) == [1, 2]
    assert likely([1, 2, 3], [0.2, 1.0, 1.0], 0.41) == []


def test_filled_blocks() -> None:
    """A block that is given to another sequence, and tokens that were rejected, count as missing."""
    blocks = BlockPool(6, 4)
    filled = FilledBlocks(blocks)
    one = Running(Request("one", (1, 2, 3, 4, 5, 6, 7)))
    one.block_table = [blocks.allocate(), blocks.allocate()]
    assert filled.count(one) == 0
    filled.note(one.block_table, 0, [1, 2, 3, 4, 5])
    assert filled.count(one) == 5
    filled.note(one.block_table, 5, [6, 9, 9])
    assert filled.count(one) == 6
    one.tokens.append(8)
    filled.note(one.block_table, 6, [7])
    assert filled.count(one) == 7
    blocks.free(one.block_table[1])
    assert blocks.allocate() == one.block_table[1]
    assert filled.count(one) == 4
    assert common_length([1, 2, 3], [1, 2]) == 2 and common_length([1, 2, 3], [1, 5, 3]) == 1


def changed_tokenizer(path: Path) -> Path:
    data = json.loads((path / "tokenizer.json").read_text())
    vocab = data["model"]["vocab"]
    first, second = list(vocab)[40:42]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    (path / "tokenizer.json").write_text(json.dumps(data))
    return path


def test_another_tokenizer_is_refused(llm: LLM, tmp_path: Path) -> None:
    other = changed_tokenizer(make_model(tmp_path / "other"))
    config = EngineConfig(speculation=replace(DRAFT, model=str(other)))
    with pytest.raises(ValueError, match=r"draft_model: .*other: expected the model's tokenizer.*: token \d+ is '"):
        load(llm.path, config=config)


def test_a_draft_model_must_be_named(llm: LLM) -> None:
    with pytest.raises(
        ValueError,
        match="draft_model: the drafter draft needs a smaller model with the same tokenizer, found none named",
    ):
        load(llm.path, config=EngineConfig(speculation=DRAFT))
    with pytest.raises(ValueError, match=r"no-such-model.*expected"):
        load(llm.path, config=EngineConfig(speculation=replace(DRAFT, model="no-such-model")))
    with pytest.raises(ValueError, match="draft_model: 'x' is for draft, medusa, eagle, found suffix; leave it out"):
        SpeculationConfig("suffix", model="x")


def test_a_larger_draft_model_is_warned_of(llm: LLM, tmp_path: Path) -> None:
    large = make_model(tmp_path / "large", num_hidden_layers=3)
    with pytest.warns(RuntimeWarning, match="draft_model: .*large multiplies each token with .* name a smaller model"):
        load(llm.path, config=EngineConfig(speculation=replace(DRAFT, model=str(large))))


def test_the_model_inside_has_a_draft_model() -> None:
    llm = load(config=EngineConfig(speculation=replace(DRAFT, max_draft=3)))
    plain = load()
    chat = [{"role": "user", "content": "What is a KV cache?"}]
    params = SamplingParams(temperature=0.7, seed=2, max_tokens=40)
    assert llm.generate(chat, params).tokens == plain.generate(chat, params).tokens
    assert llm.speculation.acceptance_rate > 0.6


def test_the_memory_of_a_pool_covers_the_draft_model(llm: LLM, far: LLM) -> None:
    """Its K and V and the model's together stay within kv_bytes."""
    budget = 1_000_000
    loop = Loop(
        llm.model,
        llm.tokenizer,
        ServingConfig(kv_bytes=budget, block_size=4),
        engine=EngineConfig(speculation=replace(DRAFT, model="x")),
        drafting=Drafting(far.model),
    )
    together = loop.store.nbytes + loop.speculation.drafter.store.nbytes
    assert 0.98 * budget < together <= budget

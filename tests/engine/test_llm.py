"""`load` and `LLM`: what the Python API promises."""

import warnings
from dataclasses import replace
from itertools import count
from pathlib import Path

import mlx.core as mx
import pytest

from tests.support import make_model
from tiny_llm import LLM, SamplingParams, load
from tiny_llm.cache.contiguous import ContiguousCache
from tiny_llm.config import EngineConfig
from tiny_llm.engine import llm as llm_module

GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
CHAT = [{"role": "user", "content": "hello there"}]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def llm(path: Path) -> LLM:
    return load(path)


def fresh(path: Path, prompt, params: SamplingParams = GREEDY) -> str:
    """The answer of an LLM that has seen nothing before."""
    return load(path).generate(prompt, params).text


def test_text_chat_and_ids(llm: LLM) -> None:
    text = llm.tokenizer.render(CHAT)
    answers = [llm.generate(prompt, GREEDY) for prompt in (CHAT, text, llm.tokenizer.encode(text))]
    assert len({answer.text for answer in answers}) == 1
    assert answers[0].text == llm.tokenizer.decode(answers[0].tokens)
    assert answers[0].finish_reason == "length" and len(answers[0].tokens) == 12


def test_template_settings_reach_the_prompt(llm: LLM) -> None:
    thinking, not_thinking = (llm.encode(CHAT, {"enable_thinking": on}) for on in (True, False))
    assert len(not_thinking) > len(thinking)


def test_plain_and_fused_write_the_same(path: Path) -> None:
    texts = {load(path, config=EngineConfig(ops=ops)).generate(CHAT, GREEDY).text for ops in ("plain", "fused")}
    assert len(texts) == 1


def test_a_second_turn_reads_only_what_is_new(path: Path, llm: LLM) -> None:
    first = llm.generate(CHAT, GREEDY)
    turns = [*CHAT, {"role": "assistant", "content": first.text}, {"role": "user", "content": "the fox"}]
    second = llm.generate(turns, GREEDY)
    assert second.text == fresh(path, turns)
    assert second.stats.cached_tokens >= first.stats.prompt_tokens - 4  # up to where the template ends a turn
    assert second.stats.prompt_tokens == len(llm.encode(turns))


def test_the_same_prompt_again_and_a_shorter_one(path: Path, llm: LLM) -> None:
    tokens = llm.encode(CHAT)
    first = llm.generate(tokens, GREEDY)
    again = llm.generate(tokens, GREEDY)
    assert (again.text, again.stats.cached_tokens) == (first.text, len(tokens) - 1)
    assert llm.generate(tokens[:5], GREEDY).text == fresh(path, tokens[:5])


@pytest.mark.parametrize("settings", [{"n": 3}, {"beam_width": 3, "n": 2}, {"max_tokens": 1}])
def test_the_cache_is_right_after_samples_beams_and_one_token(path: Path, llm: LLM, settings: dict) -> None:
    llm.generate("the quick", SamplingParams(**{"max_tokens": 6, "seed": 1, **settings}))
    assert llm.generate("the quick brown fox", GREEDY).text == fresh(path, "the quick brown fox")


def test_an_answer_cut_short_is_gone_on_from(path: Path, llm: LLM) -> None:
    """Its last token was said and never computed: the cache holds one token less than the text."""
    for params in (replace(GREEDY, max_tokens=4), replace(GREEDY, max_tokens=1), replace(GREEDY, max_tokens=4, n=2)):
        tokens = llm.encode(CHAT)
        answer = llm.generate(tokens, params)
        last = answer[-1] if isinstance(answer, list) else answer
        longer = [*tokens, *last.tokens, 5]
        after = llm.generate(longer, GREEDY)
        assert after.text == fresh(path, longer)
        assert after.stats.cached_tokens == len(longer) - 2


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_an_abandoned_stream_leaves_a_right_cache(path: Path, llm: LLM, steps: int) -> None:
    stream = llm.stream(CHAT, GREEDY)
    for _ in range(steps):
        next(stream)
    stream.close()
    assert llm.generate(CHAT, GREEDY).text == fresh(path, CHAT)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("some other fault")])
@pytest.mark.parametrize("at_once", [False, True])
def test_a_step_that_dies_half_way_leaves_no_trace(
    path: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool, error: BaseException
) -> None:
    """Ctrl-C within the third step, or a fault in each step from there on.

    It comes between two layers; or, `at_once`, where all layers are one operation, before the cache gets the written
    buffers. The engine computes a sequence again after a fault, layer by layer, so that these steps fail as well.
    """
    llm = load(path, config=EngineConfig(kernels=None if at_once else "mlx"))
    if at_once and not llm.model.ops.native:
        pytest.skip("the CPU kernels can't be built here")
    layers = llm.config.num_hidden_layers
    names = ["replace_buffers", "attend"] if at_once else ["attend"]
    calls = count()
    before = layers + 1 if at_once else 2 * layers + 1  # calls that succeed: the prompt is computed layer by layer

    def failing(method):
        def call(*args):
            if next(calls) >= before:
                raise error
            return method(*args)

        return call

    with monkeypatch.context() as patch:
        for name in names:
            patch.setattr(ContiguousCache, name, failing(getattr(ContiguousCache, name)))
        with pytest.raises(type(error) if isinstance(error, Exception) else error):
            llm.generate(CHAT, GREEDY)
    assert llm.generate(CHAT, GREEDY).text == fresh(path, CHAT)


def test_a_fault_of_one_operation_alone_is_recovered_from(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each fault the sequence is computed again, layer by layer, which gives it one more token."""
    llm = load(path)
    if not llm.model.ops.native:
        pytest.skip("the CPU kernels can't be built here")

    def failing(*_args):
        raise RuntimeError("a fault")

    monkeypatch.setattr(ContiguousCache, "replace_buffers", failing)
    found = llm.generate(CHAT, GREEDY).text
    monkeypatch.undo()
    assert found == fresh(path, CHAT)


def test_out_of_memory_says_what_to_do(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args):
        raise RuntimeError("[malloc] Unable to allocate 99999999999 bytes.")

    monkeypatch.setattr(ContiguousCache, "attend", full)
    with pytest.raises(MemoryError, match="99999999999 bytes.*smaller --max-context"):
        llm.generate(CHAT, GREEDY)


def test_n_and_beams_return_lists(llm: LLM) -> None:
    samples = llm.generate(CHAT, SamplingParams(n=3, max_tokens=5, seed=0))
    assert [sample.index for sample in samples] == [0, 1, 2]
    beams = llm.generate(CHAT, SamplingParams(beam_width=4, n=2, max_tokens=5, ignore_eos=True))
    assert len(beams) == 2 and all(len(beam.tokens) == 5 for beam in beams)


def test_settings_come_from_the_request_then_the_model(llm: LLM) -> None:
    assert llm.defaults == {"temperature": 0.6, "top_k": 20, "top_p": 0.95}
    params = llm.builder.resolve(None, {"temperature": 0.1, "max_tokens": 3})
    assert (params.temperature, params.top_k, params.top_p, params.max_tokens) == (0.1, 20, 0.95, 3)
    assert llm.builder.resolve(GREEDY, {}) is GREEDY
    with pytest.raises(ValueError, match="temprature: unknown"):
        llm.generate(CHAT, temprature=1)
    with pytest.raises(ValueError, match="top_k: expected either"):
        llm.generate(CHAT, GREEDY, top_k=3)


def test_figures_of_a_request(llm: LLM) -> None:
    stats = llm.generate(CHAT, GREEDY).stats
    assert stats == llm.last_stats
    assert (stats.prompt_tokens, stats.cached_tokens, stats.generated_tokens) == (len(llm.encode(CHAT)), 0, 12)
    assert stats.time_to_first_token > 0 and stats.peak_memory > 0
    assert stats.decode_tps == pytest.approx(11 / stats.decode_time)
    assert stats.prefill_tps == pytest.approx(stats.prompt_tokens / stats.time_to_first_token)


def test_refusals(path: Path, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        llm.stream("")
    with pytest.raises(ValueError, match=r"prompt: expected a text, chat messages or token ids, found \[1, 'b'\]"):
        llm.generate([1, "b"])
    with pytest.raises(ValueError, match="leave no room .* context of 16"):
        load(path, config=EngineConfig(max_context=16)).generate([1] * 16)
    monkeypatch.setattr(llm_module, "POCKET", path / "nothing")
    with pytest.raises(ValueError, match="--model qwen3-0.6b"):
        load()
    with pytest.raises(ValueError, match="nowhere"):
        load(path / "nowhere")


KINDS = {
    "rotating": EngineConfig(cache="rotating", window=32, sinks=2),
    "8 bits": EngineConfig(cache="quantized", kv_group_size=32),
    "4 bits": EngineConfig(cache="quantized", kv_bits=4),
    "rotating, 8 bits": EngineConfig(cache="rotating", window=32, sinks=2, kv_bits=8),
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_caches_go_on_from_what_they_hold(path: Path, kind: str) -> None:
    """A second turn, a shorter prompt, and one that a window has moved past: each as from an empty cache."""
    held, long = load(path, config=KINDS[kind]), [(7 * i) % 300 for i in range(400)]
    prompts = [[5, 6, 7, 8], [5, 6, 7, 8, 9, 10], [5, 6], long, long[:390], long[:40], [1, *long]]
    for prompt in prompts:
        answer = held.generate(prompt, GREEDY)
        want = load(path, config=KINDS[kind]).generate(prompt, GREEDY)
        if kind == "rotating":
            assert answer.tokens == want.tokens
        assert answer.stats.cached_tokens <= len(prompt) - 1 and want.stats.cached_tokens == 0
        assert len(answer.tokens) == len(want.tokens)
    assert held.kept()[0].offset == 401 + 11


def test_a_window_bounds_the_memory(path: Path) -> None:
    for kind, bits in (("rotating", 32), ("rotating, 8 bits", 8 + 2 * 32 / 32)):  # two scalings for 32 numbers
        llm = load(path, config=KINDS[kind])
        llm.generate([(7 * i) % 300 for i in range(450)], GREEDY)
        assert llm.kept()[0].nbytes == (32 + 256) * 2 * 2 * 2 * 32 * bits / 8  # slots; K and V, layers, heads, width


def test_a_request_goes_on_from_a_file(path: Path, llm: LLM, tmp_path: Path) -> None:
    tokens, file = llm.encode(CHAT), tmp_path / "prompt.safetensors"
    first = llm.generate(tokens, GREEDY)
    llm.save_cache(file)
    again = load(path)
    assert again.load_cache(file) == len(tokens) + 11
    answer = again.generate([*tokens, *first.tokens, 5], GREEDY)
    assert answer.stats.cached_tokens == len(tokens) + 11
    assert answer.text == fresh(path, [*tokens, *first.tokens, 5])
    other = load(make_model(tmp_path / "other", seed=1))
    with pytest.raises(ValueError, match="is of another model"):
        other.load_cache(file)
    assert other.generate(tokens, GREEDY).stats.cached_tokens == 0


def test_what_a_cache_cannot_hold_is_said_before_loading(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm_module.loader, "load_weights", None)
    with pytest.raises(ValueError, match=r"kv_group_size: .* head_dim \(32\), found 64"):
        load(path, config=EngineConfig(cache="quantized", kv_group_size=64))


def test_the_estimate_knows_the_cache(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs: list[int] = []
    check = llm_module.loader.check_memory

    def noted(*args, **options):
        needs.append(check(*args, **options).kv_cache)

    monkeypatch.setattr(llm_module.loader, "check_memory", noted)
    token = 2 * 2 * 2 * 32  # K and V, layers, heads, width
    for config in (EngineConfig(), *KINDS.values()):
        load(path, config=config)
    width = 4 if llm_module.mx.default_device() != llm_module.mx.gpu else 2
    want = [512 * token * width, (32 + 256) * token * width]
    want += [slots * (token * bits // 8 + token // 32 * 2 * width) for slots, bits in ((512, 8), (512, 4), (288, 8))]
    assert needs == want


@pytest.mark.skipif(mx.default_device() == mx.gpu, reason="a GPU computes in 16 bits as fast")
def test_slow_numbers_are_told(path: Path) -> None:
    """A CPU took minutes for a sentence, and nothing said why."""
    with pytest.warns(RuntimeWarning, match="dtype float16: a CPU computes .* slower in 16 bits"):
        load(path, config=EngineConfig(dtype="float16"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(path, config=EngineConfig(dtype="float32"))

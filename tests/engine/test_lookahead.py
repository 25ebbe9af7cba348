"""Lookahead decoding: windows move up by the model's own tokens, and never change an answer."""

from dataclasses import replace

import mlx.core as mx
import pytest

from tests.engine.test_loop import GREEDY, SAMPLED, make_loop, mixed_requests, request, run
from tests.engine.test_speculation import check, prompt
from tests.support import make_model
from tiny_llm import LLM, SamplingParams, load
from tiny_llm.cache.recompute import RecomputeCache
from tiny_llm.config import EngineConfig
from tiny_llm.config.speculation import SpeculationConfig
from tiny_llm.decode.acceptance import DraftTree
from tiny_llm.engine.lookahead import DEPTH, MOST_LINES, LookaheadDrafter, Window
from tiny_llm.engine.loop import Loop
from tiny_llm.engine.speculation import Speculation, SpeculationCounts

CONFIG = SpeculationConfig("lookahead")


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    return load(make_model(tmp_path_factory.mktemp("model")))


def ahead(llm: LLM, drafter: LookaheadDrafter | None = None, **settings) -> Loop:
    loop = make_loop(llm, **settings)
    loop.speculation = Speculation(CONFIG, drafter or LookaheadDrafter(), SpeculationCounts())
    return loop


@pytest.mark.parametrize("blocks", [200, 45], ids=["room", "preemption"])
@pytest.mark.parametrize("seed", range(2))
def test_every_request_gets_what_it_gets_alone(llm: LLM, blocks: int, seed: int) -> None:
    loop = ahead(llm, blocks=blocks, token_budget=120)
    check(llm, mixed_requests(llm, 10, seed), loop)
    counts = loop.speculation.counts
    assert loop.speculation.fault is None and counts.accepted > 0


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_single_prompts(llm: LLM, params: SamplingParams) -> None:
    """Trees in a whole cache."""
    fast = load(llm.path, config=EngineConfig(speculation=CONFIG))
    for seed in range(3):
        assert fast.generate(prompt(seed), params).tokens == llm.generate(prompt(seed), params).tokens
    assert fast.speculation.drafted > 20


def test_trees_in_the_kernel_that_reads_pages(llm: LLM) -> None:
    """The simulator's paged kernel verifies trees of several sequences by words of bits."""
    kernels = load(llm.path, config=EngineConfig(kernels="sim"))
    loop = ahead(kernels, blocks=60, token_budget=60)
    settings = replace(GREEDY, max_tokens=8)
    check(llm, [request(kernels, str(seed), prompt(seed, 12), settings) for seed in range(2)], loop)
    assert loop.speculation.counts.drafted > 0


class Watched(LookaheadDrafter):
    """Compares each column's new token with the model's own after the text and the column's line."""

    def __init__(self, llm: LLM):
        super().__init__()
        self.llm, self.texts, self.compared = llm, {}, 0

    def propose(self, sequences, limits) -> list[DraftTree]:
        self.texts = {}
        for sequence, limit in zip(sequences, limits, strict=True):
            if limit == CONFIG.most:  # near the end of an answer a window is cut
                self.texts[sequence.id] = list(sequence.tokens)
        return super().propose(sequences, limits)

    def observe(self, seen) -> None:
        lines = {name: window.lines() for name, window in self._windows.items() if name in self.texts}
        super().observe(seen)
        for name, found in lines.items():
            for line, token in zip(found, self._windows[name].levels[-1], strict=True):
                assert token == self.next_token([*self.texts[name], *line])
                self.compared += 1

    def next_token(self, tokens: list[int]) -> int:
        cache = RecomputeCache(self.llm.config, self.llm.model.ops)
        return int(self.llm.model(mx.array(tokens), cache)[-1].argmax())


def test_the_model_guesses_behind_each_column(llm: LLM) -> None:
    drafter = Watched(llm)
    loop = ahead(llm, drafter, token_budget=80)
    run(loop, [request(llm, f"{i}", prompt(i), replace(GREEDY, max_tokens=50)) for i in range(2)])
    assert drafter.compared > 60 and loop.speculation.fault is None


def test_a_window_moves_up() -> None:
    window = Window([[1, 2]])
    assert window.lines() == [[1], [1, 2]]
    window.shift([3, 4])
    assert window.levels == [[1, 2], [3, 4]] and window.lines() == [[1, 3], [1, 2, 4]]
    window.shift([5, 6])
    window.shift([7, 8])
    assert window.levels == [[3, 4], [5, 6], [7, 8]] and len(window.levels) == DEPTH
    assert window.known(1) == [(3, 5, 7), (3, 5), (3,)] and window.known(2)[0] == (4, 6, 8)


def test_the_pool_forgets_the_oldest_lines() -> None:
    window = Window([[1]])
    for token in range(MOST_LINES + 3):
        window.keep(1, (token,))
    window.keep(1, (3,))
    assert len(window.pool[1]) == MOST_LINES
    assert window.known(1) == [(3,), (MOST_LINES + 2,), (MOST_LINES + 1,)]


def test_a_column_that_was_not_computed_keeps_its_guess(llm: LLM) -> None:
    """As where the token budget, or an end token among the guesses, cut the window."""
    loop = ahead(llm, token_budget=9)
    check(llm, [request(llm, f"{i}", prompt(i), GREEDY) for i in range(3)], loop)
    assert loop.speculation.fault is None
    tree = DraftTree.merged([[4, 5], [4, 6, 7]])
    assert (tree.find([4, 6]), tree.find([4, 6, 7]), tree.find([5]), tree.find([])) == (2, 3, None, -1)

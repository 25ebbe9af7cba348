"""A step is plain data: it survives JSON, a log of steps gives the same tokens again, a result may hold several."""

from dataclasses import replace

import numpy as np
import pytest

from tests.engine.test_loop import SEARCH, make_loop, mixed_requests, request
from tests.engine.test_scheduler import Engine
from tests.support import make_model
from tiny_llm import LLM, SamplingParams, load
from tiny_llm.cache.view import View
from tiny_llm.config import Structured
from tiny_llm.decode.structured import Grammars
from tiny_llm.engine.choosers import Draw
from tiny_llm.engine.request import Admission, Result, SequenceId, Share, State, Step
from tiny_llm.engine.runner import Runner
from tiny_llm.engine.store import new_store

HELD = SequenceId("r", 1)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    return load(make_model(tmp_path_factory.mktemp("model")))


def test_every_field_survives_json() -> None:
    params = SamplingParams(
        max_tokens=7,
        temperature=0.5,
        logit_bias={5: 1.5},
        stop=("a", "\n"),
        stop_token_ids=(3, 4),
        seed=2**63,
        logprobs=2,
        structured=Structured("regex", "[0-9]"),
    )
    shares = (
        Share(SequenceId("ä", 0), 3, (1, 2, 3), 0, View((7, 2), 3)),
        Share(HELD, 9, (4, 5), 2, View((1,), 2, (0, -1)), (-1, 0)),
    )
    admitted = (Admission(HELD, (1, 2, 3), 2, params, True), Admission(SequenceId("ä", 0), (9,), 1, SamplingParams()))
    step = Step(12, shares, ((1, 2), (3, 4)), admitted, (SequenceId("old", 2),))
    assert Step.from_json(step.to_json()) == step
    assert "\n" not in step.to_json()


def test_a_replayed_log_of_steps_gives_the_same_tokens(llm: LLM) -> None:
    """On a fresh pool by a runner that knows nothing but the log: n, beams, penalties, preemptions, copies, forms."""
    loop, lines, tokens = make_loop(llm, blocks=46), list[str](), list[list[Result]]()
    launch, read = loop.runner.launch, loop.runner.read

    def logged(step: Step):
        lines.append(step.to_json())
        return launch(step)

    def noted(running):
        tokens.append(read(running))
        return tokens[-1]

    loop.runner.launch, loop.runner.read = logged, noted
    form = SamplingParams(max_tokens=12, seed=3, structured=Structured("regex", "[a-z]{3,9}"))
    for one in (*mixed_requests(llm, 12, seed=5), request(llm, "s", range(11), SEARCH), request(llm, "f", [9], form)):
        loop.add(one)
    while loop.has_work:
        loop.step()
    pool = new_store(llm.model, loop.engine, loop.config, loop.max_context)
    runner = Runner(llm.model, pool, Draw(Grammars(llm.tokenizer, llm.config.vocab_size), llm.config.vocab_size))
    assert len(lines) == len(tokens) > 30
    for line, want in zip(lines, tokens, strict=True):
        got = runner.read(runner.launch(Step.from_json(line)))
        assert [result.tokens for result in got] == [result.tokens for result in want]
        for mine, theirs in zip(got, want, strict=True):
            if theirs.row is not None:
                np.testing.assert_allclose(mine.row, theirs.row, atol=1e-4)


def test_a_guess_is_right_but_for_its_tokens() -> None:
    share = Share(HELD, 9, (4,), 1, View((1, 2, 3), 9))
    guess = Step(3, (share._replace(tokens=(-1,)),))
    step = Step(3, (share,))
    assert guess.predicts(step) and guess.predicts(replace(step, ended=(SequenceId("old", 0),)))
    for other in (
        replace(step, copies=((1, 2),)),
        replace(step, admitted=(Admission(HELD, (1,), 1, SamplingParams()),)),
        Step(3, (share._replace(start=8),)),
        Step(3, (share._replace(view=View((1, 2, 4), 9)),)),
        Step(3, (share._replace(tokens=(4, 5)),)),
        Step(3, (share, share)),
        Step(3),
    ):
        assert not guess.predicts(other)


@pytest.mark.parametrize(("tokens", "computed", "blocks"), [((7,), 9, 3), ((7, 8), 10, 3), ((7, 8, 9, 10, 11), 13, 4)])
def test_a_result_of_several_tokens_gives_surplus_blocks_back(
    tokens: tuple[int, ...], computed: int, blocks: int
) -> None:
    """A draft of four verified: the last token and the drafted ones were computed, of which the first few are right."""
    engine = Engine(tree=False)
    (sequence,) = engine.add("a", range(8), max_tokens=20)
    engine.step()
    assert sequence.remaining == 1 and sequence.computed == 8
    sequence.block_table += [engine.pool.allocate() for _ in range(2)]  # slots 8 to 15
    view = engine.scheduler.ledger.view(sequence, 13)
    share = Share(sequence.id, 8, (sequence.tokens[-1], 1, 2, 3, 4), 5, view)
    engine.scheduler.finish(Step(9, (share,)), [Result(tokens, (None,) * len(tokens))], 1.0)
    assert sequence.output[1:] == list(tokens) and sequence.computed == computed
    assert sequence.remaining == 1 and len(sequence.block_table) == blocks
    engine.scheduler.check()


def test_a_result_ends_at_the_token_that_ends_the_sequence() -> None:
    engine = Engine(tree=False)
    (stopped,) = engine.add("a", range(8), max_tokens=20, stop_tokens=frozenset({5}))
    (cut,) = engine.add("b", range(20, 28), max_tokens=3)
    engine.step()
    shares = []
    for sequence in (stopped, cut):
        sequence.block_table += [engine.pool.allocate()]
        view = engine.scheduler.ledger.view(sequence, 12)
        shares.append(Share(sequence.id, 8, (sequence.tokens[-1], 1, 2, 3), 4, view))
    results = [Result((6, 5, 7), (None,) * 3)] * 2
    ended = engine.scheduler.finish(Step(9, tuple(shares)), results, 1.0)
    assert ended == [stopped, cut] and stopped.state is State.FINISHED
    assert stopped.output[1:] == [6, 5] and stopped.finish_reason == "stop"
    assert len(cut.output) == 3 and cut.finish_reason == "length"
    engine.scheduler.check()


def test_the_runner_reads_no_sequence() -> None:
    """What it imports of the engine is plain data and the draw."""
    from tiny_llm.engine import choosers, runner

    for module in (runner, choosers):
        assert not {"Scheduler", "Ledger", "Sequences"} & vars(module).keys(), module.__name__

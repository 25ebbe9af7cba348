"""Requests with different salts share no cached prefix and no guesses, in the pool and in the disk tier."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.engine.test_disk_tier import TEXTS, tiered
from tests.engine.test_loop import GREEDY, make_loop, request, run
from tests.support import make_model
from tiny_llm import LLM, load
from tiny_llm.engine.events import Event
from tiny_llm.engine.loop import Loop
from tiny_llm.engine.request import Sequence, SequenceId, salted
from tiny_llm.engine.suffix import MOST_GROUPS, SuffixDrafter

TEXT = TEXTS[0]
WHOLE = 36  # cached tokens of a second request for TEXT: all its blocks but the last token's


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    return load(make_model(tmp_path_factory.mktemp("model")))


def reused(llm: LLM, loop: Loop, events: list[Event], salt: str) -> int:
    """Answer TEXT under a salt; return how many of its tokens were found in the pool or on the disk."""
    events.clear()
    run(loop, [replace(request(llm, "r", TEXT, GREEDY), salt=salt)])
    return sum(event.tokens for event in events if event.kind in ("admit", "load"))


def test_salts_share_nothing_in_the_pool(llm: LLM) -> None:
    events: list[Event] = []
    loop = make_loop(llm, 60, 4, emit=events.append)
    found = [reused(llm, loop, events, salt) for salt in ["", "a", "b", "a", "", "b", "c"]]
    assert found == [0, 0, 0, WHOLE, WHOLE, WHOLE, 0]


def test_salts_share_nothing_on_the_disk_after_a_restart(llm: LLM, tmp_path: Path) -> None:
    events: list[Event] = []
    first = tiered(llm, tmp_path, events)
    assert reused(llm, first, events, "a") == 0
    first.close()
    second = tiered(llm, tmp_path, events)
    assert [reused(llm, second, events, salt) for salt in ["b", "", "a"]] == [0, 0, WHOLE]


def test_prompts_of_two_salts_that_arrive_together_share_nothing(llm: LLM) -> None:
    events: list[Event] = []
    loop = make_loop(llm, 60, 4, emit=events.append)
    answers = run(loop, [replace(request(llm, salt, TEXT, GREEDY), salt=salt) for salt in "ab"])
    assert [delta.token for delta in answers["a"][0]] == [delta.token for delta in answers["b"][0]]
    assert not [event for event in events if event.kind == "share"]
    assert sum(event.tokens for event in events if event.kind == "admit") == 0


def test_salts_share_no_guesses(llm: LLM) -> None:
    drafter = SuffixDrafter(least=0.1)

    def guesses(name: str, salt: str) -> int:
        one = replace(request(llm, name, [7, 8, 9], GREEDY), salt=salt)
        sequence = Sequence(one)
        (draft,) = drafter.propose([sequence], [4])
        sequence.tokens += [7, 8, 9, 11, 12, 13, 14, 7, 8]
        sequence.finish_reason = "stop"
        drafter.forget([SequenceId(name, 0)])
        return len(draft.tokens)

    assert [guesses(str(number), salt) for number, salt in enumerate(["a", "b", "a"])] == [0, 0, 4]


def test_a_salted_token_is_no_token_and_fits_an_address() -> None:
    found = {salted(token, salt) for token in range(50) for salt in ("a", "b", "ä\ud800")}
    assert len(found) == 150 and all(-(2**63) <= number < 0 for number in found)


@pytest.mark.parametrize("salt", [3, "x" * 1025, None])
def test_a_salt_is_a_short_text(llm: LLM, salt: object) -> None:
    with pytest.raises(ValueError, match="salt: expected a text of at most 1024 characters"):
        replace(request(llm, "0", TEXT, GREEDY), salt=salt)


def test_a_text_goes_on_where_its_group_forgets_earlier_answers(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression: its place in the automaton of earlier answers was looked up in the new, smaller one: IndexError."""
    monkeypatch.setattr("tiny_llm.engine.suffix.SHARED_TOKENS", 20)
    drafter = SuffixDrafter(least=0.1)
    known = list(range(10, 40))

    def begin(name: str) -> Sequence:
        sequence = Sequence(request(llm, name, [7], GREEDY))
        drafter.propose([sequence], [4])
        return sequence

    def end(sequence: Sequence) -> None:
        sequence.finish_reason = "stop"
        drafter.forget([sequence.id])

    first, second = begin("0"), begin("1")
    first.tokens += known
    end(first)
    long = begin("2")
    long.tokens += known[:20]
    assert drafter.propose([long], [4])[0].tokens == (30, 31, 32, 33)
    end(second)  # the automaton is full: a new one begins
    long.tokens.append(30)
    assert drafter.propose([long], [4])[0].tokens == (31, 32, 33, 34)


def test_the_number_of_salts_with_kept_answers_is_bounded(llm: LLM) -> None:
    drafter = SuffixDrafter(least=0.1)
    for number in range(3 * MOST_GROUPS):
        sequence = Sequence(replace(request(llm, str(number), TEXT, GREEDY), salt=f"salt {number}"))
        drafter.propose([sequence], [4])
        sequence.finish_reason = "stop"
        drafter.forget([sequence.id])
    assert len(drafter._earlier) == MOST_GROUPS

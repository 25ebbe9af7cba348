"""Stop strings against a search in the whole text."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tiny_llm.decode.stop import StopStrings


def run(pieces: list[str], stops: list[str]) -> tuple[list[str], bool]:
    """What was shown piece by piece, and whether a stop string ended it."""
    matcher, shown = StopStrings(stops), []
    for piece in pieces:
        text, stopped = matcher.add(piece)
        shown.append(text)
        if stopped:
            return shown, True
    return [*shown, matcher.finish()], False


def test_across_pieces() -> None:
    assert run(["one E", "N", "D two"], ["END"]) == (["one ", "", ""], True)
    assert run(["one E", "N", "O"], ["END"]) == (["one ", "", "ENO", ""], False)


def test_nothing_is_held_back_without_reason() -> None:
    assert run(["abc", "def"], ["END"]) == (["abc", "def", ""], False)
    assert run(["abc", "def"], []) == (["abc", "def", ""], False)


def test_a_prefix_at_the_end_is_shown_at_the_end() -> None:
    assert run(["abcE"], ["END"]) == (["abc", "E"], False)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.lists(st.text("ab", max_size=4), max_size=8),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_shows_what_comes_before_the_first_stop_string_to_be_complete(pieces: list[str], stops: list[str]) -> None:
    text = "".join(pieces)
    shown, stopped = run(pieces, stops)
    ends = [(at + len(stop), stop) for stop in stops if (at := text.find(stop)) >= 0]
    assert stopped == bool(ends)
    if not ends:
        assert "".join(shown) == text
        return
    assert text.startswith("".join(shown))
    assert not any(stop in "".join(shown) for stop in stops)
    assert any(text[len("".join(shown)) :].startswith(stop) for stop in stops)

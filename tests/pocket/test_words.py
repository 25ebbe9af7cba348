"""The words that training may use: more of them than the evaluation's, and never the evaluation's own."""

from typing import Any

import pytest

from tiny_llm.pocket.lessons import builtin, chat, faq, passages, retrieval, toolbox
from tiny_llm.pocket.lessons.faq import faq_entries
from tiny_llm.pocket.lessons.words import Words, held_out, read_table

RELATIONS: list[dict[str, Any]] = read_table("tables/relations.toml")["relation"]
BUILTIN_ASKS: dict[str, dict[str, list[str]]] = read_table("tables/builtin_asks.toml")
SUMS: list[dict[str, Any]] = read_table("tables/sums.toml")["sum"]
FAMILIES = [family for table in ("lookup", "action") for family in read_table(f"tables/tools_{table}.toml")["family"]]
LISTS = [
    *((relation[name], relation[f"more_{name}"]) for relation in RELATIONS for name in ("says", "asks")),
    *((family["asks"], family["more_asks"]) for family in FAMILIES if "more_asks" in family),
    *((entry.asks, entry.more) for entry in faq_entries() if entry.more),
    (chat.TELL, chat.MORE_TELL),
    (faq.UNKNOWN_ASKS, faq.MORE_UNKNOWN_ASKS),
    (chat.ASK, chat.MORE_ASK),
    (passages.ATTRIBUTE_SAYS, passages.MORE_ATTRIBUTE_SAYS),
    (passages.ATTRIBUTE_ASKS, passages.MORE_ATTRIBUTE_ASKS),
    (toolbox.ATTRIBUTE_ASKS, toolbox.MORE_ATTRIBUTE_ASKS),
    (toolbox.SETTER_ASKS, toolbox.MORE_SETTER_ASKS),
    (builtin.SUM_ASKS, builtin.MORE_SUM_ASKS),
    (builtin.CLOCK_ASKS, builtin.MORE_CLOCK_ASKS),
    (builtin.READ_ASKS, builtin.MORE_READ_ASKS),
    (builtin.PYTHON_ASKS, builtin.MORE_PYTHON_ASKS),
    (retrieval.TWO, retrieval.MORE_TWO),
    *((row["asks"], row["more"]) for row in (*BUILTIN_ASKS.values(), *SUMS)),
]


@pytest.mark.parametrize(("options", "more"), LISTS, ids=[options[0] for options, _ in LISTS])
def test_further_phrasings_leave_the_kept_one_to_the_evaluation(options: list[str], more: list[str]) -> None:
    train, test = Words(0).phrasings(options, more), Words(0, "test").phrasings(options, more)
    assert test == Words(0, "test").phrasings(options)
    assert len(train) == len(options) + len(more) - 1
    assert len(set(train)) == len({*options, *more}) - 1
    assert len(test) == 1
    assert not set(train) & set(test)


def test_a_word_that_nobody_knows_comes_in_training_only() -> None:
    words = [Words(seed).or_unknown("height", 0.3) for seed in range(300)]
    assert 60 < sum(word != "height" for word in words) < 120
    assert not any(held_out(word) and held_out(word.capitalize()) for word in words if word != "height")
    assert all(Words(seed, "test").or_unknown("height", 0.3) == "height" for seed in range(50))


def test_a_template_is_blurred_in_training_only_and_keeps_what_is_in_braces() -> None:
    template = "Please tell me the {a} of {{e}}, now."
    found = [Words(seed).blurred(template) for seed in range(300)]
    assert 25 < sum(text != template for text in found) < 70
    for text in found:
        assert text.format(a="price").format(e="Rome").count("price") == 1
        assert text[0].isupper() and "{{e}}," in text and text.endswith(".")
    assert all(Words(seed, "test").blurred(template) == template for seed in range(50))

"""The words of a text for lexical search: lower case, without plural endings, and without the most common words."""

import re

WORD = re.compile(r"[^\W_]+(?:\.\d+)*")
HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|_")  # between the parts of prefillChunk and prefill_chunk
COMMON = frozenset(
    "a about all also an and any are as at be been but by can could did do does for from had has have how i if in into "
    "is it its may me more my no nor not of on one or our out so such tell than that the their them then there these "
    "they this those to too us was we were what when where which who whom whose why will with would you your".split()
)


def all_words(text: str) -> list[str]:
    """Return the words of a text in their order: lower case, with identifiers divided, plurals as singulars."""
    parts = WORD.findall(HUMP.sub(" ", text))
    return [stem(part.lower()) for part in parts]


def content_words(text: str) -> list[str]:
    """Return the words of a text that are not among the most common words of English."""
    return [word for word in all_words(text) if word not in COMMON]


def stem(word: str) -> str:
    """Return a word without its plural ending: policies → policy, boxes → box, blocks → block, class → class."""
    if len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "xes", "sses")):
        return word[:-2]
    return word[:-1]

"""Lessons on talk: the FAQ, remembering what was said before, and sums with working in a think block."""

from tiny_llm.pocket.lessons.dialogue import Dialogue, JsonObject, assistant, user
from tiny_llm.pocket.lessons.faq import question_and_answer
from tiny_llm.pocket.lessons.talk import talk_lesson
from tiny_llm.pocket.lessons.text import COPYING, text_lesson
from tiny_llm.pocket.lessons.tools import attributes
from tiny_llm.pocket.lessons.words import Words

TOLD = "I will remember that."
UNTOLD = "not known to me yet"
TELL = (
    "My {a} is {v}.",
    "Please remember: my {a} is {v}.",
    "You should know that my {a} is {v}.",
    "{v} is my {a}.",
    "I tell you my {a}: {v}.",
    "As for my {a}, it is {v}.",
    "I have the {a} {v}.",
    "Keep in mind that {v} is my {a}.",
    "My {a}? It is {v}.",
    "Note my {a}: {v}.",
)
ASK = (
    "What is my {a}?",
    "Do you remember my {a}?",
    "Tell me my {a}.",
    "I forgot my {a}. What is it?",
    "What did I say is my {a}?",
    "Which {a} do I have?",
    "Can you tell me my {a}?",
    "What was my {a} again?",
    "Say my {a}.",
    "Do you know my {a}?",
    "And my {a}?",
    "Which is my {a}?",
    "My {a} is what?",
    "Give me my {a}.",
    "I want to hear my {a}.",
)
MORE_TELL = (  # in training only
    "The {a} that I have is {v}.",
    "It is {v}, my {a}.",
    "I want you to know my {a}: {v}.",
    "Do not forget: my {a} is {v}.",
    "{v}: that is my {a}.",
    "They gave me {v} as {a}.",
    "By the way, my {a} is {v}.",
    "About my {a}: it is {v}.",
    "Write down my {a}: {v}.",
    "Save my {a}: {v}.",
    "Remember my {a}: {v}.",
    "For later: my {a} is {v}.",
    "This is my {a}: {v}.",
    "Have my {a}: {v}.",
    "Keep my {a}: {v}.",
    "Store my {a}: {v}.",
    "Mark my {a}: {v}.",
    "Take my {a}: {v}.",
    "Learn my {a}: {v}.",
    "Add my {a}: {v}.",
    "Here is my {a}: {v}.",
)
MORE_ASK = (
    "I asked you to remember my {a}. What is it?",
    "So what is my {a}?",
    "Name my {a}.",
    "Which {a} is mine?",
    "Please repeat my {a}.",
    "What {a} did I give you?",
    "Have I told you my {a}?",
    "What do you know about my {a}?",
    "Can you repeat my {a}?",
    "My {a}, please.",
    "What is the {a} that I told you?",
    "Could you say my {a}?",
    "What is it, my {a}?",
    "So which is my {a}?",
    "Then what is my {a}?",
    "My {a}: which is it?",
    "Who knows my {a}?",
    "Which of them is my {a}?",
)
OWN = {
    "name": "name",
    "favorite color": "color",
    "city": "place",
    "dog": "name",
    "cat": "name",
    "lucky number": "number",
    "age": "int:5:99",
    "teacher": "person",
    "favorite animal": "thing",
    "street": "name",
    "code": "code",
    "phone number": "int:10000:99999",
    "friend": "person",
    "company": "name",
    "favorite day": "day",
}


def faq_lesson(words: Words, branches: int) -> list[Dialogue]:
    lesson = []
    for _ in range(branches):
        question, answer = question_and_answer(words)
        lesson.append(Dialogue("faq", (user(question), assistant(answer))))
    return lesson


def own_facts(words: Words, count: int) -> dict[str, str]:
    """Choose what users tell of themselves: listed properties and attributes of any kind."""
    names = words.sample(list(OWN), count)
    found = {}
    for name in names:
        if words.chance(0.4):
            name = words.from_split(list(attributes()))
        kind = OWN.get(name) or attributes()[name]
        found[name if name == "name" else words.or_unknown(name, 0.15)] = str(words.value(kind))
    return found


def tell(words: Words, name: str, value: str) -> list[JsonObject]:
    if name == "name":
        said = words.phrasing(
            ("My name is {v}.", "I am {v}.", "Hello, I am {v}.", "Call me {v}.", "My name is {v}. Hello!")
        )
        return [user(said.format(v=value)), assistant(f"Nice to meet you, {value}!")]
    return [user(words.blurred(words.phrasing(TELL, MORE_TELL)).format(a=name, v=value)), assistant(TOLD)]


def ask_back(words: Words, name: str) -> str:
    if name == "name":
        return words.phrasing(
            (
                "What is my name?",
                "Who am I?",
                "Do you know my name?",
                "How am I called?",
                "Say my name.",
                "Tell me my name.",
                "Do you remember my name?",
                "What was my name again?",
                "Which name do I have?",
            )
        )
    return words.opened(words.phrasing(ASK, MORE_ASK).format(a=name))


def aside(words: Words) -> list[JsonObject]:
    """Return an exchange on something else, between telling and asking."""
    if words.chance(0.6):
        question, answer = question_and_answer(words)
        return [user(question), assistant(answer)]
    if words.chance(0.3):
        return list(talk_lesson(words, 1)[0].messages)
    return list(text_lesson(words, 1, COPYING, long=0.0)[0].messages)


def told(words: Words, known: dict[str, str], few: bool) -> list[JsonObject]:
    """Tell the known facts, with talk on something else between them; now and then correct one of them in `known`."""
    talk: list[JsonObject] = []
    for name, value in known.items():
        talk += tell(words, name, value)
        if not few and words.chance(0.35):
            talk += aside(words)
    if not few and words.chance(0.3):
        name = words.choice([name for name in known if name != "name"])
        kind = OWN.get(name) or attributes().get(name, "name")
        known[name] = str(words.value(kind))
        talk += [user(f"Now my {name} is {known[name]}."), assistant(TOLD)]
    return talk


def memory_lesson(words: Words, branches: int) -> list[Dialogue]:
    """Make talks on the user's own facts: told, interrupted by something else, and asked for.

    Every other branch asks for a fact that was never told.
    """
    few = words.split == "train" and words.chance(0.3)  # short ones, too, to learn from
    known = own_facts(words, words.integer(1, 2) if few else words.integer(2, 4))
    others = [name for name in words.sample(list(OWN), len(OWN)) if name not in known]
    missing = others[: max(1, branches // 2)]
    talk = told(words, known, few)
    answered = branches - len(missing)
    asked = words.sample(list(known), answered)
    while len(asked) < answered:
        asked.append(words.choice(list(known)))
    asked += [words.or_unknown(name, 0.3) for name in missing]
    lesson = []
    for name in asked:
        answer = f"Your {name} is {known.get(name, UNTOLD)}."
        messages = (*talk, user(ask_back(words, name)), assistant(answer))
        lesson.append(Dialogue("multi_turn", messages))
    return lesson


SUMS = ("What is {}?", "Compute {}.", "How much is {}?", "{} = ?", "Calculate {}.", "Work out {}.", "Tell me {}.")
SAID = {"+": "plus", "-": "minus", "*": "times"}


def add_up(first: int, second: int) -> str:
    """Work out a sum, digit by digit from the right."""
    steps, carry, place = [], 0, 1
    while first // place or second // place:
        one, two = first // place % 10, second // place % 10
        total = one + two + carry
        steps.append(f"{one} + {two}{' + 1' if carry else ''} = {total}")
        carry, place = total // 10, place * 10
    return "; ".join(steps)


def take_away(first: int, second: int) -> str:
    """Work out a difference that is not negative, digit by digit from the right."""
    steps, borrow, place = [], 0, 1
    while first // place:
        one = first // place % 10
        two = second // place % 10
        lent = 10 if one - borrow < two else 0
        borrowed = " - 1" if borrow else ""
        result = one + lent - borrow - two
        steps.append(f"{one + lent}{borrowed} - {two} = {result}")
        borrow = int(lent > 0)
        place *= 10
    return "; ".join(steps)


def multiply(first: int, second: int) -> str:
    """Work out a product with a number of one digit."""
    steps, carry, place = [], 0, 1
    while first // place:
        one = first // place % 10
        total = one * second + carry
        steps.append(f"{one} * {second}{f' + {carry}' if carry else ''} = {total}")
        carry, place = total // 10, place * 10
    return "; ".join(steps)


def worked(operation: str, first: int, second: int) -> tuple[int, str]:
    """Return the result of an operation and its working."""
    if operation == "+":
        return first + second, add_up(first, second)
    if operation == "-":
        return first - second, take_away(first, second)
    return first * second, multiply(first, second)


def arithmetic_lesson(words: Words, branches: int) -> list[Dialogue]:
    """Make sums: with thinking the working comes first, without it only small sums come."""
    lesson = []
    for _ in range(branches):
        numbers = [words.integer(1, 10 ** words.integer(1, 3)) for _ in range(2)]
        first, second = max(numbers), min(numbers)
        operation = words.choice("+-*")
        if operation == "*":
            second = words.integer(2, 9)
        result, working = worked(operation, first, second)
        ask = words.phrasing(SUMS)
        said = words.choice((operation, SAID[operation]))
        question = ask.format(f"{first} {said} {second}")
        answer = f"{first} {operation} {second} = {result}."
        thought = f"{first} {operation} {second}: {working}."
        lesson.append(Dialogue("think", (user(question), assistant(answer, thought))))
        if first < 20 and result < 100:
            lesson.append(Dialogue("sum", (user(question), assistant(answer)), thinking=False))
    return lesson

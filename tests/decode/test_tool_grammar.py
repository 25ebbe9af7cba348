"""Under a grammar every call that a random model makes is well formed, is of an offered tool and fits its schema."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llguidance")

from tests.support import make_model
from tiny_llm import LLM, SamplingParams, load
from tiny_llm.config import Structured
from tiny_llm.decode.reply import CallArguments, CallBegin, Content, Reply
from tiny_llm.decode.structured import Grammars
from tiny_llm.decode.tool_calls import CallForm, ToolCallParser
from tiny_llm.decode.tool_grammar import call_grammar
from tiny_llm.decode.tool_values import tool_schemas
from tiny_llm.model.tokenizer import Tokenizer

POCKET = Path(__file__).parents[2] / "tiny_llm" / "pocket" / "weights" / "target"
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "parameters": {
                "type": "object",
                "properties": {
                    "a": {"type": "integer", "minimum": 0, "maximum": 999},
                    "unit": {"enum": ["km", 'a "mile"']},
                    "exact": {"type": "boolean"},
                    "place": {"$ref": "#/$defs/Place"},
                },
                "required": ["a", "unit"],
                "$defs": {
                    "Place": {
                        "type": "object",
                        "properties": {"x": {"type": "integer", "maximum": 9, "minimum": 0}},
                        "required": ["x"],
                        "additionalProperties": False,
                    }
                },
            },
        },
    },
    {"name": "note", "parameters": {"type": "object", "properties": {"text": {"type": "string", "maxLength": 8}}}},
    {"name": "clock"},
]
Call = tuple[str, dict[str, Any]]


def read(text: str, form: CallForm, constrained: bool) -> tuple[str, list[Call]]:
    """The content and the calls of an answer."""
    reply = Reply(False, ToolCallParser(form, tool_schemas(TOOLS), constrained))
    parts = [part for letter in text for part in reply.feed(letter)] + reply.finish()
    content = "".join(part.text for part in parts if isinstance(part, Content))
    names = [part.name for part in parts if isinstance(part, CallBegin)]
    texts = [""] * len(names)
    for part in parts:
        if isinstance(part, CallArguments):
            texts[part.index] += part.text
    return content, [(name, json.loads(text)) for name, text in zip(names, texts, strict=True)]


def check(name: str, arguments: dict[str, Any]) -> None:
    """Fail for arguments that do not fit the tool's schema."""
    if name == "add":
        assert {"a", "unit"} <= set(arguments) <= {"a", "unit", "exact", "place"}
        assert isinstance(arguments["a"], int) and 0 <= arguments["a"] <= 999
        assert arguments["unit"] in ("km", 'a "mile"')
        assert arguments.get("exact", True) in (True, False)
        assert set(arguments.get("place", {"x": 1})) == {"x"}
    elif name == "note":
        assert set(arguments) <= {"text"} and isinstance(arguments.get("text", ""), str)
    else:
        assert (name, arguments) == ("clock", {})


class Random:
    """Draws texts that a grammar allows, and often the phrases that lead to a text's end."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int):
        self.tokenizer, self.grammars = tokenizer, Grammars(tokenizer, vocab_size)
        ends = ["<tool_call>", "</tool_call>", "</think>", "\n</parameter>\n", "</function>", '"', "}", "\n"]
        self.phrases = [tokenizer.encode(text) for text in ends]
        self.phrases += [[token] for token in tokenizer.eos_token_ids]

    def text(self, grammar: Structured, seed: int, limit: int = 400) -> str | None:
        """A text, None where it has no end within `limit` tokens."""
        matcher = self.grammars.matcher(grammar)
        random = np.random.default_rng(seed)
        tokens: list[int] = []
        phrase: list[int] = []
        while len(tokens) < limit:
            bits = self.grammars.bits([matcher])[0]
            allowed = np.nonzero(np.unpackbits(bits.view(np.uint8), bitorder="little"))[0]
            assert len(allowed) and not matcher.get_error()
            if not phrase and random.random() < 0.5:
                phrase = list(self.phrases[random.integers(len(self.phrases))])
            if phrase and phrase[0] in allowed:
                token = phrase.pop(0)
            else:
                token, phrase = int(random.choice(allowed)), []
            if token in self.tokenizer.eos_token_ids:
                assert matcher.is_accepting()
                return self.tokenizer.decode(tokens)
            assert matcher.consume_token(token)
            tokens.append(token)
        return None


def without_tags(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer of a vocabulary in which tags are spelled by letters."""
    data = json.loads(tokenizer.backend.to_str())
    data["added_tokens"] = [token for token in data["added_tokens"] if token["special"]]
    backend = type(tokenizer.backend).from_str(json.dumps(data))
    return replace(tokenizer, backend=backend)


@pytest.fixture(scope="module")
def randoms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Random]:
    small = make_model(tmp_path_factory.mktemp("model"))
    pocket = Tokenizer.from_dir(POCKET)
    bare = without_tags(Tokenizer.from_dir(small))
    return {
        "pocket": Random(pocket, pocket.vocab_size),
        "letters": Random(bare, bare.vocab_size),
        "no thoughts": Random(replace(bare, templates={"default": "<tool_call>"}), bare.vocab_size),
    }


VOCABULARIES = ["pocket", "letters", "no thoughts"]


@pytest.mark.parametrize("form", CallForm)
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_every_call_is_well_formed(randoms: dict[str, Random], vocabulary: str, form: CallForm) -> None:
    random = randoms[vocabulary]
    grammar = call_grammar(random.tokenizer, form, TOOLS)
    called: set[str] = set()
    most = 0
    for seed in range(40):
        text = random.text(grammar, seed)
        if text is None:
            continue
        content, calls = read(text, form, constrained=True)
        assert "<tool_call>" not in content
        values = json.dumps(calls)
        if not any(tag in values for tag in ("</tool_call>", "</function>", "<parameter=")):
            assert read(text, form, constrained=False) == (content, calls)
        for call in calls:
            check(*call)
        called |= {name for name, _ in calls}
        most = max(most, len(calls))
    assert called == {"add", "note", "clock"} and most > 1


@pytest.mark.parametrize("form", CallForm)
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_required_single_named_and_none(randoms: dict[str, Random], vocabulary: str, form: CallForm) -> None:
    random = randoms[vocabulary]
    required = call_grammar(random.tokenizer, form, TOOLS, "required", parallel=False)
    named = call_grammar(random.tokenizer, form, TOOLS, only="note")
    none = call_grammar(random.tokenizer, form, TOOLS, "none")
    answers = 0
    for seed in range(20):
        for grammar, least, most in ((required, 1, 1), (named, 1, 99), (none, 0, 0)):
            text = random.text(grammar, seed)
            if text is not None:
                content, calls = read(text, form, constrained=True)
                assert least <= len(calls) <= most
                assert content == "" or grammar is none
                assert grammar is not named or {name for name, _ in calls} == {"note"}
                answers += 1
    assert answers > 30


@pytest.mark.parametrize("form", CallForm)
def test_a_model_of_random_weights_calls_under_the_grammar(tmp_path: Path, form: CallForm) -> None:
    llm = load(make_model(tmp_path / "model"))
    tags = {token: 4.0 for tag in ("<tool_call>", '"', "}") for token in llm.tokenizer.encode(tag)}
    calls = 0
    for choice in ("auto", "required"):
        grammar = call_grammar(llm.tokenizer, form, TOOLS, choice, parallel=False)
        for seed in range(3):
            params = SamplingParams(max_tokens=300, seed=seed, structured=grammar, logit_bias=tags)
            answer = llm.generate([{"role": "user", "content": "hi"}], params)
            if answer.finish_reason == "stop":
                _, found = read(answer.text, form, constrained=True)
                assert found or choice == "auto"
                for call in found:
                    check(*call)
                calls += len(found)
    assert calls > 2


def test_pocket_calls_a_tool_that_it_must_call() -> None:
    llm: LLM = load(POCKET)
    grammar = call_grammar(llm.tokenizer, CallForm.HERMES, TOOLS, only="note")
    prompt = [{"role": "user", "content": "Hello!"}]
    for seed in range(4):
        params = SamplingParams(max_tokens=300, seed=seed, structured=grammar)
        template = {"tools": TOOLS, "enable_thinking": False}
        answer = llm.generate(prompt, params, template=template)
        if answer.finish_reason == "stop":
            _, calls = read(answer.text, CallForm.HERMES, constrained=True)
            assert calls and {name for name, _ in calls} == {"note"}


def test_calls_are_spelled_as_the_template_writes_them(randoms: dict[str, Random]) -> None:
    """Then the next prompt, which has the answer in it, begins with the tokens in the cache."""
    random = randoms["pocket"]
    tokenizer = random.tokenizer
    grammar = call_grammar(tokenizer, CallForm.HERMES, TOOLS, "required")
    question = {"role": "user", "content": "hi"}
    prompt = tokenizer.render([question], tools=TOOLS, enable_thinking=False)
    equal = 0
    for seed in range(30):
        text = random.text(grammar, seed)
        if text is None or not text.startswith("<tool_call>") or "\\u" in text:
            continue
        _, calls = read(text, CallForm.HERMES, constrained=True)
        message = {"role": "assistant", "content": "", "tool_calls": [{"name": n, "arguments": a} for n, a in calls]}
        later = tokenizer.render([question, message], tools=TOOLS, add_generation_prompt=False)
        assert later == f"{prompt}{text}<|im_end|>\n"
        equal += 1
    assert equal > 3


def test_what_can_not_be_called_is_refused(randoms: dict[str, Random]) -> None:
    tokenizer = randoms["pocket"].tokenizer
    with pytest.raises(ValueError, match="tool_choice: expected one of the tools add, note, clock, found 'sub'"):
        call_grammar(tokenizer, CallForm.HERMES, TOOLS, only="sub")
    with pytest.raises(ValueError, match="tool_choice: expected at least one tool to call, found none"):
        call_grammar(tokenizer, CallForm.HERMES, [], "required")
    with pytest.raises(ValueError, match="tools: expected a parameter name without <, > and line breaks, found 'a>b'"):
        call_grammar(
            tokenizer, CallForm.XML, [{"name": "f", "parameters": {"properties": {"a>b": {"type": "string"}}}}]
        )

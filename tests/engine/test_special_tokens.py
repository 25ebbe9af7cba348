"""Special tokens are part of the text where the request asks for them, in every way to an answer."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support import make_model
from tiny_llm import SamplingParams, load
from tiny_llm.engine.serving import Engine


def test_special_tokens_stay_in_the_text_on_request(tmp_path: Path) -> None:
    path = make_model(tmp_path / "model")
    llm = load(path)
    special = llm.tokenizer.backend.token_to_id("<|im_start|>")
    params = SamplingParams(max_tokens=9, seed=1, logit_bias={special: 9.0})
    hidden = llm.generate("hello", params)
    assert special in hidden.tokens and "<|im_start|>" not in hidden.text
    kept = replace(params, skip_special_tokens=False)
    text = llm.tokenizer.decode([t for t in hidden.tokens if t not in llm.tokenizer.eos_token_ids], keep_special=True)
    assert llm.generate("hello", kept).text == text
    assert load(path, lesson=True).generate("hello", kept).text == text
    with Engine(path) as engine:
        assert engine.generate(["hello"], kept)[0][0].text == text


def test_what_is_no_choice_is_refused() -> None:
    with pytest.raises(ValueError, match="skip_special_tokens: expected true or false, found 1"):
        SamplingParams(skip_special_tokens=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="skip_special_tokens: beam search can't do that yet"):
        SamplingParams(beam_width=2, skip_special_tokens=False)

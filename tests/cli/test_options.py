"""The shared options stand for exactly what SamplingParams and EngineConfig know."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run
from tests.cli.fake import FakeLLM
from tiny_llm.cli.options import EngineOptions, SamplingOptions, SearchOptions, settings_of
from tiny_llm.config import EngineConfig, SamplingParams, Structured
from tiny_llm.config.speculation import SpeculationConfig
from tiny_llm.engine import llm as engine


def names(*kinds: Any) -> list[str]:
    return sorted(f.name for kind in kinds for f in fields(kind))


SPECULATION = {
    "drafter": "speculate",
    "model": "draft_model",
    "max_draft": "max_draft",
    "p_min": "draft_p_min",
    "beams": "beams",
    "adaptive": "adaptive",
}


def test_every_setting_has_its_option() -> None:
    assert names(SamplingOptions, SearchOptions) == names(SamplingParams)
    engine = set(names(EngineConfig)) - {"speculation"}
    assert names(EngineOptions) == sorted([*engine, "model", "code", *SPECULATION.values()])
    assert names(SpeculationConfig) == sorted(SPECULATION)


def test_what_is_not_set_is_left_to_the_model(run: Run) -> None:
    llm = FakeLLM("x")
    run("generate", "hi", llm=llm)
    assert llm.settings == [{}]


def test_what_is_set_arrives(run: Run) -> None:
    llm = FakeLLM("x")
    line = "--temperature 0.5 --top-k 3 --stop a --stop b --logit-bias 5=-100 --logit-bias 6=1.5 --stop-token-ids 7"
    run("generate", "hi", *line.split(), "--ignore-eos", "--seed", "0", llm=llm)
    assert llm.settings == [
        {
            "temperature": 0.5,
            "top_k": 3,
            "stop": ("a", "b"),
            "logit_bias": {5: -100.0, 6: 1.5},
            "stop_token_ids": (7,),
            "ignore_eos": True,
            "seed": 0,
        }
    ]


@pytest.mark.parametrize("as_file", [False, True])
def test_the_form_of_an_answer_arrives(run: Run, tmp_path: Path, as_file: bool) -> None:
    (tmp_path / "form").write_text("[0-9]=[0-9]")
    llm = FakeLLM("x")
    text = f"@{tmp_path}/form" if as_file else "[0-9]=[0-9]"
    assert run("generate", "hi", "--structured", f"regex={text}", llm=llm).code == 0
    assert llm.settings == [{"structured": Structured("regex", "[0-9]=[0-9]")}]


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("[0-9]+", "KIND=TEXT such as regex=[0-9]+, found '[0-9]+'"),
        ("xml=<a/>", "expected one of json_schema, regex, lark, found 'xml'"),
        ("regex=", "expected a text"),
        ("json_schema={", "found no JSON"),
        ("lark=@none", "can't read none"),
    ],
)
def test_a_form_that_is_none_is_refused(run: Run, value: str, complaint: str) -> None:
    result = run("generate", "hi", "--structured", value)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert complaint in result.err


def test_engine_options_arrive(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Any] = []

    def load(model: Any, *, config: EngineConfig, lesson: bool) -> FakeLLM:
        loaded.append((model, config))
        return FakeLLM("x")

    monkeypatch.setattr(engine, "load", load)
    monkeypatch.setattr("tiny_llm.kernels.table.describe_operations", lambda *_: "what runs where")
    line = "--model m --ops plain --dtype bfloat16 --max-context 99 --prefill-chunk 7 --kernels sim"
    result = run("generate", "hi", *line.split())
    assert (result.code, result.err) == (0, "what runs where\n")
    assert loaded == [("m", EngineConfig("plain", "bfloat16", 7, 99, "sim"))]
    monkeypatch.setenv("TINY_LLM_KERNELS", "plain")
    assert run("generate", "hi", "--model", "m").code == 0
    assert loaded[1] == ("m", EngineConfig(kernels="plain"))
    line = "--speculate draft --draft-model d --max-draft 3 --draft-p-min 0.1"
    assert run("generate", "hi", *line.split()).code == 0
    assert loaded[2][1].speculation == SpeculationConfig("draft", 3, 0.1, "d")
    refused = run("generate", "hi", "--max-draft", "3")
    assert refused.code == 2 and "--speculate" in refused.err
    refused = run("generate", "hi", "--speculate", "suffix", "--max-draft", "64")
    assert refused.code == 2 and "expected an integer from 1 to 63, found 64" in refused.err
    monkeypatch.setenv("TINY_LLM_KERNELS", "vulkan")
    assert run("generate", "hi").code == 2


def test_settings_of_leaves_out_what_is_none() -> None:
    assert settings_of(SamplingOptions(temperature=0.0, stop=[])) == {"temperature": 0.0}

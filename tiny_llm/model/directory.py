"""Read the settings of a model: its configuration, its sampling defaults, the tokens that end a text."""

from pathlib import Path
from typing import Any

from tiny_llm.config import ModelConfig
from tiny_llm.config.check import check_keys
from tiny_llm.config.fields import JsonFields, as_json
from tiny_llm.config.keys import GENERATION
from tiny_llm.config.sampling import check_setting
from tiny_llm.model.source import ModelSource, open_source

SAMPLING_DEFAULTS = {  # the keys of generation_config.json, and their names in SamplingParams
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "length_penalty": "length_penalty",
    "max_new_tokens": "max_tokens",
    "stop_strings": "stop",
}


def load_config(model: Path | ModelSource) -> ModelConfig:
    """Return the model's configuration from config.json. Raises ValueError naming file, key, expected and found."""
    fields = open_source(model).json("config.json")
    return ModelConfig.from_hf(fields.data, fields.source)


def load_generation_defaults(model: Path | ModelSource, max_context: int | None = None) -> dict[str, Any]:
    """Return the sampling settings of generation_config.json, under SamplingParams' names.

    `do_sample` false means greedy; an answer is no longer than `max_context`. Raises ValueError for a key that this
    engine can't honour, and for a value out of range.
    """
    fields = open_source(model).json("generation_config.json", optional=True)
    check_keys(fields, GENERATION)
    defaults = {}
    for key, name in SAMPLING_DEFAULTS.items():
        if fields.data.get(key) is not None:
            defaults[name] = _setting(fields, key, name)
    if not fields.flag("do_sample", True):
        defaults["temperature"] = 0.0
    if max_context is not None and "max_tokens" in defaults:
        defaults["max_tokens"] = min(defaults["max_tokens"], max_context)
    return defaults


def _setting(fields: JsonFields, key: str, name: str) -> Any:
    """Return the value of `key` as the setting `name`. Raises ValueError naming file and key for a wrong value."""
    value = fields.data[key]
    if key == "stop_strings":
        value = tuple(value) if isinstance(value, list) else (value,)
    check_setting(name, value, f"{fields.source}: {key}")
    return value


def eos_ids(source: ModelSource) -> frozenset[int] | None:
    """Return the ids of the tokens that end a text, of generation_config.json or else config.json; None without any."""
    for name in ("generation_config.json", "config.json"):
        fields = source.json(name, optional=True)
        value = fields.data.get("eos_token_id")
        if value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if not ids or any(isinstance(i, bool) or not isinstance(i, int) or i < 0 for i in ids):
            raise ValueError(
                f"{fields.source}: eos_token_id: expected a token id or a list of them, found {as_json(value)}"
            )
        return frozenset(ids)
    return None

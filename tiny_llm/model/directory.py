"""Read the JSON files of a model directory: its configuration, its sampling defaults, the tokens that end a text."""

from pathlib import Path
from typing import Any

from tiny_llm.config import ModelConfig
from tiny_llm.config.check import check_keys
from tiny_llm.config.fields import JsonFields, as_json, parse_object
from tiny_llm.config.keys import GENERATION
from tiny_llm.config.sampling import check_setting

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


def read_bytes(path: Path, limit: int = -1) -> bytes:
    """Return the file's bytes, at most `limit`. Raises ValueError naming a file that cannot be read."""
    try:
        if not path.is_file():
            found = "something else" if path.exists() else "nothing"
            raise ValueError(f"{path}: expected a file, found {found}")
        with path.open("rb") as file:
            return file.read(limit)
    except OSError as error:
        raise ValueError(f"{path}: expected a readable file, found: {error.strerror}") from error


def read_json(path: Path, *, optional: bool = False) -> JsonFields:
    """Return a file's JSON object; an empty one if the file is `optional` and missing."""
    if optional and not path.exists():
        return JsonFields({}, str(path))
    return parse_object(read_bytes(path), str(path))


def load_config(directory: Path) -> ModelConfig:
    """Return the model's configuration from config.json. Raises ValueError naming file, key, expected and found."""
    fields = read_json(directory / "config.json")
    return ModelConfig.from_hf(fields.data, fields.source)


def load_generation_defaults(directory: Path, max_context: int | None = None) -> dict[str, Any]:
    """Return the sampling settings of generation_config.json, under SamplingParams' names.

    `do_sample` false means greedy; an answer is no longer than `max_context`. Raises ValueError for a key that this
    engine can't honour, and for a value out of range.
    """
    fields = read_json(directory / "generation_config.json", optional=True)
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


def eos_ids(directory: Path) -> frozenset[int] | None:
    """Return the ids of the tokens that end a text, of generation_config.json or else config.json; None without any."""
    for name in ("generation_config.json", "config.json"):
        fields = read_json(directory / name, optional=True)
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

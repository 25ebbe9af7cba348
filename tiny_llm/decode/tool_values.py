"""Read a tool's parameters, and turn the text of a parameter into a value of the type that the tool's schema names."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from tiny_llm.config.fields import require, shown

Schema = Mapping[str, Any]
DEEPEST = 20  # schemas behind one another: a reference may lead back to itself
PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}  # Qwen's template writes these words


def tool_schemas(tools: Sequence[Mapping[str, Any]] | None) -> dict[str, Schema]:
    """Return the JSON schema of each tool's arguments by the tool's name.

    A tool is {"type": "function", "function": {"name", "parameters"}} or only the inner object. Raises ValueError for
    two tools of one name.
    """
    schemas: dict[str, Schema] = {}
    for tool in tools or ():
        function = tool.get("function", tool)
        name = function["name"]
        require(name not in schemas, f"tools: expected different names, found {shown(name)} twice; rename one")
        schemas[name] = function.get("parameters") or {}
    return schemas


def properties_of(schema: Schema) -> Mapping[str, Any]:
    """Return the schemas of an object's properties, {} where the schema names none."""
    found = schema.get("properties")
    return found if isinstance(found, Mapping) else {}


def value_of(text: str, schema: Any, root: Schema) -> Any:
    """Return the value that a parameter's text stands for: `text` itself where no other type of the schema fits.

    `root` is the schema of all arguments, in which references are resolved.
    """
    types = types_of(schema, root)
    if types <= {"string"}:
        return text
    word = text.strip()
    try:
        value = load_json(PYTHON_WORDS.get(word, word))
        dump_json(value)
    except ValueError:
        return text
    if isinstance(value, float) and value.is_integer() and "number" not in types:
        value = int(value)
    fits = _types_of_value(value) & (types - {"string"})
    return value if fits else text


def types_of(schema: Any, root: Schema) -> set[str]:
    """Return the JSON types that a schema allows, an empty set where it names none."""
    types: set[str] = set()
    _add_types(schema, root, types, set())
    return types


def _add_types(schema: Any, root: Schema, types: set[str], seen: set[str]) -> None:
    """Add the types that a schema allows. `seen` are the references that were followed: one may lead back to itself."""
    if not isinstance(schema, Mapping):
        return
    named = schema.get("type")
    if named is not None:
        names = named if isinstance(named, list) else [named]
        types.update(name for name in names if isinstance(name, str))
        return
    for value in list_of(schema, "enum"):
        types.update(_types_of_value(value))
    if "const" in schema:
        types.update(_types_of_value(schema["const"]))
    for word in ("anyOf", "oneOf", "allOf"):
        for each in list_of(schema, word):
            _add_types(each, root, types, seen)
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference not in seen:
        seen.add(reference)
        _add_types(_referenced(reference, root), root, types, seen)


def list_of(schema: Schema, word: str) -> list[Any]:
    """Return the list under a word of a schema, an empty one where there is none."""
    found = schema.get(word)
    return found if isinstance(found, list) else []


def resolved(schema: Any, root: Schema) -> Schema:
    """Return the schema that a reference leads to, or the schema itself; {} where it is none."""
    for _ in range(DEEPEST):
        if not isinstance(schema, Mapping) or "$ref" not in schema:
            break
        schema = _referenced(schema["$ref"], root)
    return schema if isinstance(schema, Mapping) else {}


def load_json(text: str) -> Any:
    """Read a JSON text. Raises ValueError for a faulty one, also where it is too deep or has NaN or Infinity."""
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        raise ValueError("JSON: expected fewer lists and objects inside one another") from None


def dump_json(value: Any) -> str:
    """Write a value as JSON. Raises ValueError for a number or a text that JSON in UTF-8 can't hold."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    text.encode()  # half a surrogate pair, which JSON can spell, is no UTF-8
    return text


def _refuse(number: str) -> NoReturn:
    raise ValueError(f"JSON: expected finite numbers, found {number}")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse(text)


def _types_of_value(value: Any) -> set[str]:
    if value is None:
        return {"null"}
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, int):
        return {"integer", "number"}
    if isinstance(value, float):
        return {"number"}
    if isinstance(value, str):
        return {"string"}
    return {"object"} if isinstance(value, Mapping) else {"array"}


def _referenced(reference: Any, root: Schema) -> Any:
    """Return the schema that a reference such as "#/$defs/Place" names, None where there is none."""
    found: Any = root
    for key in str(reference).removeprefix("#/").split("/"):
        if not isinstance(found, Mapping):
            return None
        found = found.get(key)
    return found

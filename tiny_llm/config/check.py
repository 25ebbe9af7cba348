"""Apply the tables of `keys.py` to a file: refuse the keys that must be refused, and warn of unknown ones."""

import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any

from tiny_llm.config.fields import JsonFields, as_json
from tiny_llm.config.keys import CONFIG, GENERATION, SAMPLING_IN_CONFIG, TABLES
from tiny_llm.config.rules import REFUSED, Rule


@cache
def rules_of(table: str) -> Mapping[str, Rule]:
    """The rule of each key that a table of `keys.py` knows."""
    rules = {key: rule for rule in TABLES[table] for key in rule.keys.split()}
    if table == CONFIG:
        return dict.fromkeys(rules_of(GENERATION), SAMPLING_IN_CONFIG) | rules
    return rules


def check_keys(fields: JsonFields, table: str) -> None:
    """Refuse the keys and values that `table` refuses, and warn of unknown keys.

    Raises ValueError naming file, key, value and remedy.
    """
    check_rules(fields, rules_of(table))


def check_rules(fields: JsonFields, rules: Mapping[str, Rule]) -> None:
    """Do the same by the rule of each key."""
    unknown = []
    for key, value in fields.data.items():
        if value is None:
            continue
        rule = rules.get(key)
        if rule is None:
            unknown.append(f"{key!r:.60} ({as_json(value):.40})")
        elif is_refused(rule, value, fields.data):
            expected = " or ".join([*map(as_json, rule.neutral), "nothing"])
            raise ValueError(f"{fields.source}: {key}: expected {expected}, found {as_json(value)}; {rule.why}")
    if unknown:
        warnings.warn(
            f"{fields.source}: unknown keys have no effect: {', '.join(unknown):.300}; "
            "if the model depends on one of them, its answers will be wrong",
            stacklevel=3,
        )


def is_refused(rule: Rule, value: Any, data: Mapping[str, Any]) -> bool:
    """Whether a rule refuses a value in a file that holds `data`."""
    if rule.verdict is not REFUSED or value is None:
        return False
    if rule.unless is not None and same(data.get(rule.unless[0]), rule.unless[1]):
        return False
    return not any(same(value, neutral) for neutral in rule.neutral)


def same(value: Any, other: Any) -> bool:
    """Equal as JSON values: 1 is 1.0, but true is not 1."""
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)

"""Tables of appendix A.2: what becomes of each key of a model directory's files."""

from collections.abc import Sequence

from tiny_llm.config.gguf_keys import GGUF_RULES
from tiny_llm.config.keys import SAMPLING_IN_CONFIG, TABLES
from tiny_llm.config.rules import REFUSED, Rule


def tables() -> dict[str, str]:
    """The Markdown table of each file."""
    made = {f"keys-{name.partition('.')[0].replace('_', '-')}.md": markdown(rules) for name, rules in TABLES.items()}
    made["keys-config.md"] += (
        f"| all keys of `generation_config.json` but those above | {verdict(SAMPLING_IN_CONFIG)} |\n"
    )
    made["keys-gguf.md"] = markdown(GGUF_RULES)
    return made


def markdown(rules: Sequence[Rule]) -> str:
    """A row for each rule."""
    lines = ["| key | what becomes of it |", "| --- | --- |"]
    for rule in rules:
        keys = ", ".join(f"`{key}`" for key in rule.keys.split())
        lines.append(f"| {keys} | {verdict(rule)} |")
    return "\n".join(lines) + "\n"


def verdict(rule: Rule) -> str:
    """A rule's verdict, the values that it lets pass, and its reason."""
    text = f"**{rule.verdict.value}**"
    if rule.verdict is REFUSED:
        passing = [f"`{json(value)}`" for value in rule.neutral]
        if rule.unless:
            passing.append(f"`{rule.unless[0]}: {json(rule.unless[1])}`")
        text += f" unless {' or '.join(passing)}" if passing else ""
    return f"{text}: {rule.why.replace('|', chr(92) + '|')}"


def json(value: object) -> str:
    """A value as it stands in a file."""
    return str(value).lower() if isinstance(value, bool) else str(value).replace("'", '"')

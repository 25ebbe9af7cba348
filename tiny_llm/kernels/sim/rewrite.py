"""Rewriting of `threadgroup` variables.

`threadgroup float tile[32];` within a function allocates memory that the group shares; `threadgroup float* p` only
says where p points. Only the former is rewritten, and no line moves: messages keep their line numbers.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

TOKEN = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\])*"|[A-Za-z_]\w*|::|\s+|.', re.DOTALL)
STATEMENT_STARTS = {";", "{", "}", ")", ":", ""}


@dataclass(frozen=True)
class Allocation:
    """`tokens` are those between the word threadgroup and the semicolon; `names` the places of the variables."""

    tokens: tuple[str, ...]
    names: tuple[int, ...]

    def renamed(self, prefix: str) -> str:
        return "".join(prefix + t if i in self.names else t for i, t in enumerate(self.tokens)).strip()

    @property
    def variables(self) -> list[str]:
        return [self.tokens[i] for i in self.names]


def is_code(token: str) -> bool:
    return not token.isspace() and not token.startswith(("//", "/*"))


def neighbour(tokens: Sequence[str], at: int, step: int) -> int:
    """The next token of code in this direction; -1 or len(tokens) where there is none."""
    at += step
    while 0 <= at < len(tokens) and not is_code(tokens[at]):
        at += step
    return at


def starts_statement(tokens: Sequence[str], at: int) -> bool:
    before = neighbour(tokens, at, -1)
    word = tokens[before] if before >= 0 else ""
    if word in ("const", "static"):
        before = neighbour(tokens, before, -1)
        word = tokens[before] if before >= 0 else ""
    return word in STATEMENT_STARTS


def parse_allocation(tokens: Sequence[str], start: int) -> Allocation | None:
    """The declaration whose first token is `start`, or None: a pointer, a reference, a parameter."""
    depth = {"<": 0, "[": 0, "(": 0}
    closing = {">": "<", "]": "[", ")": "("}
    names, last = [], -1
    for i in range(start, len(tokens)):
        token = tokens[i]
        outside = not any(depth.values())
        if outside and token in ("*", "&", "{", "}", "=", ")"):
            return None
        if outside and last >= 0 and token in ("[", ",", ";"):
            names.append(last - start)
            last = -1
        if outside and token == ";":
            return Allocation(tuple(tokens[start:i]), tuple(names)) if names else None
        if token in depth:
            depth[token] += 1
        elif token in closing:
            depth[closing[token]] -= 1
        elif outside and re.match(r"[A-Za-z_]", token):
            last = i
    return None


def rewrite(text: str, write: Callable[[Allocation], str]) -> str:
    """`text` with every threadgroup allocation replaced by what `write` makes of it, lines kept."""
    tokens = TOKEN.findall(text)
    out, i, depth = [], 0, 0
    while i < len(tokens):
        token = tokens[i]
        depth += {"(": 1, ")": -1}.get(token, 0)
        found = None
        if token == "threadgroup" and depth == 0 and starts_statement(tokens, i):
            found = parse_allocation(tokens, i + 1)
        if found is None:
            out.append(token)
            i += 1
            continue
        written = write(found)
        lines = "".join(found.tokens).count("\n") - written.count("\n")
        out.append(written + "\n" * lines)
        i += len(found.tokens) + 2  # the word before and the semicolon after
    return "".join(out)


def allocate_threadgroup(text: str) -> str:
    """Each variable a reference into the group's memory (sim/native/memory.cpp)."""

    def write(allocation: Allocation) -> str:
        types = f"typedef {allocation.renamed('SimType_')};"
        variables = "".join(
            f" static char sim_tag_{name}; SimType_{name}& {name} = *(SimType_{name}*)"
            f"sim_threadgroup(&sim_tag_{name}, sizeof({name}), sim::granularity<SimType_{name}>(),"
            f' sim::item_size<SimType_{name}>(), "{name}");'
            for name in allocation.variables
        )
        return types + variables

    return rewrite(text, write)

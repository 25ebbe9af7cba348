"""Rewriting of a thread's own variables that are declared without a value, for check mode.

`float sum[4];` becomes a `sim::Private` (include/sim/private.h), which knows what of it was written. A declaration
with a value stays as it is, and so does whatever is not plainly a declaration. No line moves.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tiny_llm.kernels.sim.rewrite import is_code, neighbour

TOKEN = re.compile(
    r'//[^\n]*|/\*.*?\*/|^[ \t]*#(?:\\\n|[^\n])*|"(?:\\.|[^"\\])*"|[A-Za-z_]\w*|::|\s+|.', re.DOTALL | re.MULTILINE
)
NAME = re.compile(r"[A-Za-z_]\w*")
RECORDS = {"struct", "class", "union", "enum", "namespace"}
BEFORE_A_BLOCK = {")", "else", "do", ";", "{", "}", ":", "const", "thread", "device", "constant", "threadgroup", ""}
WORDS_OF_NUMBERS = {"unsigned", "signed", "long", "short", "int", "char"}
QUALIFIERS = {"volatile", "thread"}
NO_TYPES = set(
    "return goto break continue case default delete new throw using typedef struct class union enum namespace template "
    "static constexpr extern const auto threadgroup device constant if else for while do switch public private "
    "protected friend operator sizeof static_assert co_return decltype typename register".split()
)


@dataclass(frozen=True)
class Declarator:
    """One variable of a declaration: its name, and what stands behind the name up to the comma or the semicolon."""

    name: str
    rest: str

    @property
    def has_value(self) -> bool:
        return bool(re.match(r"\s*(\[[^=]*\]\s*)*[={(]", self.rest))


def mark_private(text: str, within_function: bool) -> str:
    """`text` with each such variable a sim::Private. `within_function`: the text begins in a function's body."""
    tokens = TOKEN.findall(text)
    scopes = ["block" if within_function else "outside"]
    out: list[str] = []
    begin = 0  # of the statement
    parentheses = 0
    at = 0
    while at < len(tokens):
        token = tokens[at]
        starts = not parentheses and scopes[-1] == "block" and is_code(token) and starts_statement(tokens, at, begin)
        found = declaration(tokens, at) if starts else None
        if found:
            end, written = found
            out.append(written + "\n" * ("".join(tokens[at:end]).count("\n") - written.count("\n")))
            at = begin = end
            continue
        parentheses += {"(": 1, ")": -1}.get(token, 0)
        if token == "{":
            scopes.append(scope_of(tokens[begin:at], scopes[-1], parentheses))
        if token == "}" and len(scopes) > 1:
            scopes.pop()
        if token in (";", "{", "}") and not parentheses:
            begin = at + 1
        out.append(token)
        at += 1
    return "".join(out)


def starts_statement(tokens: Sequence[str], at: int, begin: int) -> bool:
    """Whether nothing but remarks and directives stands between the statement's begin and this token."""
    return bool(NAME.fullmatch(tokens[at])) and not any(
        is_code(token) and not token.lstrip().startswith("#") for token in tokens[begin:at]
    )


def scope_of(statement: Sequence[str], around: str, parentheses: int) -> str:
    """What a brace opens: a "block" of a function, a "switch", or "outside" (a struct, a namespace, a value)."""
    code = [token for token in statement if is_code(token) and not token.lstrip().startswith("#")]
    code = without_template(code)
    head = code[: code.index("(")] if "(" in code else code
    last = code[-1] if code else ""
    if parentheses or RECORDS & set(head) or last not in BEFORE_A_BLOCK:
        return "outside"
    if head == ["switch"]:
        return "switch"
    return "block" if around in ("block", "switch") or last else "outside"


def without_template(code: list[str]) -> list[str]:
    """A statement without the `template <…>` in front of it."""
    if not code or code[0] != "template":
        return code
    depth = 0
    for i, token in enumerate(code):
        depth += {"<": 1, ">": -1}.get(token, 0)
        if token == ">" and not depth:
            return without_template(code[i + 1 :])
    return code


def declaration(tokens: Sequence[str], start: int) -> tuple[int, str] | None:
    """The end of the declaration that begins here and what to write for it; None where it is none of ours."""
    kind_end = end_of_type(tokens, start)
    if kind_end is None:
        return None
    kind = "".join(tokens[start:kind_end]).strip()
    declarators = []
    at = kind_end
    while True:
        end = end_of_declarator(tokens, at)
        if end is None or not NAME.fullmatch(tokens[at]):
            return None
        declarators.append(Declarator(tokens[at], "".join(tokens[at + 1 : end])))
        at = neighbour(tokens, end, 1)
        if tokens[end] == ";":
            break
        if at >= len(tokens):
            return None
    if all(declarator.has_value for declarator in declarators):
        return None
    return end + 1, " ".join(written(kind, declarator) for declarator in declarators)


def written(kind: str, declarator: Declarator) -> str:
    name, rest = declarator.name, declarator.rest
    if declarator.has_value:
        return f"{kind} {name}{rest};"
    own = f"SimOwn_{name}"
    return (
        f'typedef {kind} {own}{rest}; sim::Private<{own}> sim_own_{name}("{name}"); '
        f"{own}& {name} = sim_own_{name}.get();"
    )


def end_of_type(tokens: Sequence[str], at: int) -> int | None:
    """The first token of the first variable, when a type stands before it."""
    while at < len(tokens) and tokens[at] in QUALIFIERS:
        at = neighbour(tokens, at, 1)
    if at >= len(tokens) or not NAME.fullmatch(tokens[at]) or tokens[at] in NO_TYPES:
        return None
    if tokens[at] in WORDS_OF_NUMBERS:
        while at < len(tokens) and tokens[at] in WORDS_OF_NUMBERS:
            at = neighbour(tokens, at, 1)
        return at if at < len(tokens) else None
    at = neighbour(tokens, at, 1)
    # Behind the first name: `::` with the next name of the path, or `<…>`. The name of the variable ends the loop.
    while at < len(tokens) and tokens[at] in ("::", "<"):
        at = neighbour(tokens, at, 1) if tokens[at] == "::" else after_angles(tokens, at)
        if at < len(tokens) and NAME.fullmatch(tokens[at]) and before(tokens, at) == "::":
            at = neighbour(tokens, at, 1)
    return at if at < len(tokens) and NAME.fullmatch(tokens[at]) else None


def before(tokens: Sequence[str], at: int) -> str:
    return tokens[neighbour(tokens, at, -1)]


def after_angles(tokens: Sequence[str], at: int) -> int:
    """The token behind the `>` that closes this `<`; the end of the tokens where a statement ends first."""
    depth = 0
    while at < len(tokens) and tokens[at] not in (";", "{", "}"):
        depth += {"<": 1, ">": -1}.get(tokens[at], 0)
        if not depth:
            return neighbour(tokens, at, 1)
        at = neighbour(tokens, at, 1)
    return len(tokens)


def end_of_declarator(tokens: Sequence[str], at: int) -> int | None:
    """The comma or semicolon behind a variable; None where something else than a value or a size follows its name."""
    after = neighbour(tokens, at, 1)
    if after >= len(tokens) or tokens[after] not in (";", ",", "[", "=", "{", "("):
        return None
    depth = 0
    while after < len(tokens):
        token = tokens[after]
        if token in (";", ",") and not depth:
            return after
        if token == ";" and "{" not in tokens[at:after]:
            return None
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(token, 0)
        after += 1
    return None

"""What the operations of a chat template may cost: checked before they run, against the current allowance."""

import re
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.runtime import BlockReference, LoopContext, Macro, Undefined
from jinja2.sandbox import SandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Cycler, Joiner
from markupsafe import Markup

from tiny_llm.model.allowance import BITS, CURRENT, OBJECT, LimitError, cost

WIDEST = 10_000  # of a field, an indentation, and of what else a number makes longer
FREE = {"abs", "attr", "count", "d", "default", "first", "float", "int", "last", "length", "round", "safe"}
LAZY = {"batch", "items", "list", "map", "reject", "rejectattr", "reverse", "select", "selectattr", "slice"}
FACTORS = {
    # urlencode writes a character of four bytes as %F0%9F%98%80; the others make less of it
    **dict.fromkeys(("e", "escape", "forceescape", "tojson", "urlencode"), 12),
    # these make an object of each item, word or character
    **dict.fromkeys(("sort", "title", "unique", "wordcount"), OBJECT),
}
PADDING = {"center", "expandtabs", "ljust", "rjust", "zfill"}
COMPARING = {"!=", "<", "<=", "==", ">", ">=", "eq", "equalto", "ge", "greaterthan", "gt", "in", "le", "lessthan"}
COMPARING |= {"lt", "ne"}
MULTIPLYING = {"batch", "center", "format", "indent", "round", "slice", "tojson"}
SEPARATOR = 100  # characters of a separator in JSON at most
LINES = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
FIELD = re.compile(r"%(?:\(.*?\))?[-#0 +]*(\*|\d+)?(?:\.(\*|\d+))?")
STR = set(
    "capitalize casefold center count endswith expandtabs find index isalnum isalpha isascii isdecimal isdigit "
    "isidentifier islower isnumeric isprintable isspace istitle isupper join ljust lower lstrip partition "
    "removeprefix removesuffix replace rfind rindex rjust rpartition rsplit rstrip split splitlines startswith strip "
    "swapcase title upper zfill".split()
)
METHODS: dict[type, set[str]] = {
    str: STR,
    dict: {"copy", "get", "items", "keys", "values"},
    list: {"copy", "count", "index"},
    tuple: {"count", "index"},
    float: {"is_integer"},
}


def check_operator(operator: str, left: Any, right: Any) -> None:
    """Check left + right and the like, which spend what they make."""
    allowance = CURRENT.get()
    if operator == "+" and isinstance(left, str | list | tuple):
        allowance.spend(cost(left) + cost(right))
    elif operator == "*" and isinstance(left, int) and isinstance(right, str | list | tuple):
        check_operator(operator, right, left)
    elif operator == "*" and isinstance(left, str | list | tuple) and isinstance(right, int):
        allowance.spend(cost(left) * max(0, right))
    elif operator == "%" and isinstance(left, str):
        _check_percent(left, right)
    elif isinstance(left, int) and isinstance(right, int):
        allowance.spend(0)
        _check_bits(operator, left, right)
    else:
        allowance.spend(0)


def _check_bits(operator: str, left: int, right: int) -> None:
    bits = max(left.bit_length(), right.bit_length())
    if operator == "*":
        bits = left.bit_length() + right.bit_length()
    elif operator == "**":
        bits = left.bit_length() * max(1, right)
    if bits > BITS:
        raise LimitError("it made too large an integer", f"{BITS} bits")


def _check_percent(form: str, values: Any) -> None:
    """Check a printf-like text: each field may show all of the values."""
    fields = FIELD.findall(form)
    for numbers in fields:
        _check_widths(numbers)
    allowance = CURRENT.get()
    allowance.spend(len(form) + len(fields) * (WIDEST if any(map(any, fields)) else 0))
    allowance.spend(4 * max(1, len(fields)) * allowance.size_of(values))


def _check_widths(numbers: Sequence[str]) -> None:
    for number in numbers:
        if number == "*" or len(number) > 6 or int(number or "0") > WIDEST:
            raise _too_wide()


def _too_wide() -> LimitError:
    return LimitError("it made too wide a field", f"{WIDEST} characters")


class Format:
    """Python's `text.format(…)`, with checks. `method`: the bound method str.format or str.format_map."""

    def __init__(self, environment: SandboxedEnvironment, method: Any):
        self.environment = environment
        self.original = method
        if isinstance(method.__self__, Markup):
            raise SecurityError("it calls format on a text behind the filter safe, which templates may not")

    def method(self, *args: Any, **kwargs: Any) -> str:
        values: Mapping[str, Any] = kwargs
        if self.original.__name__ == "format_map":
            (values,) = args
            args = ()
        return Formatter(self.environment).vformat(self.original.__self__, args, values)


class Formatter(SandboxedFormatter):
    """Formats a field only if it is not too wide."""

    def format_field(self, value: Any, format_spec: str) -> Any:
        _check_widths(re.findall(r"\d+", format_spec))
        CURRENT.get().spend_on(value)
        text = super().format_field(value, format_spec)
        CURRENT.get().spend(len(text))
        return text

    def convert_field(self, value: Any, conversion: Any) -> Any:
        CURRENT.get().spend_on(value)
        return super().convert_field(value, conversion)


def materialized(name: str, args: tuple[Any, ...], place: int) -> tuple[Any, ...]:
    """Return a filter's arguments with a list in place of an iterator as the value, which is args[place].

    A list can be measured.
    """
    if len(args) <= place or name in FREE or name in LAZY or not isinstance(args[place], Iterator):
        return args
    return (*args[:place], list(args[place]), *args[place + 1 :])


def check_filter(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Check value|name(…), args[0] being the value."""
    allowance = CURRENT.get()
    allowance.spend(0)
    others = [*args[1:], *kwargs.values()]
    if name in MULTIPLYING and any(isinstance(each, int | float) and abs(each) > WIDEST for each in others):
        raise LimitError(f"it gave the filter {name} too large a number", str(WIDEST))
    if name in FREE or not args:
        return
    value = args[0]
    if name in LAZY:
        allowance.spend(OBJECT * len(value) if isinstance(value, str) else cost(value))
        return
    sizes = [allowance.size_of(each) for each in [value, *others]]
    allowance.spend(FACTORS.get(name, 1) * sum(sizes))
    _check_growth(name, value, others, kwargs)


def _check_growth(name: str, value: Any, others: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Check the filters that make more than they get."""
    allowance = CURRENT.get()
    if name == "replace" and isinstance(value, str):
        check_method("replace", value, [str(each) for each in others])
    elif name == "join":
        glue = max((len(each) for each in others if isinstance(each, str)), default=0)
        allowance.spend(glue * len(value))
    elif name == "indent":
        width = max((len(each) if isinstance(each, str) else int(each) for each in others), default=4)
        allowance.spend(width * (sum(map(str(value).count, LINES)) + 1))
    elif name == "center":
        allowance.spend(WIDEST)
    elif name == "format":
        _check_percent(str(value), tuple(others))
    elif name == "sum":
        if any(isinstance(each, list | tuple) for each in others):
            raise SecurityError("it sums lists, which takes too long, so that templates may not")
    elif name == "tojson":
        texts = [each for each in [*others, *(kwargs.get("separators") or ())] if isinstance(each, str)]
        if sum(map(len, texts)) > SEPARATOR:
            raise LimitError("it wrote JSON with too long separators", f"{SEPARATOR} characters")


def check_test(name: str, args: Sequence[Any]) -> None:
    """Check `value is name(…)`: comparing takes as long as the values are large."""
    allowance = CURRENT.get()
    allowance.spend(0)
    if name in COMPARING:
        for each in args:
            allowance.size_of(each)


def check_call(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Check function(…), which must be the template's own, the environment's, or a method known to be safe."""
    allowance = CURRENT.get()
    allowance.spend(0)
    if isinstance(function, types.BuiltinMethodType):
        owner = function.__self__
        if not any(function.__name__ in names for kind, names in METHODS.items() if isinstance(owner, kind)):
            raise SecurityError(f"it calls {function.__name__} of {type(owner).__name__}, which templates may not")
        for each in [owner, *args] if isinstance(owner, list | tuple) else args:
            allowance.size_of(each)
        if isinstance(owner, str):
            check_method(function.__name__, owner, args)
    elif isinstance(function, types.MethodType):
        if not isinstance(function.__self__, Format | LoopContext | Cycler | Joiner):
            raise SecurityError(f"it calls {function.__name__}, which templates may not")
        for each in args:
            allowance.size_of(each)
    elif isinstance(function, type):
        allowance.spend(sum(map(cost, [*args, *kwargs.values()])))
    elif not isinstance(function, Macro | LoopContext | BlockReference | Undefined | Joiner | types.FunctionType):
        raise SecurityError(f"it calls a {type(function).__name__}, which templates may not")


def check_method(name: str, text: str, args: Sequence[Any]) -> None:
    """Check text.name(…)."""
    if name in PADDING:
        made = _padded(text, args)
    elif name == "replace":
        made = _replaced(text, args)
    elif name == "join" and args:
        made = CURRENT.get().size_of(args[0]) + len(text) * len(args[0])
    elif name in ("split", "rsplit"):
        made = _split(text, args)
    elif name == "splitlines":
        lines = sum(map(text.count, LINES))
        made = len(text) + OBJECT * lines
    else:
        made = 3 * len(text)  # upper() makes up to three characters of one
    CURRENT.get().spend(made)


def _padded(text: str, args: Sequence[Any]) -> int:
    """Return how many characters at most text.center(…) and its like make. Raises LimitError for a width too large."""
    widths = [each for each in args if isinstance(each, int)]
    widest = max(widths, default=8)  # 8: a tab's, when expandtabs is given none
    if widest > WIDEST:
        raise _too_wide()
    return WIDEST + len(text) + text.count("\t") * widest


def _replaced(text: str, args: Sequence[Any]) -> int:
    """Return how many characters at most text.replace(…) makes."""
    if len(args) < 2 or not isinstance(args[0], str) or not isinstance(args[1], str):
        return 3 * len(text)
    old, new = args[:2]
    return len(text) + text.count(old) * len(new)


def _split(text: str, args: Sequence[Any]) -> int:
    """Return how many characters' memory text.split(…) takes."""
    separator = args[0] if args else None
    pieces = len(text) // 2 + 1
    if isinstance(separator, str) and separator:
        pieces = text.count(separator) + 1
    return len(text) + OBJECT * pieces

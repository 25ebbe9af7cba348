"""Check, before an operation of a chat template runs, that its cost is within the current allowance."""

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

WIDEST = 10_000  # characters of a field, an indentation and the like, whose width a template gives as a number
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
    """Check left + right and the like, and spend the size of the result."""
    allowance = CURRENT.get()
    if operator == "*" and isinstance(left, int) and _is_row(right):
        left, right = right, left
    if operator == "+" and _is_row(left):
        allowance.spend(cost(left) + cost(right))
    elif operator == "*" and _is_row(left) and isinstance(right, int):
        times = max(0, right)
        allowance.spend(cost(left) * times)
    elif operator == "%" and isinstance(left, str):
        _check_percent(left, right)
    elif isinstance(left, int) and isinstance(right, int):
        allowance.spend(0)
        _check_bits(operator, left, right)
    else:
        allowance.spend(0)


def _is_row(value: Any) -> bool:
    """Return whether + and * make a longer text or list of the value."""
    return isinstance(value, str | list | tuple)


def _check_bits(operator: str, left: int, right: int) -> None:
    bits = max(left.bit_length(), right.bit_length())
    if operator == "*":
        bits = left.bit_length() + right.bit_length()
    elif operator == "**":
        bits = left.bit_length() * max(1, right)
    if bits > BITS:
        raise LimitError("it made too large an integer", f"{BITS} bits")


def _check_percent(form: str, values: Any) -> None:
    """Check a printf-like text. The cost assumes that each field shows all of the values."""
    fields = FIELD.findall(form)
    padding = 0
    for numbers in fields:
        _check_widths(numbers)
        if any(numbers):
            padding = len(fields) * WIDEST
    allowance = CURRENT.get()
    allowance.spend(len(form) + padding)
    shown = max(1, len(fields))
    allowance.spend(4 * shown * allowance.size_of(values))


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
    """Return a filter's arguments; if the value args[place] is an iterator, make it a list, which can be measured."""
    if len(args) <= place or name in FREE or name in LAZY:
        return args
    value = args[place]
    if not isinstance(value, Iterator):
        return args
    behind = args[place + 1 :]
    return (*args[:place], list(value), *behind)


def check_filter(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Check value|name(…), args[0] being the value."""
    allowance = CURRENT.get()
    allowance.spend(0)
    others = [*args[1:], *kwargs.values()]
    if name in MULTIPLYING:
        numbers = [each for each in others if isinstance(each, int | float)]
        if any(abs(number) > WIDEST for number in numbers):
            raise LimitError(f"it gave the filter {name} too large a number", str(WIDEST))
    if name in FREE or not args:
        return
    value = args[0]
    if name in LAZY:
        objects = isinstance(value, str)  # one for each character
        allowance.spend(OBJECT * len(value) if objects else cost(value))
        return
    size = sum(allowance.size_of(each) for each in [value, *others])
    allowance.spend(FACTORS.get(name, 1) * size)
    _check_growth(name, value, others, kwargs)


def _check_growth(name: str, value: Any, others: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Check the filters whose result may be larger than their input."""
    allowance = CURRENT.get()
    if name == "replace" and isinstance(value, str):
        check_method("replace", value, [str(each) for each in others])
    elif name == "join":
        glues = [len(each) for each in others if isinstance(each, str)]
        allowance.spend(max(glues, default=0) * len(value))
    elif name == "indent":
        widths = [len(each) if isinstance(each, str) else int(each) for each in others]
        lines = sum(map(str(value).count, LINES)) + 1
        allowance.spend(max(widths, default=4) * lines)
    elif name == "center":
        allowance.spend(WIDEST)
    elif name == "format":
        _check_percent(str(value), tuple(others))
    elif name == "sum":
        if any(isinstance(each, list | tuple) for each in others):
            raise SecurityError("it sums lists, which takes too long, so that templates may not")
    elif name == "tojson":
        separators = kwargs.get("separators") or ()
        _check_separators([*others, *separators])


def _check_separators(arguments: Sequence[Any]) -> None:
    lengths = [len(each) for each in arguments if isinstance(each, str)]
    if sum(lengths) > SEPARATOR:
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
        _check_builtin(function, args)
    elif isinstance(function, types.MethodType):
        if not isinstance(function.__self__, Format | LoopContext | Cycler | Joiner):
            raise SecurityError(f"it calls {function.__name__}, which templates may not")
        for each in args:
            allowance.size_of(each)
    elif isinstance(function, type):
        given = [*args, *kwargs.values()]
        allowance.spend(sum(map(cost, given)))
    elif not isinstance(function, Macro | LoopContext | BlockReference | Undefined | Joiner | types.FunctionType):
        raise SecurityError(f"it calls a {type(function).__name__}, which templates may not")


def _check_builtin(method: types.BuiltinMethodType, args: Sequence[Any]) -> None:
    """Check a method of a text, list or other built-in object."""
    name = method.__name__
    owner = method.__self__
    allowed = [names for kind, names in METHODS.items() if isinstance(owner, kind)]
    if not any(name in names for names in allowed):
        raise SecurityError(f"it calls {name} of {type(owner).__name__}, which templates may not")
    allowance = CURRENT.get()
    if isinstance(owner, list | tuple):
        allowance.size_of(owner)
    for each in args:
        allowance.size_of(each)
    if isinstance(owner, str):
        check_method(name, owner, args)


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
    if len(args) < 2:
        return 3 * len(text)
    old, new = args[:2]
    if not isinstance(old, str) or not isinstance(new, str):
        return 3 * len(text)
    return len(text) + text.count(old) * len(new)


def _split(text: str, args: Sequence[Any]) -> int:
    """Return how many characters' memory text.split(…) takes."""
    separator = args[0] if args else None
    pieces = len(text) // 2 + 1
    if isinstance(separator, str) and separator:
        pieces = text.count(separator) + 1
    return len(text) + OBJECT * pieces

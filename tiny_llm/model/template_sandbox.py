"""The environment that chat templates run in: that of Hugging Face templates, with limits of time and size.

A template comes with a model's files and could hang the process or fill its memory. Jinja's sandbox keeps it from
reaching out; here each operation that can take long or make much first asks the allowance of the running rendering
(`allowance.py`): operators, filters, tests and calls, each turn of a loop, and each text that is joined to others.
"""

import json
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import wraps
from typing import Any, cast

from jinja2 import TemplateError, nodes, pass_context
from jinja2.compiler import CodeGenerator
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from tiny_llm.model import template_costs
from tiny_llm.model.allowance import CURRENT, cost

INTERCEPTED = frozenset(["+", "-", "*", "/", "//", "%", "**"])
WITHOUT = ("lipsum", "pprint", "random", "striptags", "urlize", "wordwrap", "xmlattr")  # no template needs them


class RefusalError(TemplateError):
    """The template called `raise_exception`: it does not take these messages."""


class GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}`, which marks a training target: here only what is inside."""

    tags = {"generation"}  # noqa: RUF012  jinja2 declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Checks(NodeTransformer):
    """Puts a checking filter around each operation that the sandbox does not intercept.

    _turn    each turn of a loop
    _text    values that become text: output, and the parts of a ~ b
    _part    slices
    _whole   values that are compared or hashed, with all that they contain
    """

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_checked(nodes.Const(None), "_turn", node), lineno=node.lineno))
        if node.test is not None:
            node.test = _checked(node.test, "_turn", node)
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Output:  # noqa: N802
        self.generic_visit(node)
        node.nodes = [_checked(each, "_text", node) for each in node.nodes]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Concat:  # noqa: N802
        self.generic_visit(node)
        node.nodes = [_checked(each, "_text", node) for each in node.nodes]
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:  # noqa: N802
        self.generic_visit(node)
        return _checked(node, "_part", node) if isinstance(node.arg, nodes.Slice) else node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:  # noqa: N802
        self.generic_visit(node)
        node.expr = _checked(node.expr, "_whole", node)
        for operand in node.ops:
            operand.expr = _checked(operand.expr, "_whole", node)
        return node

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:  # noqa: N802
        self.generic_visit(node)
        return _checked(node, "_whole", node) if node.ctx == "load" else node


class Generator(CodeGenerator):
    """Compiles a template with checks in it."""

    def visit_Template(self, node: nodes.Template, frame: Any = None) -> None:  # noqa: N802  as in jinja2
        super().visit_Template(Checks().visit(node), frame)


class Environment(ImmutableSandboxedEnvironment):
    """A sandbox whose operations spend the current allowance."""

    intercepted_binops = INTERCEPTED
    code_generator_class = Generator

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, GenerationTag])
        self.filters["tojson"] = _tojson
        for name in WITHOUT:
            self.filters.pop(name, None)
            self.globals.pop(name, None)
        self.filters = {name: _limited(name, function) for name, function in self.filters.items()}
        self.tests = {name: _limited_test(name, cast(Any, function)) for name, function in self.tests.items()}
        self.filters |= {"_turn": _turn, "_text": _text, "_part": _part, "_whole": _whole}
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        template_costs.check_operator(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805  as in jinja2
        template_costs.check_call(__obj, args, kwargs)
        return super().call(__context, __obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if super().wrap_str_format(value) is None:
            return None
        return template_costs.Format(self, value).method

    def concat(self, pieces: Iterable[str]) -> str:
        """Join the pieces that a template, a macro or a block writes."""
        allowance = CURRENT.get()
        kept = []
        for piece in pieces:
            allowance.spend(len(piece))
            kept.append(piece)
        return "".join(kept)


def _checked(node: Any, name: str, place: nodes.Node) -> Any:
    """Return the expression behind one of the filters that check."""
    if isinstance(node, nodes.TemplateData) or (isinstance(node, nodes.Const) and name != "_turn"):
        return node
    call = nodes.Filter(node, name, [], [], None, None, lineno=place.lineno)
    return call.set_environment(place.environment) if place.environment else call


@pass_context  # so that it is not done once and for all when the template is compiled
def _turn(context: Context, value: Any) -> Any:
    CURRENT.get().spend(0)
    return value


def _text(value: Any) -> Any:
    CURRENT.get().spend_on(value)
    return value


def _part(value: Any) -> Any:
    CURRENT.get().spend(cost(value))
    return value


def _whole(value: Any) -> Any:
    if not isinstance(value, str):
        CURRENT.get().size_of(value)
    return value


def _limited(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that checks its arguments and spends the size of its result."""

    place = 1 if hasattr(function, "jinja_pass_arg") else 0  # of the value: the context may come first

    @wraps(function)
    def limited(*args: Any, **kwargs: Any) -> Any:
        args = template_costs.materialized(name, args, place)
        template_costs.check_filter(name, args[place:], kwargs)
        result = function(*args, **kwargs)
        if name not in template_costs.FREE:
            CURRENT.get().spend(cost(result))
        return result

    return limited


def _limited_test(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def limited(*args: Any, **kwargs: Any) -> Any:
        template_costs.check_test(name, args)
        return function(*args, **kwargs)

    return limited


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return JSON as Hugging Face templates write it; Jinja's own filter would escape HTML."""
    options: dict[str, Any] = {"ensure_ascii": ensure_ascii, "separators": separators, "sort_keys": sort_keys}
    if indent is None:
        return json.dumps(value, **options)
    pieces = []
    for piece in json.JSONEncoder(indent=indent, **options).iterencode(value):
        CURRENT.get().spend(len(piece))
        pieces.append(piece)
    return "".join(pieces)


def _raise_exception(message: Any) -> None:
    CURRENT.get().spend_on(message)
    raise RefusalError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form[:1000])

"""The kernel's signature as MLX generates it from a body's text (`mx.fast.metal_kernel`, mlx 0.32), byte for byte.

An argument exists because its name occurs in the body, comments included: `x_shape`, `x_strides`, `x_ndim` and the
attributes such as `thread_position_in_grid`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

TemplateArguments = Sequence[tuple[str, Any]]

TYPES = {
    mx.bool_: "bool",
    mx.uint8: "uint8_t",
    mx.uint16: "uint16_t",
    mx.uint32: "uint32_t",
    mx.uint64: "uint64_t",
    mx.int8: "int8_t",
    mx.int16: "int16_t",
    mx.int32: "int32_t",
    mx.int64: "int64_t",
    mx.float16: "float16_t",
    mx.bfloat16: "bfloat16_t",
    mx.float32: "float",
    mx.complex64: "complex64_t",
}
ATTRIBUTES = (
    ("dispatch_quadgroups_per_threadgroup", "uint"),
    ("dispatch_simdgroups_per_threadgroup", "uint"),
    ("dispatch_threads_per_threadgroup", "uint3"),
    ("grid_origin", "uint3"),
    ("grid_size", "uint3"),
    ("quadgroup_index_in_threadgroup", "uint"),
    ("quadgroups_per_threadgroup", "uint"),
    ("simdgroup_index_in_threadgroup", "uint"),
    ("simdgroups_per_threadgroup", "uint"),
    ("thread_execution_width", "uint"),
    ("thread_index_in_quadgroup", "uint"),
    ("thread_index_in_simdgroup", "uint"),
    ("thread_index_in_threadgroup", "uint"),
    ("thread_position_in_grid", "uint3"),
    ("thread_position_in_threadgroup", "uint3"),
    ("threadgroup_position_in_grid", "uint3"),
    ("threadgroups_per_grid", "uint3"),
    ("threads_per_grid", "uint3"),
    ("threads_per_simdgroup", "uint"),
    ("threads_per_threadgroup", "uint3"),
)
FEW = 8  # inputs of fewer elements are `constant`, others `device`


@dataclass(frozen=True)
class Interface:
    """What a kernel is given once, when it is made."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    atomic_outputs: bool = False
    ensure_row_contiguous: bool = True
    math_mode: str = "safe"

    def __post_init__(self) -> None:
        if not self.outputs:
            raise ValueError(f"kernel {self.name}: expected at least one output")
        names = (self.name, *self.inputs, *self.outputs)
        if bad := [name for name in names if not re.fullmatch(r"[A-Za-z_]\w*", name)]:
            raise ValueError(f"kernel {self.name}: {bad[0]!r} is no C++ name; use letters, digits and _")
        if twice := [name for name in names[1:] if names[1:].count(name) > 1]:
            raise ValueError(f"kernel {self.name}: two arguments are named {twice[0]!r}")


@dataclass(frozen=True)
class Argument:
    """One parameter that is a buffer: kind is in, shape, strides, ndim or out; `name` the array's."""

    kind: str
    name: str
    space: str  # "const device ", "device ", …
    type: str
    reference: bool = False

    def text(self, index: int) -> str:
        suffix = "" if self.kind in ("in", "out") else f"_{self.kind}"
        return f"  {self.space}{self.type}{'&' if self.reference else '*'} {self.name}{suffix} [[buffer({index})]]"

    def cast(self, index: int) -> str:
        """C++ that takes it from the entry point's array."""
        const = "const " if self.kind != "out" else ""
        return f"{'*' if self.reference else ''}({const}{self.type}*)argument[{index}]"


@dataclass(frozen=True)
class Signature:
    """`text(header, body)` is MLX's whole source; `declaration` is it from the template to the opening brace."""

    function: str
    declaration: str
    template_arguments: str
    arguments: tuple[Argument, ...]
    attributes: tuple[tuple[str, str], ...]

    def text(self, header: str, body: str) -> str:
        source = f"{header}{self.declaration}{body}\n}}\n"
        if self.template_arguments:
            call = f"{self.function}{self.template_arguments}"
            source += f'\ntemplate [[host_name("{self.function}")]] [[kernel]] decltype({call}) {call};\n'
        return source


def template_argument(value: Any) -> str:
    """Raises ValueError for what is neither bool, int nor Dtype."""
    if isinstance(value, mx.Dtype):
        return type_name(value)
    if isinstance(value, int):
        return str(int(value))
    raise ValueError(f"template argument {value!r}: expected a bool, an int or a Dtype")


def type_name(dtype: mx.Dtype) -> str:
    if dtype not in TYPES:
        raise ValueError(
            f"a Metal kernel has no {str(dtype).removeprefix('mlx.core.')}; convert it, for example to float32"
        )
    return TYPES[dtype]


def generate(
    interface: Interface,
    body: str,
    inputs: Sequence[mx.array],
    output_dtypes: Sequence[mx.Dtype],
    template: TemplateArguments,
) -> Signature:
    """The signature for these inputs: it depends on their dtypes, on which are scalars and which are short."""
    given = "<" + ", ".join(template_argument(value) for _, value in template) + ">" if template else ""
    function = f"custom_kernel_{interface.name}"
    if template:
        function += "_" + re.sub(r"<|>|, |-", "_", given)[:-1]
    for x in inputs:
        function += f"_{type_name(x.dtype)}{'s' if x.ndim == 0 else 'c' if x.size < FEW else ''}"
    function += "".join(f"_{type_name(dtype)}" for dtype in output_dtypes)
    arguments = input_arguments(interface, body, inputs) + output_arguments(interface, output_dtypes)
    attributes = tuple((name, kind) for name, kind in ATTRIBUTES if name in body)
    lines = [argument.text(i) for i, argument in enumerate(arguments)]
    lines += [f"  {kind} {name} [[{name}]]" for name, kind in attributes]
    declaration = f"[[kernel]] void {function}(\n{joined(lines, interface, len(arguments), bool(attributes))}"
    if template:
        kinds = ((name, value) for name, value in template)
        parameters = ", ".join(f"{parameter_kind(value)} {name}" for name, value in kinds)
        declaration = f"template <{parameters}>\n{declaration}"
    return Signature(function, declaration, given, tuple(arguments), attributes)


def parameter_kind(value: Any) -> str:
    return "typename" if isinstance(value, mx.Dtype) else "bool" if isinstance(value, bool) else "int"


def joined(lines: Sequence[str], interface: Interface, arguments: int, has_attributes: bool) -> str:
    """The parameters up to the brace. MLX closes the list early where shapes are passed, no attribute is used and
    there are several outputs; so that nobody finds this out on a GPU, it is refused here."""
    arrays = len(interface.inputs) + len(interface.outputs)
    if not has_attributes and arguments > arrays and len(interface.outputs) > 1:
        raise ValueError(
            f"kernel {interface.name}: MLX makes invalid source of several outputs with shape arguments and no "
            "attribute; use thread_position_in_grid in the body"
        )
    return ",\n".join(lines) + ") {\n"


def input_arguments(interface: Interface, body: str, inputs: Sequence[mx.array]) -> list[Argument]:
    arguments = []
    for name, x in zip(interface.inputs, inputs, strict=True):
        space = "const constant " if x.size < FEW else "const device "
        arguments.append(Argument("in", name, space, type_name(x.dtype), x.ndim == 0))
        for kind, of in (("shape", "int"), ("strides", "int64_t"), ("ndim", "int")):
            if x.ndim > 0 and f"{name}_{kind}" in body:
                arguments.append(Argument(kind, name, "const constant ", of, kind == "ndim"))
    return arguments


def output_arguments(interface: Interface, dtypes: Sequence[mx.Dtype]) -> list[Argument]:
    wrap = "atomic<{}>" if interface.atomic_outputs else "{}"
    return [
        Argument("out", name, "device ", wrap.format(type_name(dtype)))
        for name, dtype in zip(interface.outputs, dtypes, strict=True)
    ]

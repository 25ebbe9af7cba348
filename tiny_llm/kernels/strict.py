"""The strict front end: what Apple's compiler would reject, found with clang's (the package libclang) on any machine.

Address spaces are real there, so a device pointer is no threadgroup pointer. It knows nothing of registers, of
`maxTotalThreadsPerThreadgroup` or of fast math.
"""

import ctypes
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
from clang import cindex  # type: ignore[import-untyped]
from clang.cindex import CursorKind, TypeKind  # type: ignore[import-untyped]

from tiny_llm.kernels.catalog import DTYPES, KernelEntry
from tiny_llm.kernels.sim import Dispatch, Interface, Source, compiler, wheel
from tiny_llm.kernels.sim.recorder import Recorder
from tiny_llm.kernels.sim.report import Finding
from tiny_llm.kernels.sim.rewrite import Allocation, rewrite
from tiny_llm.kernels.sim.signature import generate

INCLUDE = Path(__file__).parent / "sim" / "strict"
HELPERS = f"{wheel.KERNELS}utils.h"
PREAMBLE = f'#include "metal_strict.h"\n#include "{HELPERS}"\ntypedef int end_of_preamble;'
METAL_HEADERS = sorted(path.name for path in compiler.INCLUDE.glob("metal_*"))  # all of them are metal_strict.h here
ARGUMENTS = (
    *("-x", "c++", "-std=c++17", "-target", "x86_64-linux-gnu", "-fsyntax-only", "-nostdinc", f"-I{INCLUDE}"),
    *("-Wno-everything", "-Werror=return-type", "-Werror=uninitialized", "-Werror=sometimes-uninitialized"),
)
SPACES = {"device", "constant", "threadgroup", "thread", "auto"}
BANNED = {
    "LAMBDA_EXPR": "lambdas",
    "GOTO_STMT": "goto",
    "CXX_NEW_EXPR": "new",
    "CXX_DELETE_EXPR": "delete",
    "CXX_THROW_EXPR": "throw",
    "CXX_TRY_STMT": "try",
    "CXX_DYNAMIC_CAST_EXPR": "dynamic_cast",
    "CXX_TYPEID_EXPR": "typeid",
}
WORDS = (  # how clang says it, how Metal's users think of it
    ("automatic variable qualified with an address space", "a threadgroup variable can't be initialised, nor stand in "
     "a nested expression; assign it from the threads and put a barrier after"),
    ("'metal_has_no_double'", "Metal has no double; use float"),
)  # fmt: skip

MLX_HEADER = "MLX's headers are not on the include path when Metal compiles a kernel; copy what you need into `header`"


def strict_faults(entry: KernelEntry, replace: Mapping[str, Path]) -> list[str]:
    """What is rejected of a kernel, for each dtype and kind of example. `replace`: another source for it."""
    recorder = Recorder(replace=replace)
    for dtype in DTYPES:
        for arguments in entry.examples(dtype):
            entry.run(arguments, recorder)
    return list(dict.fromkeys(str(finding) for call in recorder.calls for finding in strict(*call)))


@cache
def parsed() -> Any:
    """The unit that each launch's source is put into: clang keeps what the headers in front of it declare."""
    options = cindex.TranslationUnit.PARSE_PRECOMPILED_PREAMBLE
    arguments = (*ARGUMENTS, f"-I{compiler.mlx_include()}")
    files = [("strict.cpp", PREAMBLE), *unsaved_headers()]
    return cindex.Index.create().parse("strict.cpp", arguments, unsaved_files=files, options=options)


def strict(interface: Interface, source: Source, inputs: Sequence[mx.array], dispatch: Dispatch) -> list[Finding]:
    """What Metal's compiler would reject in this launch's source; empty when it would take it."""
    signature = generate(interface, source.body, inputs, dispatch.output_dtypes, dispatch.template)
    call = f"{signature.function}{signature.template_arguments}"
    lines = [
        PREAMBLE,
        f'#line {source.header_line} "{source.label}"',
        rewrite(source.header, as_static),
        '#line 1 "signature"',
        signature.declaration,
        f'#line {source.body_line} "{source.label}"',
        rewrite(source.body, as_static),
        "}",
        f"template decltype({call}) {call};" if signature.template_arguments else "",
    ]
    text = "\n".join(lines)
    unit = parsed()
    unit.reparse([("strict.cpp", text), *unsaved_headers()])
    errors = [d for d in unit.diagnostics if d.severity >= cindex.Diagnostic.Error and not of_mlx(d)]
    found = [(presumed(d.location, source), plain_message(d.spelling)) for d in errors] or list(
        lint(unit.cursor, source, text)
    )
    found = [*headers_of_mlx(source), *found]
    return [
        Finding("rejected", source.label, line, text, f"Metal's compiler would not take it: `{source.line(line)}`")
        for line, text in dict.fromkeys(found)
    ]


def headers_of_mlx(source: Source) -> Iterator[tuple[int, str]]:
    """The lines that include a header of MLX's, which the simulator reads."""
    for text, first in ((source.header, source.header_line), (source.body, source.body_line)):
        for found in wheel.INCLUDE.finditer(text):
            line = first + text[: found.start(1)].count("\n")
            yield line, MLX_HEADER


@cache
def unsaved_headers() -> list[tuple[str, str]]:
    """Apple's headers, all of them metal_strict.h, and MLX's helper functions as a kernel finds them in front of it.

    clang refuses an array of an address space as a parameter, which is a pointer.
    """
    found = [(str(INCLUDE / name), '#include "metal_strict.h"\n') for name in METAL_HEADERS]
    text = (compiler.mlx_include() / HELPERS).read_text(encoding="utf-8")
    return [*found, (str(INCLUDE / HELPERS), re.sub(r"int64_t strides\[\d\]", "int64_t* strides", text))]


def of_mlx(diagnostic: Any) -> bool:
    """Whether MLX's own file is blamed, which Apple's compiler takes."""
    file = diagnostic.location.file
    return file is not None and Path(file.name).name == Path(HELPERS).name


def as_static(allocation: Allocation) -> str:
    return f"static threadgroup {''.join(allocation.tokens).strip()};"


def plain_message(message: str) -> str:
    return next((words for said, words in WORDS if said in message), message)


def presumed(location: Any, source: Source) -> int:
    """The line in the `.metal` file by its #line marks; 0 where the place is not in it."""
    name, line = presumed_location(location)
    return line if name == source.label else 0


def presumed_location(location: Any) -> tuple[str, int]:
    file, line, column = cindex._CXString(), ctypes.c_uint(), ctypes.c_uint()
    get = cindex.conf.lib.clang_getPresumedLocation
    get.restype = None
    get(location, ctypes.byref(file), ctypes.byref(line), ctypes.byref(column))
    text = cindex.conf.lib.clang_getCString(file)
    return (text.decode() if isinstance(text, bytes) else str(text)), line.value


def lint(root: Any, source: Source, text: str) -> Iterator[tuple[int, str]]:
    """What C++ takes and Metal does not: pointers without an address space, recursion, lambdas and their like."""
    calls: dict[str, set[str]] = {}
    functions: dict[str, Any] = {}
    for cursor, function in within(root, ""):
        line = presumed(cursor.location, source)
        if function:
            functions.setdefault(function.get_usr(), function)
            if cursor.kind == CursorKind.CALL_EXPR and cursor.referenced is not None:
                calls.setdefault(function.get_usr(), set()).add(cursor.referenced.get_usr())
        if not line:
            continue
        if cursor.kind.name in BANNED:
            yield line, f"Metal has no {BANNED[cursor.kind.name]}"
        if mixes_halves(cursor):
            yield line, "half and bfloat in one operation; convert one of them"
        if cursor.kind in (CursorKind.VAR_DECL, CursorKind.PARM_DECL, CursorKind.FIELD_DECL) and lacks_space(
            cursor, text
        ):
            yield line, f"`{cursor.spelling}` points to no address space; write device, constant, threadgroup or thread"
    for name, function in functions.items():
        if reaches(name, name, calls) and (line := presumed(function.location, source)):
            yield line, f"`{function.spelling}` calls itself; Metal has no recursion"


FUNCTIONS = (CursorKind.FUNCTION_DECL, CursorKind.FUNCTION_TEMPLATE, CursorKind.CXX_METHOD)


def within(cursor: Any, function: Any) -> Iterator[tuple[Any, Any]]:
    """Every cursor of the main file with the function that it is in."""
    for child in cursor.get_children():
        if child.location.file is None or child.location.file.name != "strict.cpp":
            continue
        inside = child if child.kind in FUNCTIONS and child.is_definition() else function
        yield child, inside
        yield from within(child, inside)


def lacks_space(cursor: Any, text: str) -> bool:
    """Whether a declared pointer or reference names no address space; `text` is the whole unit."""
    kind = cursor.type
    while kind.kind == TypeKind.CONSTANTARRAY:
        kind = kind.element_type
    if kind.kind not in (TypeKind.POINTER, TypeKind.LVALUEREFERENCE):
        return False
    before = text.encode()[: cursor.location.offset].decode(errors="replace")  # macros are no tokens of the cursor
    before = re.sub(r"<[^<>]*>", "", before[-500:])
    declaration = re.split(r"[(),;{}]", before)[-1]
    return bool(re.search(r"[*&]", declaration)) and not SPACES & set(re.findall(r"\w+", declaration))


def mixes_halves(cursor: Any) -> bool:
    """Whether one operand is half and the other bfloat, between which Metal converts only when told to."""
    if cursor.kind != CursorKind.BINARY_OPERATOR:
        return False
    kinds = set()
    for operand in cursor.get_children():
        while operand.kind == CursorKind.UNEXPOSED_EXPR and len(inner := list(operand.get_children())) == 1:
            operand = inner[0]
        kinds.add(operand.type.get_canonical().spelling.removeprefix("const "))
    return kinds == {"_Float16", "__bf16"}


def reaches(begin: str, end: str, calls: dict[str, set[str]]) -> bool:
    seen: set[str] = set()
    waiting = list(calls.get(begin, ()))
    while waiting:
        name = waiting.pop()
        if name == end:
            return True
        if name not in seen:
            seen.add(name)
            waiting += calls.get(name, ())
    return False

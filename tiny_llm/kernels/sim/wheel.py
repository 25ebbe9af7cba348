"""MLX's own Metal headers, as its wheel ships them, made ready for a C++ compiler.

A kernel may include them: `#include "mlx/backend/metal/kernels/steel/gemm/mma.h"`. In Metal a function has a version
for each address space and a struct may specialise its members; C++ has one address space, and g++ no such members.
"""

import re
from pathlib import Path

from tiny_llm.kernels.sim.rewrite import allocate_threadgroup

KERNELS = "mlx/backend/metal/kernels/"
INCLUDE = re.compile(rf'^[ \t]*#[ \t]*include[ \t]*"({KERNELS}[^"]+)"', re.MULTILINE)
OTHER_SPACES = "threadgroup|device|constant"
FUNCTION_CONSTANT = re.compile(r"(\[\[function_constant\(\w+\)\]\])\s*;")
SPECIALISED_MEMBER = re.compile(r"^[ \t]+template <>\n", re.MULTILINE)
POINTER_ELEMENT = re.compile(
    rf"template <typename T>\nstruct pointer_element<(?:{OTHER_SPACES}) T\*> {{.*?\n}};", re.DOTALL
)
BINDING_OF_MEMORY = re.compile(r"\[\[threadgroup\(\d+\)\]\]")
PLAIN_METHOD = re.compile(rf"^(  )constexpr METAL_FUNC operator bool\(\) (?:const )?(?:{OTHER_SPACES}) {{.*?\n\1}}$",
                          re.DOTALL | re.MULTILINE)  # fmt: skip
METHOD_ELSEWHERE = re.compile(rf"\)\s*(?:const )?(?:{OTHER_SPACES})\b\s*[:{{]")
OPERATOR_ELSEWHERE = re.compile(rf"constexpr (?:{OTHER_SPACES}) complex_t<T>& operator")


def prepare(text: str, folder: Path, wheel: Path, own: Path) -> None:
    """Write into `folder` what `text` includes of the headers below `wheel`, and what these include.

    A header below `own` takes the place of MLX's.
    """
    for name in INCLUDE.findall(text):
        source, made = wheel / name, folder / name
        if made.exists() or (own / name).exists() or not source.is_file():
            continue
        header = source.read_text(encoding="utf-8")
        prepare(header, folder, wheel, own)
        made.parent.mkdir(parents=True, exist_ok=True)
        partial = made.with_suffix(".part")
        partial.write_text(as_cpp(header), encoding="utf-8")
        partial.replace(made)


def as_cpp(header: str) -> str:
    """Rewrite a header so that g++ accepts it."""
    header = FUNCTION_CONSTANT.sub(r"\1 = 0;", header)
    header = SPECIALISED_MEMBER.sub("\n", header)
    header = BINDING_OF_MEMORY.sub("", header)
    for elsewhere in (POINTER_ELEMENT, PLAIN_METHOD):
        header = elsewhere.sub(lambda found: "\n" * found[0].count("\n"), header)
    return allocate_threadgroup(in_one_space(header))


def in_one_space(header: str) -> str:
    """Without the methods and operators of complex numbers that stand in another address space than the thread's."""
    if "struct complex_t {" not in header:
        return header
    lines = header.split("\n")
    kept = [line for line in lines if not (line.endswith(" {};") and is_elsewhere(line))]
    parts = "\n".join(kept).split("\n\n")
    return "\n\n".join(end_of(part) if is_elsewhere(part) else part for part in parts)


def end_of(part: str) -> str:
    """What stays of the struct's last method: the struct's end."""
    return "};" if part.endswith("\n};") else ""


def is_elsewhere(part: str) -> bool:
    return bool(METHOD_ELSEWHERE.search(part) or OPERATOR_ELSEWHERE.search(part))

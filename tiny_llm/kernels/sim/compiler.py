"""Compile a kernel's C++ with the system's compiler and keep the result, by content, in the cache directory."""

import ctypes
import hashlib
import importlib.util
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from tiny_llm._blas import cache_dir
from tiny_llm.kernels.sim import wheel
from tiny_llm.kernels.sim.report import CompileError
from tiny_llm.kernels.sim.signature import ATTRIBUTES
from tiny_llm.kernels.sim.source import Source
from tiny_llm.kernels.toolchain import compiler as compiler
from tiny_llm.kernels.toolchain import processor_features

HERE = Path(__file__).parent
INCLUDE = HERE / "include"
NATIVE = HERE / "native"
SANITIZE = ("-fsanitize=thread,alignment", "-DSIM_CHECK", "-O1")  # compiled for a few runs: a quarter less time
RELAXED = ("-fno-signed-zeros", "-fassociative-math", "-freciprocal-math", "-fno-trapping-math", "-ffp-contract=fast")
MATH_MODES = {  # what the compiler may do to numbers; "fast" assumes that no number is infinite or NaN
    "safe": (),
    "relaxed": RELAXED,
    "fast": (*RELAXED, "-ffinite-math-only"),
}
PRELUDE = '#include "mlx/backend/metal/kernels/utils.h"\n#include "sim/context.h"\nusing namespace metal;\n'
COMMON = (
    *("-std=c++17", "-O2", "-fPIC", "-g1", "-gdwarf-4", "-w"),
    *("-fno-exceptions", "-fno-rtti", "-fno-strict-aliasing", "-fwrapv", "-ffp-contract=off", "-fno-math-errno"),
)


def is_clang() -> bool:
    """Whether the compiler takes clang's options."""
    return "clang" in Path(compiler()).name or sys.platform == "darwin"


@cache
def flags() -> tuple[str, ...]:
    """Return the options for arithmetic as Metal's: float literals, no contraction, integers that wrap around."""
    single = (
        ("-Xclang", "-cl-single-precision-constant", "-Wno-reserved-user-defined-literal")
        if is_clang()
        else ("-fsingle-precision-constant",)
    )
    return (*COMMON, *single, *stack_probes(), *architecture(), f"-I{INCLUDE}")


def stack_probes() -> tuple[str, ...]:
    """Return the options that make a large array touch each of its pages, so that an overflow meets the guard page.

    On ARM, GCC would otherwise step over 16 pages at once.
    """
    if sys.platform == "darwin":
        return ()
    step = () if is_clang() else ("--param", "stack-clash-protection-guard-size=12")
    return ("-fstack-clash-protection", *step)


def architecture() -> tuple[str, ...]:
    """Return the option for half-precision conversions in hardware, where this x86 processor has them."""
    v3 = platform.machine() == "x86_64" and processor_features() >= {"avx2", "f16c", "fma", "bmi2"}
    return ("-march=x86-64-v3",) if v3 else ()


def mlx_include() -> Path:
    """Return the folder of the Metal headers that MLX's wheel ships. Raises ValueError where they are missing."""
    spec = importlib.util.find_spec("mlx")
    places = list(spec.submodule_search_locations or ()) if spec else []
    for place in places:
        if (path := Path(place) / "include").is_dir():
            return path
    raise ValueError("MLX's Metal headers are missing; install the mlx package from its wheel")


@cache
def _sources_key() -> str:
    """Return a hash of the simulator's own sources, the compiler and MLX's headers."""
    digest = hashlib.sha256()
    for path in sorted([*INCLUDE.rglob("*"), *NATIVE.glob("*")]):
        if path.is_file():
            digest.update(path.read_bytes())
    for path in (Path(compiler()), mlx_include() / wheel.KERNELS / "utils.h"):
        digest.update(repr((str(path), path.stat().st_size, path.stat().st_mtime_ns)).encode())
    digest.update(Path(wheel.__file__).read_bytes())
    digest.update(repr((flags(), instrumentation(True), PRELUDE)).encode())
    return digest.hexdigest()[:16]


def folder() -> Path:
    """Return the cache folder of these sources and this compiler, and make it if it is missing."""
    path = cache_dir() / "kernels" / _sources_key()
    path.mkdir(parents=True, exist_ok=True)
    return path


def include_option(text: str) -> str:
    """Return the option that finds the headers of MLX that `text` includes, made ready for C++."""
    made = folder() / "metal"
    wheel.prepare(text, made, mlx_include(), INCLUDE)
    return f"-I{made}"


def run(command: Sequence[object], what: str) -> None:
    """Run the compiler on `what`. Raises CompileError with the compiler's words where it fails or can't be started."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        reason = f"{words[0]} can't be run: {error.strerror}; set CXX to another compiler"
        raise CompileError(what, reason) from error
    if done.returncode:
        raise CompileError(what, done.stderr)


def runtime_name() -> str:
    """Return the name under which a kernel asks the system's loader for the runtime; it has a hash of the sources."""
    return f"libsim.so-{_sources_key()}"


def runtime_path() -> Path:
    """Return the path of the simulator's own library, which its first use on a machine compiles (four seconds)."""
    path = folder() / "libsim.so"
    if path.exists():
        return path
    with tempfile.TemporaryDirectory(dir=path.parent) as making:
        made = Path(making) / path.name
        name = f"-Wl,-install_name,{path}" if sys.platform == "darwin" else f"-Wl,-soname,{runtime_name()}"
        sources = sorted(NATIVE.glob("*.cpp"))
        command = [compiler(), "-std=c++17", "-O2", "-fPIC", "-shared", name, "-pthread", "-o", made, *sources]
        run(command, "the simulator's runtime")
        os.replace(made, path)
    return path


def prelude(check: bool, math_mode: str = "safe") -> Path:
    """Return a header for `-include`, beside which the compiler finds the Metal headers precompiled."""
    mode = "" if math_mode == "safe" else f"-{math_mode}"
    path = folder() / (("check" if check else "plain") + mode) / "prelude.h"
    made = path.with_suffix(".h.pch" if is_clang() else ".h.gch")
    if made.exists():
        return path
    path.parent.mkdir(exist_ok=True)
    path.write_text(PRELUDE)
    with tempfile.TemporaryDirectory(dir=path.parent) as making:
        new = Path(making) / made.name
        run(
            [
                *(compiler(), *flags(), include_option(PRELUDE), *MATH_MODES[math_mode], *instrumentation(check)),
                *("-x", "c++-header", path, "-o", new),
            ],
            "the simulator's Metal library",
        )
        os.replace(new, made)
    return path


def instrumentation(check: bool) -> tuple[str, ...]:
    """Return the options for a call at each access to memory, if `check`.

    clang also calls at the read of `x += y`, and does not call at a misaligned copy of a vector.
    """
    if not check:
        return ()
    if is_clang():
        options = ("func-entry-exit=0", "read-before-write=1")
        return (*SANITIZE, *(word for option in options for word in ("-mllvm", f"-tsan-instrument-{option}")))
    return (*SANITIZE, "--param", "tsan-instrument-func-entry-exit=0")


def compile_kernel(text: str, source: Source, check: bool, math_mode: str = "safe") -> Path:
    """Return the library of the kernel whose C++ is `text`, compiled on its first use.

    Raises CompileError with lines of the `.metal` file.
    """
    key = hashlib.sha256(repr((text, check, math_mode)).encode()).hexdigest()[:24]
    path = folder() / f"{key}.so"
    if path.exists():
        return path
    runtime = runtime_path()
    include = prelude(check, math_mode)
    with tempfile.TemporaryDirectory(dir=path.parent) as making:
        cpp, made = Path(making) / "kernel.cpp", Path(making) / path.name
        compiled = path.with_suffix(".o") if sys.platform == "darwin" else Path(making) / "kernel.o"  # atos reads it
        cpp.write_text(text)
        options = (*flags(), include_option(text), *MATH_MODES[math_mode], *instrumentation(check))
        command = [compiler(), *options, "-include", include, "-c", cpp, "-o", compiled]
        try:
            run(command, source.label)
        except CompileError as error:
            raise CompileError(source.label, first_errors(error.stderr, source)) from error
        run([compiler(), "-shared", "-o", made, compiled, runtime], source.label)
        os.replace(made, path)
    return path


def first_errors(stderr: str, source: Source) -> str:
    """Return the compiler's first three errors in the `.metal` file, with their lines; else all of `stderr`."""
    found = re.findall(rf"^{re.escape(source.label)}:(\d+)(?::\d+)?: (?:fatal )?error: (.*)$", stderr, re.MULTILINE)
    if not found:
        return stderr.strip()
    messages = []
    for number, message in dict(found).items():
        name = re.search(r"['‘](\w+)['’] was not declared|undeclared identifier ['‘](\w+)['’]", message)
        near = get_close_matches((name[1] or name[2]) if name else "", [a for a, _ in ATTRIBUTES], 1, 0.75)
        hint = f"; did you mean {near[0]}?" if near and "did you mean" not in message else ""
        messages.append(f"{source.label}:{number}: {message}{hint}\n  {number} | {source.line(int(number))}")
    return "\n".join(messages[:3])


@cache
def load_runtime(path: Path) -> ctypes.CDLL:
    """Load the runtime, unless this process has loaded one from any path: a kernel finds it by its name."""
    try:
        return ctypes.CDLL(runtime_name(), mode=os.RTLD_NOLOAD)
    except OSError:
        return ctypes.CDLL(str(path))


@cache
def load_kernel(path: Path) -> ctypes.CDLL:
    """Load a compiled kernel."""
    return ctypes.CDLL(str(path))


def lines_of(library: Path, offsets: Sequence[int], label: str) -> dict[int, int]:
    """Return {offset: line of the file `label`} for offsets of return addresses in a library.

    Offsets whose line is unknown are left out.
    """
    wanted = sorted({offset for offset in offsets if offset > 0})
    if not wanted:
        return {}
    places = [hex(offset - 1) for offset in wanted]
    if sys.platform == "darwin":
        command = ["atos", "-i", "-o", str(library), "-l", "0x0", *places]
    else:
        command = ["addr2line", "-a", "-i", "-e", str(library), *places]
    try:
        out = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30).stdout
    except OSError:  # binutils are not installed: findings without lines are better than none
        return {}
    blocks = re.split(r"^0x[0-9a-f]+\n", out, flags=re.MULTILINE)[1:] if "atos" not in command[0] else out.split("\n")
    lines = {}
    for offset, block in zip(wanted, blocks, strict=False):
        if found := re.search(rf"{re.escape(label)}:(\d+)", block):
            lines[offset] = int(found[1])
    return lines

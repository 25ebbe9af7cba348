"""From the runtime's facts (native/runtime.h, Finding) to a sentence and a remedy for each."""

from collections.abc import Callable, Mapping, Sequence

from tiny_llm.kernels.sim.report import Finding
from tiny_llm.kernels.sim.structures import CFinding

KINDS = (
    "",
    "out of bounds",
    "misaligned access",
    "write to an input",
    "race",
    "uninitialised read",
    "output not written",
    "barrier divergence",
    "collective divergence",
    "too much threadgroup memory",
    "memory fault",
    "time limit",
    "stack overflow",
)
RACE_REMEDIES = (
    "Put threadgroup_barrier(mem_flags::{flag}) between the two",
    "The barrier between the two does not order {memory} memory; pass mem_flags::{flag}",
    "simdgroup_barrier orders the lanes of one simdgroup only; use threadgroup_barrier(mem_flags::{flag})",
    "No barrier orders threadgroups: let one group own the element, use atomics, or launch a second kernel",
)
ONE_WRITER = "It comes out right as long as the values stay equal, but nothing promises it. "
RACES_OF_EQUAL_WRITES = (
    ONE_WRITER + "Let one thread write, as in `if (thread_index_in_threadgroup == 0)`, or put "
    "threadgroup_barrier(mem_flags::{flag}) between the two",
    ONE_WRITER + "Let one thread write; the barrier between the two does not order {memory} memory, which "
    "mem_flags::{flag} would",
    ONE_WRITER + "Let one thread of the threadgroup write, not one of each simdgroup; simdgroup_barrier orders the "
    "lanes of one simdgroup only",
    ONE_WRITER + "No barrier orders threadgroups: let one of them write, or use an atomic store",
)
PRIVATE_REMEDY = "A thread's variables begin with whatever was left in the registers; give it a value first, such as 0"
REMEDIES = {
    "out of bounds": "Guard the index, for example `if (i >= n) return;`, and remember that the last group is smaller",
    "misaligned access": "A vector must stand at a multiple of its size; use the packed_ type or read its elements",
    "write to an input": "Inputs are read-only; write to an output, and copy the input there if it is to be changed",
    "uninitialised read": "Write it first, or pass init_value if it is an output to add to",
    "output not written": "Let a thread write each element (is the grid large enough?), or pass init_value",
    "barrier divergence": "Every thread of a threadgroup must reach the same barrier: move it out of the branch, and "
    "return after it, not before",
    "collective divergence": "All active lanes of a simdgroup must take part in the same operation: move it out of the "
    "branch and select its operand instead",
    "too much threadgroup memory": "Use smaller tiles or a narrower type; an Apple GPU has 32 KB for a threadgroup",
    "memory fault": "Check how the address is computed; check mode names the access",
    "time limit": "Does a loop wait for a value that another thread writes, or never reach its end?",
    "stack overflow": "A thread's local arrays are too large; keep fewer values per thread",
}


def describe(
    found: CFinding, file: str, buffers: Sequence[str], lines: Mapping[int, int], threadgroup: Sequence[int]
) -> Finding:
    """The words for one finding. `lines` maps code offsets to lines, `buffers` are the names of the buffers."""
    kind = KINDS[found.kind]
    line = found.line or lines.get(found.pc, 0)
    other_line = found.other_line or lines.get(found.other_pc, 0)
    if found.buffer >= 0:
        element = f"`{buffers[found.buffer]}`[{found.index}]"
    elif found.is_private:
        element = private(found)
    else:
        element = f"element {found.index} of threadgroup variable `{found.name.decode()}`"
    remedy = REMEDIES.get(kind, "")
    if kind == "race":
        memory = "device" if found.buffer >= 0 else "threadgroup"
        remedies = RACES_OF_EQUAL_WRITES if found.same_value else RACE_REMEDIES
        remedy = remedies[found.cause].format(flag=f"mem_{memory}", memory=memory)
    if found.is_private:
        remedy = PRIVATE_REMEDY
    text = SENTENCES[kind](found, element, other(found, other_line, threadgroup))
    if kind != "output not written":
        text = f"thread {tuple(found.thread)} of threadgroup {tuple(found.group)} {text}"
    return Finding(kind, file, line, text, remedy, other_line)


def without_consequences(found: Sequence[CFinding]) -> list[CFinding]:
    """Races first, of them those that an unfit barrier lets through; without the uninitialised reads that are but a
    race seen from the other side."""
    races = {(f.buffer, f.name) for f in found if KINDS[f.kind] == "race"}
    kept = [f for f in found if KINDS[f.kind] != "uninitialised read" or (f.buffer, f.name) not in races]
    return sorted(kept, key=lambda f: (KINDS[f.kind] != "race", f.cause == 0))


def other(found: CFinding, line: int, threadgroup: Sequence[int]) -> str:
    """The other side of a race."""
    if found.other_group < 0:
        whose = "threads of several threadgroups"
    elif found.other_thread < 0:
        whose = f"several threads of threadgroup number {found.other_group}"
    else:
        x, y, i = threadgroup[0], threadgroup[1], found.other_thread
        whose = f"thread {(i % x, i // x % y, i // x // y)}"
        whose += f" of threadgroup number {found.other_group}" if RACE_REMEDIES[found.cause] is RACE_REMEDIES[3] else ""
    return f"the {'write' if found.other_write else 'read'} by {whose}" + (f" in line {line}" if line else "")


def private(found: CFinding) -> str:
    """A thread's own variable, or an element of it."""
    name = f"variable `{found.name.decode()}`"
    return f"element {found.index} of its own {name}" if found.limit > 1 else f"its own {name}"


def verb(found: CFinding) -> str:
    return "writes" if found.write else "reads"


def outside(found: CFinding, element: str, _: str) -> str:
    if found.buffer < 0 and not found.name:
        return f"{verb(found)} {found.size} bytes at an address that belongs to nothing"
    return f"{verb(found) if found.size else 'touches'} {element}, which has {found.limit} elements"


def diverged(found: CFinding, element: str, _: str) -> str:
    name = found.other_name.decode()
    rest = "others have returned" if name == "returned" else f"others in {name} in line {found.other_line}"
    return f"waits in {found.name.decode()}, {rest}"


SENTENCES: dict[str, Callable[[CFinding, str, str], str]] = {
    "out of bounds": outside,
    "race": lambda f, element, other: (
        f"{verb(f)} {element}; {other} is not ordered before it{'; both write the same value' if f.same_value else ''}"
    ),
    "barrier divergence": diverged,
    "collective divergence": diverged,
    "misaligned access": lambda f, *_: (
        f"{verb(f)} {f.size} bytes at an address that is no multiple of {min(f.size, 8)}"
    ),
    "write to an input": lambda f, element, _: f"writes {element}",
    "uninitialised read": lambda f, element, _: f"reads {element}, where nothing was written yet",
    "output not written": lambda f, element, _: f"{f.size} of {f.limit} elements, the first is {element}",
    "too much threadgroup memory": lambda f, *_: (
        f"allocates `{f.name.decode()}`: that makes it {f.size} bytes, the limit is {f.limit}"
    ),
    "memory fault": lambda *_: "touches memory that belongs to no buffer",
    "time limit": lambda f, *_: f"is still running after {f.limit / 1000:g} seconds",
    "stack overflow": lambda *_: "has used up its stack of 64 KB",
}

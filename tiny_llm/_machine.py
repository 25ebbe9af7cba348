"""The memory that the machine has free, and what control groups (containers) and `ulimit` leave of it."""

import resource
from collections.abc import Iterator, Mapping
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")
OWN_PAGES = Path("/proc/self/statm")
MEMINFO = Path("/proc/meminfo")
UNLIMITED = 1 << 60  # version 1 writes a number near 2^63 where it has no limit

CACHED_V2 = ("inactive_file", "active_file")  # pages of files: the kernel drops them before it kills a process
CACHED_V1 = ("total_inactive_file", "total_active_file")


def available_bytes() -> int | None:
    """Bytes that this process may still take without swapping: what is free, or what its limits leave if that is less.

    None where the system says neither.
    """
    known = [amount for amount in (_free_bytes(), memory_left()) if amount is not None]
    return min(known, default=None)


def memory_left() -> int | None:
    """Bytes that this process may still take under the tightest of its limits; None if it has none.

    A file that is absent, unreadable or holds something else counts as no limit.
    """
    left = [*_left_in_cgroups(), *_left_of_ulimits()]
    return max(0, min(left)) if left else None


def _free_bytes() -> int | None:
    """The figure of Linux's line `MemAvailable:  4000 kB`; None where it is absent or malformed."""
    for line in _text(MEMINFO).splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if name == "MemAvailable" and words and _is_number(words[0]):
            return int(words[0]) * 1024
    return None


def _left_in_cgroups() -> Iterator[int]:
    """What each control group of this process leaves, from its own up to the root: a limit binds all below it."""
    for folder in _folders(CGROUPS, _own_path("")):
        limits = [_number(folder / name) for name in ("memory.max", "memory.high")]
        yield from _left(limits, folder / "memory.current", folder / "memory.stat", CACHED_V2)
    for folder in _folders(CGROUPS / "memory", _own_path("memory")):
        limits = [_number(folder / "memory.limit_in_bytes")]
        yield from _left(limits, folder / "memory.usage_in_bytes", folder / "memory.stat", CACHED_V1)


def _own_path(controller: str) -> str:
    """This process's group under a controller of version 1, or under version 2 for ""; "/" where it is not told.

    A line is `4:memory:/docker/1f3a` in version 1 and `0::/user.slice` in version 2.
    """
    for line in _text(OWN_CGROUPS).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller in controllers.split(","):
            return path
    return "/"


def _folders(root: Path, path: str) -> Iterator[Path]:
    """The folder of a group and those of its ancestors. A container may see the root's alone."""
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    for length in range(len(parts), -1, -1):
        yield root.joinpath(*parts[:length])


def _left(limits: list[int | None], used: Path, stat: Path, cached: tuple[str, ...]) -> Iterator[int]:
    """The limit less what is used; pages of files that the kernel can drop are not counted as used."""
    known = [limit for limit in limits if limit is not None and limit < UNLIMITED]
    if not known:
        return
    taken = _number(used) or 0
    figures = _figures(stat)
    droppable = sum(figures.get(name, 0) for name in cached)
    yield min(known) - max(0, taken - droppable)


def _left_of_ulimits() -> Iterator[int]:
    """What `ulimit -v` (address space) and `ulimit -d` (data) leave. Linux alone counts them in OWN_PAGES."""
    pages = _text(OWN_PAGES).split()
    for limit, column in ((resource.RLIMIT_AS, 0), (resource.RLIMIT_DATA, 5)):
        soft, _ = resource.getrlimit(limit)
        if soft == resource.RLIM_INFINITY or len(pages) <= column or not pages[column].isdecimal():
            continue
        yield soft - int(pages[column]) * resource.getpagesize()


def _figures(path: Path) -> Mapping[str, int]:
    """Lines such as `inactive_file 4096`."""
    pairs = (line.split() for line in _text(path).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and _is_number(pair[1])}


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if _is_number(text) else None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 30


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""

"""What a simulated launch found and counted, in words."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Finding:
    """One fault. `kind` is a word for programs, `text` and `remedy` are for people; line 0 where it is unknown."""

    kind: str
    file: str
    line: int
    text: str
    remedy: str
    other_line: int = 0

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.kind}: {self.text}. {self.remedy}{'' if self.remedy.endswith('?') else '.'}"


class KernelError(ValueError):
    """A kernel did what it must not; `findings` has all that was seen."""

    def __init__(self, findings: Sequence[Finding]):
        self.findings = list(findings)
        super().__init__("\n".join(map(str, self.findings)))


class CompileError(KernelError):
    """A kernel (or the simulator itself) does not compile; the text is the compiler's, about the `.metal` file."""

    def __init__(self, what: str, stderr: str):
        super().__init__([])
        self.what, self.stderr = what, stderr
        self.args = (f"{what} does not compile:\n{stderr.strip()}",)


@dataclass(frozen=True)
class BufferCount:
    """Bytes of one buffer that the threads asked for, and how many different ones.

    `constant`: inputs of fewer than eight elements are in constant memory, which is broadcast and no traffic.
    """

    name: str
    read: int
    written: int
    unique_read: int
    unique_written: int
    constant: bool = False


@dataclass(frozen=True)
class SiteCount:
    """One line's accesses to one buffer (or to threadgroup memory, then `sectors` are cycles of its 32 banks).

    `offsets` are the bytes that the lanes of the first request touch, each `size` bytes long; -1 for an idle lane.
    """

    line: int
    buffer: str
    write: bool
    requests: int
    bytes: int
    sectors: int
    size: int
    offsets: tuple[int, ...]

    @property
    def efficiency(self) -> float:
        """Useful share of what is moved: 1 when each sector is used up and no bank is asked twice."""
        least = self.requests if self.buffer == "threadgroup" else self.bytes / 32
        return min(1.0, least / self.sectors) if self.sectors else 1.0


@dataclass(frozen=True)
class Report:
    """One launch. Times in seconds; buffers and sites are counted in check mode and with trace only."""

    kernel: str
    findings: list[Finding]
    seconds: float
    groups: int = 0
    threads: int = 0
    group_barriers: int = 0
    simd_barriers: int = 0
    collectives: int = 0
    threadgroup_bytes: int = 0
    threadgroup_read: int = 0
    threadgroup_written: int = 0
    buffers: list[BufferCount] = field(default_factory=list)
    sites: list[SiteCount] = field(default_factory=list)

    @property
    def traffic(self) -> int:
        """Bytes of device memory that the threads asked for."""
        return sum(b.read + b.written for b in self.buffers if not b.constant)

    @property
    def minimum(self) -> int:
        """The same with each byte moved once."""
        return sum(b.unique_read + b.unique_written for b in self.buffers if not b.constant)

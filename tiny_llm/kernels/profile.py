"""A launch's counters as text: traffic beside the minimum, who reads what, and the roofline."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from tiny_llm.kernels.chips import CHIPS
from tiny_llm.kernels.roofline import bound
from tiny_llm.kernels.sim.report import Report, SiteCount

SHADES = " ░▒▓█"
COLUMNS = 64


def profile(report: Report, operations: float) -> str:
    """All tables for one launch; `operations` counts its arithmetic."""
    parts = [summary(report), traffic(report), sites(report), picture(report), roofline(report, operations)]
    return "\n\n".join(part for part in parts if part)


def table(rows: Sequence[Sequence[object]]) -> str:
    """Columns set apart by two blanks, numbers to the right."""
    cells = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    numeric = [isinstance(cell, (int, float)) for cell in rows[-1]]
    return "\n".join(
        "  ".join(
            cell.rjust(w) if right else cell.ljust(w) for cell, w, right in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in cells
    )


def summary(report: Report) -> str:
    return (
        f"{report.kernel}: {report.groups:,} threadgroups, {report.threads:,} threads, "
        f"{report.threadgroup_bytes:,} bytes of threadgroup memory\n"
        f"{report.group_barriers:,} threadgroup barriers, {report.simd_barriers:,} simdgroup barriers, "
        f"{report.collectives:,} collectives"
    )


def traffic(report: Report) -> str:
    rows: list[Sequence[object]] = [("buffer", "bytes read", "different", "bytes written", "different")]
    for b in report.buffers:
        name = f"{b.name} (constant)" if b.constant else b.name
        rows.append((name, b.read, b.unique_read, b.written, b.unique_written))
    if report.threadgroup_bytes:
        rows.append(("threadgroup", report.threadgroup_read, 0, report.threadgroup_written, 0))
    ratio = report.traffic / report.minimum if report.minimum else 1.0
    total = f"device memory: {report.traffic:,} bytes asked for, {report.minimum:,} is the least: {ratio:.2f} times"
    return f"{table(rows)}\n{total}"


def sites(report: Report) -> str:
    """Each line's requests; a device sector is 32 bytes, and threadgroup memory is counted in cycles of its banks."""
    rows: list[Sequence[object]] = [("line", "access", "requests", "sectors or cycles", "each", "useful")]
    for site in sorted(report.sites, key=lambda s: (s.line, s.buffer)):
        verb = "writes" if site.write else "reads"
        each = f"{site.sectors / site.requests:.1f}"
        rows.append((site.line, f"{verb} {site.buffer}", site.requests, site.sectors, each, f"{site.efficiency:.0%}"))
    return table(rows) if len(rows) > 1 else ""


def picture(report: Report) -> str:
    """The first request of each line: which bytes from its lowest on the lanes touch."""
    lines, constants = [], {b.name for b in report.buffers if b.constant}
    for site in sorted(report.sites, key=lambda s: (s.line, s.buffer)):
        if site.buffer in constants:
            continue
        lanes = [(lane, offset) for lane, offset in enumerate(site.offsets) if offset >= 0]
        if len(lanes) > 1:
            verb = "writes" if site.write else "reads"
            lines.append(f"line {site.line} {verb} {site.buffer}: {pattern(lanes, site.size)}\n  {strip(site, lanes)}")
    return "\n".join(["who touches what (the first request of each line)", *lines]) if lines else ""


def pattern(lanes: Sequence[tuple[int, int]], size: int) -> str:
    """In words: how the addresses move from lane to lane."""
    steps = {b - a for (_, a), (_, b) in pairwise(lanes)}
    if steps == {0}:
        return f"all {len(lanes)} lanes the same {size} bytes"
    if steps == {size}:
        return f"{len(lanes)} lanes side by side, {size} bytes each"
    if len(steps) == 1:
        return f"{len(lanes)} lanes {steps.pop()} bytes apart, {size} bytes each"
    return f"{len(lanes)} lanes in no regular order, {size} bytes each"


def strip(site: SiteCount, lanes: Sequence[tuple[int, int]]) -> str:
    """The span of memory as a strip; the darker, the more of a piece is used."""
    low, high = min(o for _, o in lanes), max(o for _, o in lanes) + site.size
    piece = max(1, -(-(high - low) // COLUMNS))
    touched = {byte // piece: set[int]() for byte in range(0, high - low, piece)}
    for _, offset in lanes:
        for byte in range(offset - low, offset - low + site.size):
            touched[byte // piece].add(byte)
    shades = (SHADES[-(-len(bytes_) * (len(SHADES) - 1) // piece)] for bytes_ in touched.values())
    return f"│{''.join(shades)}│ {high - low} bytes, {piece} to a character"


def roofline(report: Report, operations: float) -> str:
    return "\n".join(roofline_lines(report, operations))


def roofline_lines(report: Report, operations: float) -> Iterator[str]:
    yield (
        f"{operations:,.0f} operations on {report.minimum:,} bytes: {operations / max(1, report.minimum):.2f} for each "
        "byte; the least time, when every byte moves once"
    )
    rows: list[Sequence[object]] = [("chip", "GB/s", "TFLOP/s", "bound by", "µs", "source")]
    for chip in CHIPS:
        least = bound(chip, report.minimum, operations)
        flops = f"{chip.teraflops:g}" if chip.teraflops else "-"
        rows.append((chip.name, f"{chip.bandwidth:g}", flops, least.by, f"{least.seconds * 1e6:.2f}", chip.source))
    yield table(rows)

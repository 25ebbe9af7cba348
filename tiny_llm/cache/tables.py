"""Block tables of several sequences as one array, and the rows that are read together."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def padded_tables(tables: Sequence[Sequence[int]]) -> npt.NDArray[np.int32]:
    """Return block tables as one array (R, M).

    A short table is padded with its own last block: no sequence reads a block of another.
    """
    width = max(map(len, tables), default=0)
    rows = []
    for table in tables:
        padding = [table[-1]] * (width - len(table))
        rows.append([*table, *padding])
    return np.array(rows, np.int32).reshape(len(tables), width)


def groups_of(widths: Sequence[int], spare: int) -> list[tuple[int, int]]:
    """Cut rows into runs (begin, end) in which padding every row to the widest costs at most `spare` in all."""
    found = []
    begin = widest = total = 0
    for i, width in enumerate(widths):
        widest = max(widest, width)
        total += width
        if widest * (i + 1 - begin) - total > spare:
            found.append((begin, i))
            begin = i
            widest = total = width
    if begin < len(widths):
        found.append((begin, len(widths)))
    return found


def half_filled(
    tables: Sequence[Sequence[int]], starts: Sequence[int], ends: npt.NDArray[np.int32], block_size: int
) -> list[int]:
    """Return the blocks that a step begins and does not fill, behind whose tokens old numbers lie."""
    found = []
    for table, start, end in zip(tables, starts, ends.tolist(), strict=True):
        last = end - end % block_size  # the first slot of a block that is not filled
        if start <= last < end:
            found.append(table[-1])
    return found

"""Turn the block tables of R sequences into one array, and group the sequences that are attended together."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def padded_tables(tables: Sequence[Sequence[int]]) -> npt.NDArray[np.int32]:
    """Return block tables as one array (R, M), where M is the length of the longest.

    A shorter table is padded with its own last block, so that no sequence reads a block of another.
    """
    width = max(map(len, tables), default=0)
    rows = []
    for table in tables:
        padding = [table[-1]] * (width - len(table))
        rows.append([*table, *padding])
    return np.array(rows, np.int32).reshape(len(tables), width)


def groups_of(widths: Sequence[int], spare: int) -> list[tuple[int, int]]:
    """Cut rows into consecutive groups (begin, end), each as long as its padding allows.

    `widths` are the rows' numbers of blocks. In a group all rows are padded to the widest, with at most `spare` blocks
    of padding in all: widths 9, 8, 1 and spare 4 give (0, 2) and (2, 3).
    """
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
    """Return the blocks that this step begins and does not fill: their unused slots may hold numbers of older tokens.

    Sequence i has the blocks tables[i], and brings the tokens at positions starts[i] to ends[i] - 1. ends (R,).
    """
    found = []
    for table, start, end in zip(tables, starts, ends.tolist(), strict=True):
        last = end - end % block_size  # the first position in the block that is not filled
        if start <= last < end:
            found.append(table[-1])
    return found

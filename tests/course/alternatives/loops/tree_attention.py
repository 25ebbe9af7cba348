"""Each token walks up to the root."""

import numpy as np


def ancestry(parents):
    depths = np.empty(len(parents), dtype=np.int32)
    seen = np.full((len(parents), len(parents)), False)
    for token in range(len(parents)):
        at, steps = token, 0
        while at >= 0:
            seen[token, at] = True
            at = parents[at]
            steps += 1
        depths[token] = steps - 1
    return depths, seen

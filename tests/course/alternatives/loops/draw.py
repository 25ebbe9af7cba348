"""Draw row by row in numpy."""

import mlx.core as mx
import numpy as np


def inverse_cdf(weights, uniform):
    columns = []
    for row, dart in zip(np.array(weights), np.array(uniform)[:, 0], strict=True):
        columns.append(int(np.searchsorted(np.cumsum(row), dart * row.sum(), side="right")))
    return mx.array(columns, mx.uint32)

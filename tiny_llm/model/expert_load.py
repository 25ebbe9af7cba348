"""Measure how evenly a router spreads tokens over experts, from the number of choices of each expert."""

import mlx.core as mx
import numpy as np
from numpy.typing import ArrayLike, NDArray

Counts = NDArray[np.float64]


def variation(counts: ArrayLike) -> float:
    """Return the coefficient of variation, standard deviation over mean: 0 for an even load."""
    values = _counts(counts)
    return float(values.std() / values.mean()) if values.any() else 0.0


def entropy(counts: ArrayLike) -> float:
    """Return the load's entropy over that of an even load: 1 for an even load, 0 where one expert has all choices."""
    values = _counts(counts)
    if len(values) == 1 or not values.any():
        return 1.0
    shares = values[values > 0] / values.sum()
    return float((shares * np.log(1 / shares)).sum() / np.log(len(values)))


def dropped_share(counts: ArrayLike, capacity: float) -> float:
    """Return the share of choices that are dropped if each expert takes at most `capacity` times an even load.

    Switch Transformer (arXiv:2101.03961) drops choices in this way; this engine drops none.
    """
    values = _counts(counts)
    if not 0 < capacity < np.inf:
        raise ValueError(f"capacity: expected a finite factor above 0, found {capacity}; 1.25 is usual")
    if not values.any():
        return 0.0
    places = np.floor(capacity * values.mean())
    return float(np.maximum(values - places, 0).sum() / values.sum())


def _counts(counts: ArrayLike) -> Counts:
    """Return counts as float64, (E,). Raises ValueError for another shape, and for negative or infinite numbers."""
    if isinstance(counts, mx.array):
        counts = np.array(counts.astype(mx.float32))  # because NumPy has no bfloat16
    values = np.asarray(counts, np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"counts: expected one number of choices for each expert, found an array of {values.shape}")
    is_count = np.isfinite(values) & (values >= 0)
    if not is_count.all():
        raise ValueError(f"counts: expected finite numbers of choices from 0 up, found {values[~is_count][0]}")
    return values

"""How evenly a router spreads tokens over experts: figures from the number of choices that each expert got."""

import mlx.core as mx
import numpy as np
from numpy.typing import ArrayLike, NDArray

Counts = NDArray[np.float64]


def variation(counts: ArrayLike) -> float:
    """Return the coefficient of variation, standard deviation over mean: 0 where all experts got as much."""
    values = _counts(counts)
    return float(values.std() / values.mean()) if values.any() else 0.0


def entropy(counts: ArrayLike) -> float:
    """Return the entropy of the load over that of an even one: 1 where all got as much, 0 where one got all."""
    values = _counts(counts)
    if len(values) == 1 or not values.any():
        return 1.0
    shares = values[values > 0] / values.sum()
    return float((shares * np.log(1 / shares)).sum() / np.log(len(values)))


def dropped_share(counts: ArrayLike, capacity: float) -> float:
    """Return the share of choices that get no place if each expert takes at most `capacity` times an even load.

    Switch Transformer (arXiv:2101.03961) drops them; this engine never does.
    """
    values = _counts(counts)
    if not 0 < capacity < np.inf:
        raise ValueError(f"capacity: expected a factor above 0, found {capacity}")
    if not values.any():
        return 0.0
    places = np.floor(capacity * values.mean())
    return float(np.maximum(values - places, 0).sum() / values.sum())


def _counts(counts: ArrayLike) -> Counts:
    """Return counts as float64. Raises ValueError for what is no row of finite numbers from 0 up."""
    if isinstance(counts, mx.array):
        counts = np.array(counts.astype(mx.float32))  # NumPy knows no bfloat16
    values = np.asarray(counts, np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"counts: expected a number of choices for each expert, found an array of {values.shape}")
    odd = values[~(np.isfinite(values) & (values >= 0))]
    if odd.size:
        raise ValueError(f"counts: expected numbers of choices from 0 up, found {odd[0]}")
    return values

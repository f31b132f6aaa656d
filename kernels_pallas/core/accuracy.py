"""The error metric that all comparisons use."""

import numpy as np
from jaxtyping import Array


def rms_relative_error(actual: Array | np.ndarray, expected: Array | np.ndarray) -> float:
    """Computes the root mean square of the error over that of the expected values, in float64.

    Returns:
        0.0 for an exact zero where zeros are expected. Infinity for shapes that differ, for values
        that are not finite, and for anything but zeros where only zeros are expected.
    """
    actual, expected = (np.asarray(x, np.float64) for x in (actual, expected))
    if actual.shape != expected.shape or not np.isfinite(actual).all():
        return float("inf")
    error = float(np.sqrt(np.mean((actual - expected) ** 2)))
    size = float(np.sqrt(np.mean(expected**2)))
    if size == 0.0:
        return 0.0 if error == 0.0 else float("inf")
    return error / size

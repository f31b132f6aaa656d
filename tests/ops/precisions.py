"""The two precisions that operations on boxes are tested in."""

import contextlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Precision(NamedTuple):
    """A dtype, and the tolerance that replaces a golden one in it.

    Attributes:
        dtype: of the inputs.
        rounding: least tolerance, relative to the largest magnitude.
    """

    dtype: type
    rounding: float

    def inputs(self, *arrays):
        """Returns floats in the dtype, other arrays as they are."""
        moved = [
            jnp.asarray(x, self.dtype if np.issubdtype(np.asarray(x).dtype, np.floating) else None)
            for x in arrays
        ]
        return moved[0] if len(moved) == 1 else moved

    def close(self, actual, expected, tolerance, narrow=0.0):
        """Checks values against golden ones; NaN must be at the same places.

        Args:
            actual: the values.
            expected: the golden values.
            tolerance: absolute, in float64.
            narrow: absolute, in float32; `rounding` is the least in any case.
        """
        if self.dtype is not np.float64:
            tolerance = max(tolerance, narrow)
        expected = np.asarray(expected, np.float64)
        scale = max(1.0, float(np.nanmax(np.abs(expected), initial=0.0)))
        limit = max(tolerance, self.rounding * scale)
        np.testing.assert_allclose(np.asarray(actual, np.float64), expected, rtol=0, atol=limit)

    @contextlib.contextmanager
    def enabled(self):
        with jax.enable_x64(self.dtype is np.float64):
            yield self


PRECISIONS = (Precision(np.float64, 0.0), Precision(np.float32, 5e-6))

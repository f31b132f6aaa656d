"""Memory access of kernels, and a JAX without the Triton backend."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas.core import triton
from kernels_pallas.testing import interpret


def copied(start, store_at=0, count=None, dtype="float32"):
    """Copies `count` elements, or four without a mask, of 0..4 in a kernel, to float32."""

    def kernel(x_ref, out_ref):
        index = jnp.arange(4)
        mask = None if count is None else index < count
        value = triton.load(x_ref, (start + index,), mask)
        index = (store_at + index,)
        triton.store(out_ref, index, value, mask)

    with interpret():
        [out] = triton.triton_call(
            kernel,
            name="copy",
            programs=1,
            out_shape=[jax.ShapeDtypeStruct((4,), jnp.float32)],
            num_warps=1,
            num_stages=1,
        )(jnp.arange(5, dtype=dtype))
        return np.asarray(out)


def test_what_is_read_outside_is_nan():
    np.testing.assert_array_equal(copied(1), [1, 2, 3, 4])
    np.testing.assert_array_equal(copied(2), [2, 3, 4, np.nan])
    np.testing.assert_array_equal(copied(-1), [np.nan, 0, 1, 2])


def test_integers_that_are_read_outside_are_the_largest():
    np.testing.assert_array_equal(copied(2, dtype="uint8"), [2, 3, 4, 255])


@pytest.mark.parametrize("store_at", [1, -1])
def test_writing_outside_spoils_the_result(store_at):
    assert np.isnan(copied(0, store_at=store_at)).all()


def test_what_is_masked_is_neither_read_nor_written():
    np.testing.assert_array_equal(copied(3, count=2)[:2], [3, 4])
    np.testing.assert_array_equal(copied(0, store_at=2, count=2)[2:], [0, 1])

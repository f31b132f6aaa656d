"""What interpreted kernels are checked for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas.core import pallas_compat
from kernels_pallas.testing import interpret


def copied(start, store_at=0, count=None):
    """What a kernel makes of 0..4 that copies `count`, or unmasked four, from `start` on."""

    def kernel(x_ref, out_ref, *, interpreting):
        index = jnp.arange(4)
        mask = None if count is None else index < count
        load = functools.partial(pallas_compat.load, interpreting=interpreting)
        value = load(x_ref, (start + index,), mask)
        index = (store_at + index,)
        pallas_compat.store(out_ref, index, value, mask, interpreting=interpreting)

    with interpret():
        [out] = pallas_compat.triton_call(
            kernel,
            name="copy",
            programs=1,
            out_shape=[jax.ShapeDtypeStruct((4,), jnp.float32)],
            num_warps=1,
            num_stages=1,
        )(jnp.arange(5.0))
        return np.asarray(out)


def test_what_is_read_outside_is_nan():
    np.testing.assert_array_equal(copied(1), [1, 2, 3, 4])
    np.testing.assert_array_equal(copied(2), [2, 3, 4, np.nan])
    np.testing.assert_array_equal(copied(-1), [np.nan, 0, 1, 2])


@pytest.mark.parametrize("store_at", [1, -1])
def test_writing_outside_spoils_the_result(store_at):
    assert np.isnan(copied(0, store_at=store_at)).all()


def test_what_is_masked_is_neither_read_nor_written():
    np.testing.assert_array_equal(copied(3, count=2)[:2], [3, 4])
    np.testing.assert_array_equal(copied(0, store_at=2, count=2)[2:], [0, 1])

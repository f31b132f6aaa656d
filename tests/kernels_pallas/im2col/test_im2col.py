"""The pixels under a convolution's kernel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas import im2col
from kernels_pallas.im2col import IMPLEMENTATIONS
from kernels_pallas.im2col.pallas_triton.config import Config
from kernels_pallas.testing import interpret
from kernels_pallas.testing.op_test import OpTest

NAME = "pallas_triton"


class TestIm2col(OpTest):
    op = "im2col"
    portable_cases = None  # XLA's form is not a plain formula
    exact = True
    twice = True  # the operator is linear
    forward_launches = gradient_launches = ("im2col",)
    # The forward pass keeps nothing, so nothing is recomputed.
    remat_launches = ("im2col",)

    def formula(self, case, images):
        """Copies every position by itself."""
        size, stride = case.kwargs["kernel_size"], case.kwargs["stride"]
        padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
        numbers = size**2 * images.shape[3]
        ones = case.kwargs.get("ones", False)
        h, w = ((side + 2 - size) // stride + 1 for side in images.shape[1:3])
        columns = case.kwargs.get("columns") or -(-(numbers + ones) // 32) * 32
        out = np.zeros((images.shape[0], h, w, columns))
        for y, x in np.ndindex(h, w):
            patch = padded[:, y * stride : y * stride + size, x * stride : x * stride + size]
            out[:, y, x, :numbers] = patch.reshape(images.shape[0], -1)
        if ones:
            out[..., numbers] = 1
        return out

    @pytest.mark.parametrize(
        ("name", "columns_first"), [("ragged_stem", False), ("odd_sides", True), ("separate", True)]
    )
    def test_configs(self, name, columns_first):
        """Several blocks in every direction, in both layouts of lanes."""
        config = Config(2, 2, 1, columns_first)
        case = next(case for case in self.cases(model=False) if case.name == name)
        run = case.bind(im2col, implementation=NAME, config=config)
        (images,) = case.arrays()
        with interpret():
            out = jax.jit(run)(images)
        expected = case.bind(im2col, implementation="reference")(images)
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS[1:], None])
def test_no_images(implementation):
    out = im2col(jnp.ones((0, 5, 5, 3)), kernel_size=3, stride=2, implementation=implementation)
    assert out.shape == (0, 3, 3, 32)


@pytest.mark.parametrize("images", [jnp.ones((1, 4, 4, 1), jnp.float16), jnp.ones((0, 4, 4, 1))])
def test_calls_without_a_kernel_are_refused(images):
    with pytest.raises(NotImplementedError, match="cannot run this call"):
        im2col(images, kernel_size=3, stride=2, implementation=NAME)


@pytest.mark.parametrize(
    ("images", "options", "error", "message"),
    [
        (np.ones((4, 4, 3), np.float32), {}, ValueError, "four axes"),
        (np.ones((1, 4, 0, 3), np.float32), {}, ValueError, "four axes"),
        (np.ones((1, 4, 4, 3), np.int32), {}, TypeError, "got int32"),
        ([1.0], {}, TypeError, "got list"),
        (np.ones((1, 4, 9, 3), np.float32), {"kernel_size": 7}, ValueError, "from 1 to 6"),
        (np.ones((1, 4, 4, 3), np.float32), {"stride": 0}, ValueError, "at least 1, got 0"),
        (np.ones((1, 4, 4, 3), np.float32), {"columns": 26}, ValueError, "at least 27"),
        (
            np.ones((1, 4, 4, 3), np.float32),
            {"columns": 27, "ones": True},
            ValueError,
            r"at least 28 = kernel_size\*\*2 \* channels \+ 1, got 27",
        ),
    ],
)
def test_errors(unchecked, images, options, error, message):
    with pytest.raises(error, match=message):
        im2col(images, **{"kernel_size": 3, "stride": 2, **options})

"""Every implementation against float64 runs of the published PyTorch recurrence."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas import IMPLEMENTATIONS, bidirectional_gla, gla
from kernels_pallas.testing import rms_relative_error

FILES = sorted((pathlib.Path(__file__).parent / "golden").glob("*.npz"))
GRADIENTS = ("d_q", "d_k", "d_v", "d_gk_f", "d_gk_b")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("dtype", "forward", "gradient"), [("float32", 2e-5, 2e-4), ("float64", 1e-13, 1e-13)]
)
@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_golden(path, implementation, dtype, forward, gradient):
    with np.load(path) as data:
        golden = {name: np.swapaxes(data[name], 1, 2) for name in data.files}
    with jax.enable_x64(dtype == "float64"):
        names = ("q", "k", "v", "gk_f", "gk_b")
        arguments = [jnp.asarray(golden[name], dtype) for name in names]
        cotangent = jnp.asarray(golden["do"], dtype)

        @jax.jit
        def run(*arguments):
            out, pullback = jax.vjp(
                lambda *x: bidirectional_gla(*x, implementation=implementation), *arguments
            )
            return out, pullback(cotangent)

        out, gradients = run(*arguments)
        backward = gla(*arguments[:3], arguments[4], reverse=True, implementation=implementation)
    assert rms_relative_error(out, golden["o_f"] + golden["o_b"]) <= forward
    assert rms_relative_error(backward, golden["o_b"]) <= forward
    for name, mine in zip(GRADIENTS, gradients, strict=True):
        assert rms_relative_error(mine, golden[name]) <= gradient, name

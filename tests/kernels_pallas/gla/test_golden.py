"""Compares every implementation with float64 runs of the published PyTorch recurrence."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas import IMPLEMENTATIONS, bidirectional_gla, gla
from kernels_pallas.testing import rms_relative_error

FOLDER = pathlib.Path(__file__).parent / "golden"
GRADIENTS = ("d_q", "d_k", "d_v", "d_gk_f", "d_gk_b")
FILES = sorted(path.stem for path in FOLDER.glob("*.npz"))
PORTABLE = [name for name in IMPLEMENTATIONS if not name.startswith("pallas_")]
FAST = [name for name in PORTABLE if name != "reference"]

# The reference mostly in float64, the others mostly in float32: the other pairs add little. For the
# sizes of the slow ones, test_gla.py compares with the reference.
QUICK = ("t49_reset", "t200_strong")
slow = functools.partial(pytest.param, marks=pytest.mark.slow)
CASES = [
    *((name, implementation, "float32") for name in QUICK for implementation in FAST),
    *(
        slow(name, implementation, "float32")
        for name in FILES
        for implementation in FAST
        if name not in QUICK
    ),
    *((name, implementation, "float64") for name in ("t33_odd",) for implementation in FAST),
    *((name, "reference", "float64") for name in ("t33_odd", "t49_reset")),
    ("t64_strong", "reference", "float32"),
]
TOLERANCES = {"float32": (2e-5, 2e-4), "float64": (1e-13, 1e-13)}


@pytest.mark.parametrize(("name", "implementation", "dtype"), CASES)
def test_golden(name, implementation, dtype):
    forward, gradient = TOLERANCES[dtype]
    with np.load(FOLDER / f"{name}.npz") as data:
        golden = {field: np.swapaxes(data[field], 1, 2) for field in data.files}
    with jax.enable_x64(dtype == "float64"):
        fields = ("q", "k", "v", "gk_f", "gk_b")
        arguments = [jnp.asarray(golden[field], dtype) for field in fields]
        cotangent = jnp.asarray(golden["do"], dtype)

        @jax.jit
        def run(*arguments):
            out, pullback = jax.vjp(
                lambda *x: bidirectional_gla(*x, implementation=implementation), *arguments
            )
            return out, pullback(cotangent)

        out, gradients = run(*arguments)
    assert rms_relative_error(out, golden["o_f"] + golden["o_b"]) <= forward
    for field, mine in zip(GRADIENTS, gradients, strict=True):
        assert rms_relative_error(mine, golden[field]) <= gradient, field


@pytest.mark.parametrize("implementation", PORTABLE)
def test_each_direction_alone(implementation):
    golden = np.load(FOLDER / "t33_odd.npz")
    q, k, v, forward, backward = (
        jnp.asarray(np.swapaxes(golden[field], 1, 2)) for field in ("q", "k", "v", "gk_f", "gk_b")
    )
    out = gla(q, k, v, forward, implementation=implementation)
    assert rms_relative_error(np.swapaxes(out, 1, 2), golden["o_f"]) <= 2e-5
    out = gla(q, k, v, backward, reverse=True, implementation=implementation)
    assert rms_relative_error(np.swapaxes(out, 1, 2), golden["o_b"]) <= 2e-5

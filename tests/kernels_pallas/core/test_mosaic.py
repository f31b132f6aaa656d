"""Mosaic kernels in programs for several platforms."""

import functools

import jax
import pytest
from jax import export

from kernels_pallas import linear_swiglu
from kernels_pallas.testing.op_test import with_mosaic


@with_mosaic
@pytest.mark.parametrize("platforms", [("cuda",), ("cpu", "cuda")], ids=str)
def test_an_export_needs_no_permission(platforms):
    """Also of a program for several platforms, which Mosaic kernels alone cannot be."""
    run = functools.partial(linear_swiglu, implementation=("pallas_mosaic_gpu", "xla"))
    x, kernel = (jax.ShapeDtypeStruct(shape, "bfloat16") for shape in ((8, 64), (64, 256)))
    exported = export.export(jax.jit(run), platforms=platforms)(x, kernel)
    assert "mosaic_gpu" in exported.mlir_module()

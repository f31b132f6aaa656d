import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import golden_det
from vig_jax.ops.anchors import AnchorGenerator

MM, TV = AnchorGenerator(), AnchorGenerator(rounded=True)


def test_base_anchors():
    arrays = golden_det.load("anchors").arrays
    for level in range(len(arrays["tv_base"])):
        np.testing.assert_array_equal(TV.base(level), arrays["tv_base"][level])
        np.testing.assert_allclose(MM.base(level), arrays["mm_base"][level], rtol=0, atol=2e-5)


@pytest.mark.parametrize("case", range(len(golden_det.facts("anchors")["small"])))
def test_grids(case):
    facts = golden_det.facts("anchors")["small"][case]
    arrays = golden_det.load("anchors").below(f"small{case}_")
    sizes, image = [tuple(size) for size in facts["levels"]], tuple(facts["image"])
    mm = jax.jit(lambda: jnp.concatenate(MM.boxes(sizes)))()
    tv = jax.jit(lambda: jnp.concatenate(TV.boxes(sizes, image)))()
    np.testing.assert_allclose(mm, arrays["mm"], rtol=0, atol=2e-5)
    np.testing.assert_array_equal(tv, arrays["tv"])
    valid = jax.jit(lambda region: jnp.concatenate(MM.valid(sizes, region)))
    region = jnp.asarray(facts["valid_flags_pad_shape"])
    np.testing.assert_array_equal(valid(region), arrays["mm_valid_flags"])


def test_a_large_grid():
    golden = golden_det.load("anchors")
    large = golden.facts["large"]
    sizes = [tuple(size) for size in large["levels"]]
    levels = jax.jit(lambda: MM.boxes(sizes))()
    assert [len(boxes) for boxes in levels] == large["counts"]
    rows = np.concatenate(levels)[golden.arrays["large_index"]]
    np.testing.assert_allclose(rows, golden.arrays["large_mm"], rtol=0, atol=2e-4)
    sums = np.stack([np.sum(np.asarray(boxes, np.float64), 0) for boxes in levels])
    np.testing.assert_allclose(sums, golden.arrays["large_mm_sum"], rtol=1e-7)

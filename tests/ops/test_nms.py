import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import golden_det
from vig_jax.ops.nms import nms

CASES = golden_det.facts("nms")["thresholds"]
jitted = jax.jit(nms, static_argnames=("threshold", "limit"))


@pytest.mark.parametrize("case", CASES)
def test_golden(precision, case):
    arrays = golden_det.load("nms").below(f"{case}_")
    boxes, scores = precision.inputs(arrays["boxes"], arrays["scores"])
    kept = jitted(boxes, scores, CASES[case])
    np.testing.assert_array_equal(kept.indices[kept.valid], arrays["keep"])
    assert not kept.indices[~kept.valid].any()


@pytest.mark.parametrize("library", ["tv", "mm"])
def test_groups(precision, library):
    golden = golden_det.load("nms")
    arrays = golden.below("batched_")
    boxes, scores = precision.inputs(arrays["boxes"], arrays["scores"])
    threshold, groups = golden.facts["batched_threshold"], jnp.asarray(arrays["groups"])
    kept = jitted(boxes, scores, threshold, groups=groups)
    np.testing.assert_array_equal(kept.indices[kept.valid], arrays[f"{library}_keep"])


def test_padding_changes_nothing():
    """Padded boxes cover everything and have high scores, and still have no influence."""
    case = next(iter(CASES))
    arrays = golden_det.load("nms").below(f"{case}_")
    count, limit = len(arrays["boxes"]), len(arrays["keep"]) + 4
    boxes = np.concatenate([np.tile([[-1e4, -1e4, 1e4, 1e4]], (count, 1)), arrays["boxes"]])
    scores = np.concatenate([np.full(count, 1e3), arrays["scores"]])
    boxes, scores = jnp.asarray(boxes, jnp.float32), jnp.asarray(scores, jnp.float32)
    kept = jitted(boxes, scores, CASES[case], valid=jnp.arange(2 * count) >= count, limit=limit)
    assert kept.indices.shape == (limit,)
    np.testing.assert_array_equal(kept.indices[kept.valid] - count, arrays["keep"])


def test_many_images_at_once():
    """The second image has the first one's boxes in the opposite order."""
    case = next(iter(CASES))
    arrays = golden_det.load("nms").below(f"{case}_")
    boxes, scores = (jnp.stack([arrays[k], arrays[k][::-1]]) for k in ("boxes", "scores"))
    together = jax.jit(jax.vmap(functools.partial(nms, threshold=CASES[case])))(boxes, scores)
    first, second = (together.indices[i][together.valid[i]] for i in range(2))
    np.testing.assert_array_equal(first, arrays["keep"])
    assert set((len(scores[0]) - 1 - second).tolist()) == set(arrays["keep"].tolist())

"""Scores and deltas to detections, against golden values of mmdet and torchvision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import golden_det
from vig_jax.heads.select import DetectionSelector


def selector(facts, library, **options):
    given = {
        "score_threshold": facts["score_threshold"],
        "nms_threshold": facts["nms_threshold"],
        "count": facts["max_detections"],
        "most_candidates": facts["candidates"] + 20,
    }
    if library == "tv":
        given |= {"least_side": 1e-2, "clamp_below": False}
    return DetectionSelector(**given | options)


def inputs(golden, dtype):
    names = ("logits", "deltas", "proposals")
    logits, deltas, proposals = (jnp.asarray(golden.arrays[k], dtype) for k in names)
    size = jnp.asarray(golden.facts["image"])
    valid = jnp.ones(len(proposals), bool)
    return logits, deltas.reshape(len(deltas), -1, 4), proposals, valid, size


@pytest.mark.parametrize("library", ["mm", "tv"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
def test_golden(library, dtype):
    golden = golden_det.load("postprocess")
    with jax.enable_x64(dtype is np.float64):
        run = jax.jit(selector(golden.facts, library))
        found = run(*inputs(golden, dtype))
    assert int(found.candidates) == golden.facts["candidates"]
    shift = 1 if library == "tv" else 0
    np.testing.assert_array_equal(found.labels + shift, golden.arrays[f"{library}_labels"])
    tolerance = 1e-9 if dtype is np.float64 else 1e-4
    for name in ("boxes", "scores"):
        expected = golden.arrays[f"{library}_{name}"]
        np.testing.assert_allclose(getattr(found, name), expected, rtol=0, atol=tolerance)


def test_padding_changes_nothing():
    """More proposals, room for more candidates, and room for more detections."""
    golden = golden_det.load("postprocess")
    facts = golden.facts
    logits, deltas, proposals, valid, size = inputs(golden, np.float32)
    expected = jax.jit(selector(facts, "mm"))(logits, deltas, proposals, valid, size)
    twice = [jnp.concatenate([x, x]) for x in (logits, deltas, proposals)]
    more = selector(facts, "mm", count=facts["candidates"] + 1, most_candidates=10**6)
    found = jax.jit(more)(*twice, jnp.concatenate([valid, ~valid]), size)
    count = facts["max_detections"]
    for name in ("boxes", "scores", "labels"):
        np.testing.assert_array_equal(getattr(found, name)[:count], getattr(expected, name))
    assert (found.labels == -1).any()
    assert not found.scores[found.labels == -1].any()
    limited = jax.jit(selector(facts, "mm", most_candidates=10))(
        logits, deltas, proposals, valid, size
    )
    assert int(limited.candidates) == facts["candidates"]
    assert np.sum(limited.labels >= 0) <= 10

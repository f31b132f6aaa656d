"""Maps to losses, gradients, detections and masks, against golden values."""

import jax
import numpy as np
import pytest

from tests import golden_det
from tests.golden_seg import last, numbered, relative_error
from tests.tasks.detection.mask_rcnn import Case
from vig_jax.ops.paste import paste

TOLERANCE = {np.float64: 1e-5, np.float32: 1e-4}
# In float32, an activation near 0 may change its sign: a ReLU then stops or passes its gradient.
OF_GRADIENTS = {np.float64: 1e-5, np.float32: 1e-3}


# The padding of objects, samples, proposals and detections differs between the cases.
CASES = [
    pytest.param("mm_s2", np.float64, 3, id="mm_s2"),
    pytest.param("mm_s2", np.float32, 8, id="mm_s2-float32"),
    pytest.param("mm_s0", np.float64, 11, id="mm_s0"),
    pytest.param("tv", np.float64, 19, id="tv"),
]


@pytest.fixture
def case(name, dtype, padding):
    with jax.enable_x64(dtype is np.float64):
        yield Case(name, dtype, padding)


@pytest.mark.parametrize(("name", "dtype", "padding"), CASES)
def test_losses_and_gradients(case, name, dtype):
    tolerance, arrays = TOLERANCE[dtype], case.golden.arrays
    (losses, (matches, targets, masks)), (by_param, by_map) = jax.jit(case.gradients)(
        case.params, case.maps
    )
    for i, found in enumerate(matches):
        positive = arrays[f"pos{i}"]
        assert (found[positive] >= 0).all()
        assert (found[arrays[f"neg{i}"]] < 0).all()
        if name.startswith("mm"):
            np.testing.assert_array_equal(found + 1, arrays[f"mm_assigned{i}"])
    if name.startswith("mm"):
        deltas = np.asarray(targets.deltas)[targets.positive]
        stored = arrays["mm_box_targets"].reshape(case.images, -1, 4)
        stored = stored[:, : len(arrays["pos0"])].reshape(-1, 4)
        np.testing.assert_allclose(deltas, stored, rtol=0, atol=1e-4)
        found = np.asarray(masks)[targets.positive[:, : case.positives]]
        different = np.mean(found != arrays["mm_mask_targets"])
        assert different == 0 if dtype is np.float64 else different < 1e-3
    for loss, kind in zip(losses, ("cls", "box", "mask"), strict=True):
        assert relative_error(loss, arrays[f"{name}_loss_{kind}"]) < tolerance, kind
    for x, expected in zip(by_map, numbered(arrays, f"{name}_grad_map"), strict=True):
        assert relative_error(x, last(expected), 1e-3) < OF_GRADIENTS[dtype]
    stored = golden_det.tree(case.golden.below(f"{name}_grad_w."), np.float64)
    if stored:
        assert jax.tree.structure(by_param) == jax.tree.structure(stored)
        for x, expected in zip(jax.tree.leaves(by_param), jax.tree.leaves(stored), strict=True):
            assert relative_error(x, expected, 1e-3) < OF_GRADIENTS[dtype]


@pytest.mark.parametrize(("name", "dtype", "padding"), CASES)
def test_detections(case, name, dtype):
    facts, library, tolerance = case.golden.facts, case.rules.library, TOLERANCE[dtype]
    detections, logits = jax.jit(case.detections)(case.params, case.maps)
    for i, size in enumerate(facts["sizes"]):
        golden = {k.removesuffix(str(i)): x for k, x in case.golden.below(f"{name}_").items()
                  if k.endswith(str(i))}  # fmt: skip
        count = len(golden["labels"])
        shift = 1 if library == "tv" else 0
        labels = np.asarray(detections.labels[i])
        np.testing.assert_array_equal(labels[:count] + shift, golden["labels"])
        assert (labels[count:] == -1).all()
        found = [np.asarray(x, np.float64)
                 for x in (detections.boxes[i, :count], detections.scores[i, :count])]  # fmt: skip
        np.testing.assert_allclose(found[0], golden["boxes"], rtol=0, atol=100 * tolerance)
        np.testing.assert_allclose(found[1], golden["scores"], rtol=0, atol=tolerance)
        maps = np.asarray(logits[i, :count], np.float64)
        masks = 1 / (1 + np.exp(-maps))
        if library == "mm":
            assert relative_error(maps, golden["mask_logits"]) < tolerance
        else:
            assert relative_error(masks, golden["masks"][:, 0]) < tolerance
        height, width = facts["original"][i]
        boxes = found[0] * np.tile([width / size[1], height / size[0]], 2)
        check_masks(masks, boxes, golden_det.unpack(golden["pasted"], width), library)


def check_masks(masks, boxes, expected, library):
    """Pixels may differ where the value is within 1e-4 of 0.5."""
    for mask, box, bits in zip(masks, boxes, expected, strict=True):
        values = paste(mask, box, *bits.shape, library)
        certain = np.abs(values - 0.5) > 1e-4
        np.testing.assert_array_equal((values >= 0.5)[certain], bits[certain])

"""Drawn regions of images with objects, without objects, and with nothing at all."""

import jax
import jax.numpy as jnp
import numpy as np

from tests import golden_det
from tests.golden_seg import numbered
from tests.tasks.detection import given
from vig_jax.heads.roi import RoIHead
from vig_jax.ops.matching import Matcher
from vig_jax.ops.roi_align import RoIAlign
from vig_jax.tasks.detection.losses import box_loss, mask_loss
from vig_jax.tasks.detection.targets import sample_rois

MATCHER = Matcher(0.5, 0.5, least_low_quality=0.5)
COUNT, POSITIVES = 12, 4


def drawn(rows, is_proposal=True, objects=True):
    """Returns regions of the first golden image, with `rows` objects and twice the proposals."""
    golden = golden_det.load("full")
    boxes, labels = golden.arrays["gt0"], golden.arrays["labels0"]
    truth = given.truth(boxes, labels, rows, np.float32)
    truth = truth._replace(valid=truth.valid & objects)
    stored = golden.arrays["proposals0"]
    proposals = jnp.asarray(np.pad(stored, ((0, 10 * rows - len(stored)), (0, 0))))
    real = (jnp.arange(len(proposals)) < len(stored)) & is_proposal
    run = jax.jit(sample_rois, static_argnums=(4, 5, 6, 7))
    key, classes = jax.random.key(1), golden.facts["classes"]
    return run(key, proposals, real, truth, MATCHER, classes, COUNT, POSITIVES)


def test_padding_changes_nothing():
    rows = max(map(len, numbered(golden_det.load("full").arrays, "gt"))) + 2
    short, long = drawn(rows), drawn(2 * rows)
    assert short.positive.sum() == POSITIVES
    assert short.valid.all()
    for name, x in short._asdict().items():
        np.testing.assert_array_equal(getattr(long, name), x, err_msg=name)


def test_regions_agree_with_their_objects():
    golden = golden_det.load("full")
    rows = len(golden.arrays["gt0"]) + 2
    found = drawn(rows)
    positive = np.asarray(found.positive)
    objects, labels = np.asarray(found.objects)[positive], np.asarray(found.labels)
    np.testing.assert_array_equal(labels[positive], golden.arrays["labels0"][objects])
    assert (labels[~positive] == golden.facts["classes"]).all()


def test_without_objects_and_without_regions():
    """The losses of background alone, and of nothing, are finite, and so are all gradients."""
    classes = golden_det.facts("full")["classes"]
    align = RoIAlign((2, 2), rois_at_once=100)
    head = RoIHead(classes, 8, 4, align, align)
    maps = [jnp.asarray(np.random.default_rng(i).normal(size=(1, 16 >> i, 16 >> i, 3)), jnp.float32)
            for i in range(4)]  # fmt: skip
    masks = jnp.zeros((1, POSITIVES, 4, 4))

    def losses(params, maps, targets):
        bound = head.bind({"params": params})
        logits, deltas = bound.boxes(maps, targets.rois)
        flags = targets.positive, targets.valid
        both = box_loss(logits, deltas, targets.labels, targets.deltas, *flags)
        first = slice(None), slice(POSITIVES)
        logits = bound.masks(maps, targets.rois[first])
        mask = mask_loss(logits, masks, targets.labels[first], targets.positive[first])
        return sum(both) + mask, (*both, mask)

    rows = len(golden_det.load("full").arrays["gt0"]) + 2
    background = drawn(rows, objects=False)
    nothing = drawn(rows, is_proposal=False, objects=False)
    assert background.valid.all()
    assert not nothing.valid.any()
    shapes = jax.eval_shape(head.init, jax.random.key(0), maps, jnp.zeros((1, 2, 4)))["params"]
    generator = np.random.default_rng(4)
    params = jax.tree.map(lambda x: 0.1 * generator.standard_normal(x.shape, x.dtype), shapes)
    step = jax.jit(jax.value_and_grad(losses, (0, 1), has_aux=True))
    for targets, is_background in ((background, True), (nothing, False)):
        assert not targets.positive.any()
        batch = jax.tree.map(lambda x: x[None], targets)
        (_, (classification, box, mask)), gradients = step(params, maps, batch)
        assert (classification > 0) == is_background
        assert box == mask == 0
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradients))

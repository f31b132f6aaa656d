"""Box and mask head on given features, with their losses, against golden values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import golden_det
from tests.golden_seg import last, relative_error
from vig_jax.heads.roi import BoxHead, MaskHead, RoIHead
from vig_jax.tasks.detection.losses import box_loss, mask_loss

TOLERANCE = {np.float64: 1e-6, np.float32: 2e-5}
PADDING = 3


@pytest.fixture(params=[np.float64, np.float32], ids=["float64", "float32"])
def dtype(request):
    with jax.enable_x64(request.param is np.float64):
        yield request.param


def params_of(golden, name, dtype):
    return golden_det.tree(golden.below("w."), dtype)[name]


def padded(x, rows=PADDING):
    """Returns one image of samples with rows of zeros below."""
    return jnp.asarray(np.pad(x, [(0, rows)] + [(0, 0)] * (x.ndim - 1)))[None]


def check_tree(actual, expected, tolerance):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for x, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert relative_error(x, other, 1e-3) < tolerance


def box_step(head, params, features, labels, targets, beta):
    """Returns the losses of padded samples, the outputs, and the gradients of the sum."""
    positive = (labels < head.num_classes) & (jnp.arange(labels.shape[1]) < labels.shape[1])
    valid = jnp.arange(labels.shape[1])[None] < labels.shape[1] - PADDING

    def loss(params, features):
        logits, deltas = head.apply({"params": params}, features)
        both = box_loss(logits, deltas, labels, targets, positive & valid, valid, beta)
        return sum(both), (both, logits, deltas)

    (_, rest), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, features)
    return rest, gradients


@pytest.mark.parametrize(("library", "beta"), [("mm", 0.0), ("tv", 1 / 9)])
def test_box_head(library, beta, dtype):
    golden = golden_det.load("heads")
    head = BoxHead(golden.facts["classes"], golden.facts["fc"])
    params, tolerance = params_of(golden, "bbox_head", dtype), TOLERANCE[dtype]
    features = padded(last(golden.arrays["box_in"]).astype(dtype))
    labels, targets = golden.arrays["box_labels"], golden.arrays["box_targets"].astype(dtype)
    run = jax.jit(box_step, static_argnums=(0, 5))
    (losses, logits, deltas), (by_param, by_input) = run(
        head, params, features, padded(labels), padded(targets), beta
    )
    count = len(labels)
    assert relative_error(logits[0, :count], golden.arrays["box_logits"]) < tolerance
    expected = golden.arrays["box_deltas"].reshape(count, -1, 4)
    assert relative_error(deltas[0, :count], expected) < tolerance
    for loss, name in zip(losses, ("cls", "box"), strict=True):
        assert relative_error(loss, golden.arrays[f"{library}_loss_{name}"]) < tolerance
    expected = last(golden.arrays[f"{library}_grad_box_in"])
    assert relative_error(by_input[0, :count], expected) < tolerance
    assert not by_input[0, count:].any()
    if library == "mm":
        expected = golden_det.tree(golden.below("mm_grad_w."), np.float64)["bbox_head"]
        check_tree(by_param, expected, tolerance)


def test_box_head_without_a_positive_sample(dtype):
    golden = golden_det.load("heads")
    head = BoxHead(golden.facts["classes"], golden.facts["fc"])
    params = params_of(golden, "bbox_head", dtype)
    features = padded(last(golden.arrays["box_in"]).astype(dtype))
    labels = np.full_like(golden.arrays["box_labels"], golden.facts["classes"])
    targets = padded(golden.arrays["box_targets"].astype(dtype))
    run = jax.jit(box_step, static_argnums=(0, 5))
    (losses, *_), gradients = run(head, params, features, padded(labels), targets, 0.0)
    for loss, name in zip(losses, ("cls", "box"), strict=True):
        expected = golden.arrays[f"none_mm_loss_{name}"]
        assert relative_error(loss, expected, 1.0) < TOLERANCE[dtype]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradients))
    assert not np.any(gradients[0]["fc_reg"]["kernel"])


def mask_step(head, params, features, targets, labels, positive):
    def loss(params, features):
        logits = head.apply({"params": params}, features)
        return mask_loss(logits, targets, labels, positive), logits

    (value, logits), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, features)
    return value, logits, gradients


def test_mask_head(dtype):
    golden = golden_det.load("heads")
    head = MaskHead(golden.facts["classes"], golden.facts["mask_channels"])
    params, tolerance = params_of(golden, "mask_head", dtype), TOLERANCE[dtype]
    features = padded(last(golden.arrays["mask_in"]).astype(dtype))
    targets, labels = padded(golden.arrays["mask_targets"] > 0), golden.arrays["mask_labels"]
    count = len(labels)
    positive = jnp.arange(count + PADDING)[None] < count
    run = jax.jit(mask_step, static_argnums=0)
    given = head, params, features, targets, padded(labels)
    loss, logits, (by_param, by_input) = run(*given, positive)
    assert relative_error(loss, golden.arrays["mm_loss_mask"]) < tolerance
    assert relative_error(logits[0, :count], last(golden.arrays["mask_logits"])) < tolerance
    expected = last(golden.arrays["mm_grad_mask_in"])
    assert relative_error(by_input[0, :count], expected) < tolerance
    expected = golden_det.tree(golden.below("mm_grad_w."), np.float64)["mask_head"]
    check_tree(by_param, expected, tolerance)
    loss, _, gradients = run(*given, jnp.zeros_like(positive))
    assert loss == 0
    assert not any(np.any(x) for x in jax.tree.leaves(gradients))


def test_initial_values_and_names():
    maps = [jnp.zeros((1, side, side, 4), jnp.bfloat16) for side in (16, 8, 4, 2)]
    head = RoIHead(3, 128, 64, dtype=jnp.bfloat16)
    rois = jnp.zeros((1, 2, 4))
    params = jax.jit(head.init)(jax.random.key(0), maps, rois)["params"]
    box, mask = params["bbox_head"], params["mask_head"]
    assert set(box) == {"shared_fcs_0", "shared_fcs_1", "fc_cls", "fc_reg"}
    assert set(mask) == {*(f"convs_{i}" for i in range(4)), "upsample", "conv_logits"}
    deviations = (
        (box["fc_cls"], 0.01),
        (box["fc_reg"], 0.001),
        (box["shared_fcs_0"], (2 / (4 * 49 + 128)) ** 0.5),
        (mask["convs_1"]["conv"], (2 / (9 * 64)) ** 0.5),
        (mask["upsample"], (2 / (4 * 64)) ** 0.5),
        (mask["conv_logits"], (2 / 3) ** 0.5),
    )
    for layer, expected in deviations:
        assert not layer["bias"].any()
        np.testing.assert_allclose(np.std(layer["kernel"]), expected, rtol=0.2)
    results = jax.eval_shape(head.apply, {"params": params}, maps, rois)
    assert [x.dtype for x in results] == [jnp.float32] * 3
    assert [x.shape for x in results] == [(1, 2, 4), (1, 2, 3, 4), (1, 2, 28, 28, 3)]

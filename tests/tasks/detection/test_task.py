"""The loss of Mask R-CNN: paddings, degenerate objects, draws. Values: `test_full`, `test_rpn`."""

import functools

import chex
import jax
import numpy as np
import pytest

from tests.tasks.detection import scenes

NAMES = ("loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox", "loss_mask")


@functools.cache
def step_of(**settings):
    task = scenes.make_task(**settings)

    @jax.jit
    def step(params, batch, key):
        def loss(params):
            return task.loss({"params": params}, batch, key)

        (total, aux), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        return total, dict(aux.metrics), gradients

    return step


def run(batch, dtype=np.float32, key=0, **settings):
    params = scenes.random_params(scenes.make_task(), dtype)
    return step_of(**settings)(params, batch, jax.random.key(key))


@pytest.fixture
def wide():
    with jax.enable_x64(True):
        yield functools.partial(run, dtype=np.float64)


def close(actual, expected):
    chex.assert_trees_all_close(actual, expected, rtol=1e-9, atol=1e-11)


def test_paddings_change_nothing(wide):
    """Rows of objects, proposals and samples, the canvas, and the order of the objects."""
    total, losses, gradients = expected = wide(scenes.batch(2, 3))
    assert set(losses) == set(NAMES)
    assert all(value > 0 for value in losses.values())
    np.testing.assert_allclose(total, sum(losses.values()), rtol=1e-12)
    assert min(float(np.abs(x).max()) for x in jax.tree.leaves(gradients)) > 0
    twice = {"max_boxes": 8, "roi_samples": 128, "proposals": 48}
    best = wide(scenes.batch(2, 3), train_level_proposals=6)
    close(wide(scenes.batch(2, 3, rows=8), train_level_proposals=6, **twice), best)
    assert abs(float(best[0] - total)) > 1e-6  # the number of proposals matters
    close(wide(scenes.batch(2, 3, canvas=(32, 64))), expected)
    batch = scenes.batch(2, 3)
    turned = {k: batch[k][:, [2, 0, 1, 3]] for k in ("boxes", "labels", "valid", "masks")}
    close(wide(batch | turned), expected)


def test_gradients_are_finite():
    """Without objects, with one in every row, and with boxes without area or outside."""
    none, full, odd = scenes.batch(2, 0), scenes.batch(2, 4), scenes.batch(2, 4)
    odd["boxes"][0, 0, 2] = odd["boxes"][0, 0, 0]
    odd["boxes"][0, 1] = 0
    odd["boxes"][1, 0] += 1000
    odd["boxes"][1, 1, 2:] = odd["boxes"][1, 1, :2] - 5
    for batch in (none, full, odd):
        total, losses, gradients = run(batch)
        chex.assert_tree_all_finite((total, losses, gradients))
        assert losses["loss_rpn_cls"] > 0
        if batch is none:
            assert [float(losses[name]) for name in NAMES if name not in NAMES[::2]] == [0, 0]
            assert float(losses["loss_mask"]) == 0
        else:
            assert min(losses.values()) > 0


def test_draws_depend_on_key_and_image():
    fewer = {"rpn_samples": 16, "rpn_positive_share": 0.5, "roi_samples": 8}
    batch = scenes.batch(2, 3)
    losses = [run(batch, key=key, **fewer)[1]["loss_rpn_cls"] for key in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
    swapped = {name: x[::-1] for name, x in batch.items()}
    np.testing.assert_allclose(run(swapped, **fewer)[1]["loss_rpn_cls"], losses[0], rtol=1e-5)
    other = batch | {"image_id": batch["image_id"] + 5}
    assert run(other, **fewer)[1]["loss_rpn_cls"] != losses[0]


def test_boxes_alone():
    batch = scenes.batch(2, 3)
    task = scenes.make_task(masks=False)
    assert "masks" not in task.batch_spec
    variables = jax.eval_shape(task.init, jax.random.key(0))
    del batch["masks"]
    _, aux = jax.eval_shape(task.loss, variables, batch, jax.random.key(0))
    assert set(aux.metrics) == set(NAMES[:-1])

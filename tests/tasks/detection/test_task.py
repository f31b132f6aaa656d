"""The loss of Mask R-CNN: paddings, degenerate objects, draws. Values: `test_full`, `test_rpn`."""

import functools

import chex
import jax
import numpy as np

from tests.tasks.detection import scenes

NAMES = ("loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox", "loss_mask")


make_task = functools.partial(scenes.make_task, "vig_t")  # compiles faster than vig_h_t


@functools.cache
def step_of(**settings):
    task = make_task(**settings)

    @jax.jit
    def step(params, batch, key):
        def loss(params):
            return task.loss({"params": params}, batch, key)

        (total, aux), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        return total, dict(aux.metrics), gradients

    return step


@functools.cache
def params_of(dtype):
    return scenes.random_params(make_task(), dtype)


def run(batch, dtype=np.float32, **settings):
    return step_of(**settings)(params_of(dtype), batch, jax.random.key(0))


def wide(batch, **settings):
    with jax.enable_x64(True):
        found = run(batch, np.float64, train_level_proposals=6, **settings)
    return jax.tree.map(np.asarray, found)


def close(actual, expected):
    chex.assert_trees_all_close(actual, expected, rtol=1e-9, atol=1e-11)


def test_paddings_change_nothing():
    """Rows of objects, proposals and samples, the canvas, and the order of the objects."""
    batch = scenes.batch(2, 3, canvas=(32, 64))
    total, losses, gradients = expected = wide(batch)
    assert set(losses) == set(NAMES)
    assert all(value > 0 for value in losses.values())
    np.testing.assert_allclose(total, sum(losses.values()), rtol=1e-12)
    assert min(float(np.abs(x).max()) for x in jax.tree.leaves(gradients)) > 0
    turned = {k: batch[k][:, [2, 0, 1, 3]] for k in ("boxes", "labels", "valid", "masks")}
    close(wide(batch | turned), expected)
    twice = {"max_boxes": 8, "roi_samples": 128, "proposals": 48}
    close(wide(scenes.batch(2, 3, rows=8), **twice), expected)
    more, *_ = run(scenes.batch(2, 3))
    assert abs(float(more) / float(total) - 1) > 1e-3  # the number of proposals matters


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
    task = make_task(**fewer, masks=False)  # without masks it compiles faster

    @jax.jit
    def step(params, batch, key):
        return task.loss({"params": params}, batch, key)[1].metrics["loss_rpn_cls"]

    def loss(batch, key=0):
        return float(step(params_of(np.float32), batch, jax.random.key(key)))

    batch = scenes.batch(2, 3)
    first = loss(batch)
    assert loss(batch) == first != loss(batch, 1)
    swapped = {name: x[::-1] for name, x in batch.items()}
    np.testing.assert_allclose(loss(swapped), first, rtol=1e-5)
    assert loss(batch | {"image_id": batch["image_id"] + 5}) != first


def test_boxes_alone():
    batch = scenes.batch(2, 3)
    task = make_task(masks=False)
    assert "masks" not in task.batch_spec
    variables = jax.eval_shape(task.init, jax.random.key(0))
    del batch["masks"]
    _, aux = jax.eval_shape(task.loss, variables, batch, jax.random.key(0))
    assert set(aux.metrics) == set(NAMES[:-1])

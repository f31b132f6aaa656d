"""Training steps of neck and heads against the golden values of mmsegmentation."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import golden_seg
from tests.heads.test_golden import check, check_tree, heads, maps_of
from vig_jax.heads.pyramid import Feature2Pyramid
from vig_jax.tasks.segmentation.loss import segmentation_loss

LOSSES = {"float32": 1e-5, "float64": 1e-11}
GRADIENTS = {"float32": 1e-3, "float64": 1e-11}
AUXILIARY_WEIGHT = 0.4  # in the golden values of the auxiliary loss
NAMES = {"decode": "decode_head", "aux": "auxiliary_head"}


@pytest.fixture
def dtype(request):
    with jax.enable_x64(request.param == "float64"):
        yield request.param


def given_dropout(keep):
    """Returns what makes dropout keep the channels [B, C] that are given."""

    def intercept(call, args, kwargs, context):
        if not isinstance(context.module, nn.Dropout):
            return call(*args, **kwargs)
        assert context.module.broadcast_dims == (1, 2)
        (x,) = args
        return x * jnp.asarray(keep)[:, None, None].astype(x.dtype) / (1 - context.module.rate)

    return nn.intercept_methods(intercept)


def training_step(golden, dtype):
    """Returns the losses, accuracies and logits by head, all gradients, and the new statistics."""
    modules = dict(zip(NAMES.values(), heads(golden.facts), strict=True))
    variables = golden_seg.variables(golden, dtype)
    maps = maps_of(golden, "input/", dtype)
    labels = jnp.asarray(golden.arrays["label"])

    def loss(params, maps):
        moved, results, total = {}, {}, 0.0

        def apply(module, name, x):
            mine = {
                "params": params[name],
                "batch_stats": variables["batch_stats"][name],
            }
            out, state = module.apply(mine, x, True, mutable=["batch_stats"])
            moved[name] = state["batch_stats"]
            return out

        pyramid = apply(Feature2Pyramid(), "neck", maps) if "neck" in params else maps
        for key, name in NAMES.items():
            keep = golden.arrays.get(f"dropout_keep/{key}", np.ones((1, 1), bool))
            with given_dropout(keep):
                logits = apply(modules[name], name, pyramid if key == "decode" else pyramid[2])
            weight = 1.0 if key == "decode" else AUXILIARY_WEIGHT
            value, accuracy = segmentation_loss(logits, labels)
            results[key] = {"loss": weight * value, "acc": accuracy, "logits": logits}
            total += weight * value
        return total, (results, moved)

    step = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (total, (results, moved)), (gradients, by_map) = step(variables["params"], maps)
    return total, results, moved, gradients, by_map


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("heads_train_even", "float64"),
        ("heads_train_even", "float32"),
        ("heads_train_odd", "float64"),
        pytest.param("heads_train_odd", "float32", marks=pytest.mark.slow),
        ("plain_segmentor_train", "float64"),
        ("plain_segmentor_train", "float32"),
    ],
    indirect=["dtype"],
)
def test_training_step(name, dtype):
    golden = golden_seg.load(name)
    total, results, moved, gradients, by_map = training_step(golden, dtype)
    arrays, tolerance = golden.arrays, LOSSES[dtype]
    assert golden_seg.relative_error(total, arrays["loss/total"]) < tolerance
    for key, result in results.items():
        assert golden_seg.relative_error(result["loss"], arrays[f"loss/{key}"]) < tolerance
        if f"acc/{key}" in arrays:
            assert golden_seg.relative_error(result["acc"], arrays[f"acc/{key}"][0]) < 1e-6
            check(result["logits"], arrays[f"logits_{key}"], tolerance)
    after = golden_seg.tree(golden.below("buffer_after/"), np.float64)
    check_tree(moved, after, tolerance)
    expected = golden_seg.tree(golden.below("grad/"), np.float64)
    check_tree(gradients, expected, GRADIENTS[dtype])
    for i, gradient in enumerate(by_map):
        check(gradient, arrays[f"grad_input/{i}"], GRADIENTS[dtype])

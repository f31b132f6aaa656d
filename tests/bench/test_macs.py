"""The analytic count against the operations in the traced program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vig_jax
from vig_jax.bench.macs import count_macs

HIERARCHICAL = {"embed_dims": (8, 16, 24, 32), "depths": (1, 2, 1, 1), "num_heads": (1, 2, 2, 4)}
PLAIN = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}


def traced_macs(jaxpr, in_scan=False):
    """Multiplications in products, convolutions and, inside a scan, of states [B, H, K, V]."""
    total = 0
    # Zeros that fill up the rows of a product, as the stem's have them, and biases are no products.
    filled = {}
    for equation in jaxpr.eqns:
        name, arrays = equation.params.get("name"), equation.invars
        bias = equation.primitive.name == "concatenate" and equation.params["dimension"] == 0
        if name == "_pad" or (bias and arrays[-1].aval.shape[0] == 1):
            filled[equation.outvars[0]] = filled.get(arrays[0], arrays[0].aval.shape)
    for equation in jaxpr.eqns:
        name, params, out = equation.primitive.name, equation.params, equation.outvars[0].aval
        if name == "dot_general":
            axes, _ = params["dimension_numbers"]
            left, right = (filled.get(x, x.aval.shape) for x in equation.invars)
            pairs = zip(*axes, strict=True)
            total += out.size * int(np.prod([min(left[i], right[j]) for i, j in pairs]))
        elif name == "conv_general_dilated":
            height, width, per_group, _ = equation.invars[1].aval.shape
            total += out.size * height * width * per_group
        elif name == "mul" and in_scan and out.ndim == 4:
            total += out.size
        inner = [traced_macs(j, in_scan or name == "scan") for j in _jaxprs(params)]
        if name == "cond":  # a platform's own form of the same operation
            total += max(inner)
        else:
            total += sum(inner) * params.get("length", 1)
    return total


def _jaxprs(params):
    for value in params.values():
        for item in value if isinstance(value, tuple) else (value,):
            if hasattr(item, "eqns"):
                yield item
            elif hasattr(item, "jaxpr"):
                yield item.jaxpr


@pytest.mark.parametrize(
    ("name", "sizes", "image"),
    [
        ("vig_t", PLAIN, (32, 32)),
        ("vig_h_t", HIERARCHICAL, (64, 64)),
        ("vig_h_t", HIERARCHICAL, (45, 66)),
    ],
)
def test_counts_what_is_computed(name, sizes, image):
    model = vig_jax.create_model(name, 7, gla_implementation="reference", **sizes)
    images = jax.ShapeDtypeStruct((1, *image, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    traced = traced_macs(jax.make_jaxpr(model.apply)(variables, images).jaxpr)
    assert count_macs(model, *image).total == traced

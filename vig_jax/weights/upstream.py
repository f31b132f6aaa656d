"""Translates names and layouts of upstream (hustvl/ViG, PyTorch) to ours and back, strictly.

The tables map every upstream key to one of our parameters and a layout; `vig_jax.weights.table`
applies them.
"""

import functools
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from vig_jax.models import Backbone, Detector, Segmenter
from vig_jax.weights.table import CONV, LINEAR, SAME, Rules, to_ours, to_theirs

Params = dict[str, Any]


def _mixer(theirs: str, ours: str) -> Rules:
    """Returns the rules of one token mixer, which both families share."""
    return (
        (f"{theirs}.in_proj.0.weight", f"{ours}/dwconv/kernel", CONV),
        (f"{theirs}.qkv_proj.weight", f"{ours}/qkv_proj/kernel", LINEAR),
        (f"{theirs}.gk_proj.0.weight", f"{ours}/gk_proj_down/kernel", LINEAR),
        (f"{theirs}.gk_proj.1.weight", f"{ours}/gk_proj_up/kernel", LINEAR),
        (f"{theirs}.gk_proj.1.bias", f"{ours}/gk_proj_up/bias", SAME),
        (f"{theirs}.g_proj.weight", f"{ours}/g_proj/kernel", LINEAR),
        (f"{theirs}.g_proj.bias", f"{ours}/g_proj/bias", SAME),
        (f"{theirs}.g_norm.weight", f"{ours}/g_norm/scale", SAME),
        (f"{theirs}.l_norm.weight", f"{ours}/l_norm/scale", SAME),
        (f"{theirs}.o_proj.weight", f"{ours}/o_proj/kernel", LINEAR),
    )


# Upstream key, our parameter, layout. In the templates {i} is the number of a block, or of a stage
# with {j} the block in it. The first match counts.
PLAIN: Rules = (
    ("pos_embed", "pos_embed", SAME),
    ("patch_embed.proj.0.weight", "patch_embed/conv1/kernel", CONV),
    ("patch_embed.proj.0.bias", "patch_embed/conv1/bias", SAME),
    ("patch_embed.proj.1.weight", "patch_embed/norm1/scale", SAME),
    ("patch_embed.proj.1.bias", "patch_embed/norm1/bias", SAME),
    ("patch_embed.proj.3.weight", "patch_embed/conv2/kernel", CONV),
    ("patch_embed.proj.3.bias", "patch_embed/conv2/bias", SAME),
    ("patch_embed.proj.4.weight", "patch_embed/norm2/scale", SAME),
    ("patch_embed.proj.4.bias", "patch_embed/norm2/bias", SAME),
    ("blocks.{i}.attn_norm.weight", "blocks_{i}/attn_norm/scale", SAME),
    *_mixer("blocks.{i}.attn", "blocks_{i}/attn"),
    ("blocks.{i}.mlp_norm.weight", "blocks_{i}/mlp_norm/scale", SAME),
    ("blocks.{i}.mlp.gate_proj.weight", "blocks_{i}/mlp/gate_proj/kernel", LINEAR),
    ("blocks.{i}.mlp.down_proj.weight", "blocks_{i}/mlp/down_proj/kernel", LINEAR),
    ("norm.weight", "norm/scale", SAME),
    ("head.weight", "head/kernel", LINEAR),
    ("head.bias", "head/bias", SAME),
)
_THEIRS, _OURS = "layers.{i}.blocks.{j}", "stages_{i}/blocks_{j}"
HIERARCHICAL: Rules = (
    ("patch_embed.0.weight", "patch_embed/conv1/kernel", CONV),
    ("patch_embed.0.bias", "patch_embed/conv1/bias", SAME),
    ("patch_embed.2.weight", "patch_embed/norm1/scale", SAME),
    ("patch_embed.2.bias", "patch_embed/norm1/bias", SAME),
    ("patch_embed.5.weight", "patch_embed/conv2/kernel", CONV),
    ("patch_embed.5.bias", "patch_embed/conv2/bias", SAME),
    ("patch_embed.7.weight", "patch_embed/norm2/scale", SAME),
    ("patch_embed.7.bias", "patch_embed/norm2/bias", SAME),
    (f"{_THEIRS}.norm.weight", f"{_OURS}/attn_norm/scale", SAME),
    (f"{_THEIRS}.norm.bias", f"{_OURS}/attn_norm/bias", SAME),
    *_mixer(f"{_THEIRS}.op", f"{_OURS}/attn"),
    (f"{_THEIRS}.norm2.weight", f"{_OURS}/mlp_norm/scale", SAME),
    (f"{_THEIRS}.norm2.bias", f"{_OURS}/mlp_norm/bias", SAME),
    (f"{_THEIRS}.mlp.fc1.weight", f"{_OURS}/mlp/gate_proj/kernel", LINEAR),
    (f"{_THEIRS}.mlp.fc2.weight", f"{_OURS}/mlp/down_proj/kernel", LINEAR),
    ("layers.{i}.downsample.1.weight", "downsample_{i}/conv/kernel", CONV),
    ("layers.{i}.downsample.1.bias", "downsample_{i}/conv/bias", SAME),
    ("layers.{i}.downsample.3.weight", "downsample_{i}/norm/scale", SAME),
    ("layers.{i}.downsample.3.bias", "downsample_{i}/norm/bias", SAME),
    ("outnorm{i}.weight", "out_norm_{i}/scale", SAME),  # of upstream's Backbone_HierViG
    ("outnorm{i}.bias", "out_norm_{i}/bias", SAME),
    ("classifier.norm.weight", "norm/scale", SAME),
    ("classifier.norm.bias", "norm/bias", SAME),
    ("classifier.head.weight", "head/kernel", LINEAR),
    ("classifier.head.bias", "head/bias", SAME),
)


def to_params(state_dict: Mapping[str, np.ndarray], model: Backbone) -> Params:
    """Returns our parameter tree for `model` from an upstream state dict.

    Args:
        state_dict: upstream names to arrays, all of them.
        model: from `vig_jax.create_model`.

    Returns:
        The nested dictionary for `model.apply({"params": ...}, images)`; dtypes are kept. If the
        state dict has no norms of `out_norms`, as upstream's classifiers, they are new: scale 1,
        bias 0.

    Raises:
        WeightsError: lists the missing and unexpected names and the shapes that differ.
    """
    shapes = variable_shapes(model).items()
    expected = {path.removeprefix("params/"): shape for path, shape in shapes}
    rules = rules_of(expected)
    given = dict(state_dict) | new_out_norms(state_dict, expected)
    cure = "check the model name, num_classes and img_size"
    return traverse_util.unflatten_dict(to_ours(rules, given, expected, cure=cure), sep="/")


def from_params(params: Params) -> dict[str, np.ndarray]:
    """Returns the upstream state dict of our parameters, the inverse of `to_params`.

    Raises:
        WeightsError: names the parameters that upstream does not have.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    return to_theirs(rules_of(flat), flat, whose="upstream")


def rules_of(paths: Collection[str]) -> Rules:
    """Returns the table of the family that has these parameters."""
    return HIERARCHICAL if any(path.startswith("stages_") for path in paths) else PLAIN


def new_out_norms(
    state_dict: Mapping[str, np.ndarray],
    expected: Mapping[str, tuple[int, ...]],
    prefix: str = "",
) -> dict[str, np.ndarray]:
    """Returns the norms of `out_norms` for a state dict that has none, as those of classifiers.

    Args:
        state_dict: under upstream's names.
        expected: paths and shapes of the model.
        prefix: of the backbone's paths.

    Returns:
        Weights of 1 and biases of 0 under upstream's names; nothing if the state dict has norms,
        or the model has none.
    """
    if any(key.startswith("outnorm") for key in state_dict):
        return {}
    paths = {path.removeprefix(prefix): shape for path, shape in expected.items()}
    new = {
        path: np.full(shape, path.endswith("scale"), np.float32)
        for path, shape in paths.items()
        if path.startswith("out_norm_")
    }
    return to_theirs(HIERARCHICAL, new, whose="upstream")


@functools.lru_cache  # tracing a model takes a second
def variable_shapes(model: Backbone) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a model's variables by their paths, e.g. "params/norm/scale"."""
    side = traced_side(model)
    images = jax.ShapeDtypeStruct((1, side, side, model.in_chans), jnp.float32)
    variables = jax.eval_shape(lambda images: model.init(jax.random.key(0), images), images)
    flat = traverse_util.flatten_dict(dict(variables), sep="/")
    return {path: leaf.shape for path, leaf in flat.items()}


def traced_side(model: Backbone | Segmenter | Detector) -> int:
    """Returns a side of images, in pixels, with which a model makes its parameters."""
    side = model.native_size or model.smallest_size
    return -(-side // model.smallest_size) * model.smallest_size

"""Translates names and layouts of upstream (hustvl/ViG, PyTorch) to ours and back, strictly.

An ordered table of rules maps every upstream key to one of our parameters and a layout. A key
without a rule, a parameter without a key and a shape that differs are errors.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from vig_jax.errors import WeightsError
from vig_jax.models import Backbone
from vig_jax.text import preview_names

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Layout:
    """The translation of one kind of tensor between both sides."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_upstream: Callable[[np.ndarray], np.ndarray]


SAME = Layout(lambda x: x, lambda x: x)
LINEAR = Layout(np.transpose, np.transpose)  # [out, in] <-> [in, out]
CONV = Layout(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))  # OIHW <-> HWIO

Rule = tuple[str, str, Layout]


def _mixer(theirs: str, ours: str) -> tuple[Rule, ...]:
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
PLAIN: tuple[Rule, ...] = (
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
HIERARCHICAL: tuple[Rule, ...] = (
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
    ("classifier.norm.weight", "norm/scale", SAME),
    ("classifier.norm.bias", "norm/bias", SAME),
    ("classifier.head.weight", "head/kernel", LINEAR),
    ("classifier.head.bias", "head/bias", SAME),
)
_OUT_NORM = re.compile(r"out_norm_\d+/(scale|bias)")


def to_params(state_dict: Mapping[str, np.ndarray], model: Backbone) -> Params:
    """Returns our parameter tree for `model` from an upstream state dict.

    Args:
        state_dict: upstream names to arrays, all of them.
        model: from `vig_jax.create_model`.

    Returns:
        The nested dictionary for `model.apply({"params": ...}, images)`; dtypes are kept. The norms
        of `out_norms`, which upstream lacks, are new: scale 1, bias 0.

    Raises:
        WeightsError: lists the missing and unexpected names and the shapes that differ.
    """
    expected = _shapes(model)
    rules = _rules(expected)
    ours: dict[str, np.ndarray] = {}
    unexpected = []
    for key, value in state_dict.items():
        match = _translate(rules, key, forward=True)
        if match is None:
            unexpected.append(key)
        else:
            path, layout = match
            ours[path] = layout.to_ours(np.asarray(value))
    for path, shape in expected.items():
        if _OUT_NORM.fullmatch(path):
            ours[path] = np.full(shape, path.endswith("scale"), np.float32)
    unexpected += [_translate(rules, p, forward=False)[0] for p in ours if p not in expected]  # type: ignore[index]
    missing = [_translate(rules, p, forward=False)[0] for p in expected if p not in ours]  # type: ignore[index]
    shapes = [
        f"{_translate(rules, path, forward=False)[0]}: file {ours[path].shape}, model {shape}"  # type: ignore[index]
        for path, shape in expected.items()
        if path in ours and ours[path].shape != shape
    ]
    problems = [
        f"{title} ({len(names)}): {preview_names(names)}"
        for title, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("shapes differ, in our layout", shapes),
        )
        if names
    ]
    if problems:
        raise WeightsError(
            "the weights do not fit the model; check the model name, num_classes and img_size: "
            + "; ".join(problems)
        )
    return traverse_util.unflatten_dict(ours, sep="/")


def from_params(params: Params) -> dict[str, np.ndarray]:
    """Returns the upstream state dict of our parameters, the inverse of `to_params`.

    Raises:
        WeightsError: names the parameters that upstream does not have.
    """
    state_dict, unexpected = {}, []
    flat = traverse_util.flatten_dict(params, sep="/")
    rules = _rules(flat)
    for path, value in flat.items():
        match = _translate(rules, path, forward=False)
        if match is None:
            unexpected.append(path)
        else:
            key, layout = match
            state_dict[key] = np.ascontiguousarray(layout.to_upstream(np.asarray(value)))
    if unexpected:
        raise WeightsError(f"upstream has no name for {', '.join(unexpected)}")
    return state_dict


def _rules(paths: Collection[str]) -> tuple[Rule, ...]:
    """Returns the table of the family that has these parameters."""
    return HIERARCHICAL if any(path.startswith("stages_") for path in paths) else PLAIN


def _translate(rules: tuple[Rule, ...], name: str, *, forward: bool) -> tuple[str, Layout] | None:
    """Returns the other side's name and the layout, or None if no rule matches `name`."""
    for pattern, target, layout in _patterns(rules, forward):
        if match := pattern.fullmatch(name):
            return target.format(**match.groupdict()), layout
    return None


@functools.cache
def _patterns(rules: tuple[Rule, ...], forward: bool) -> list[tuple[re.Pattern[str], str, Layout]]:
    """Returns the compiled source, the target and the layout of each rule."""
    result = []
    for upstream, ours, layout in rules:
        source, target = (upstream, ours) if forward else (ours, upstream)
        pattern = re.sub(r"\\{(\w)\\}", r"(?P<\1>[0-9]{1,4})", re.escape(source))
        result.append((re.compile(pattern), target, layout))
    return result


@functools.lru_cache  # tracing a model takes a second
def _shapes(model: Backbone) -> dict[str, tuple[int, ...]]:
    side = model.native_size or model.smallest_size
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    flat = traverse_util.flatten_dict(variables["params"], sep="/")
    return {path: leaf.shape for path, leaf in flat.items()}

"""Upstream (hustvl/ViG, PyTorch) names and layouts to ours and back, strictly.

An ordered table of rules maps every upstream key to one of our parameters and a layout; a key that
no rule takes, a parameter that no key fills and a shape that differs are all errors.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How one kind of tensor is stored on both sides."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_upstream: Callable[[np.ndarray], np.ndarray]


SAME = Layout(lambda x: x, lambda x: x)
LINEAR = Layout(np.transpose, np.transpose)  # [out, in] <-> [in, out]
CONV = Layout(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))  # OIHW <-> HWIO

# Upstream key (a template; {i} is a block number), our parameter, layout. The first match counts.
RULES: tuple[tuple[str, str, Layout], ...] = (
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
    ("blocks.{i}.attn.in_proj.0.weight", "blocks_{i}/attn/dwconv/kernel", CONV),
    ("blocks.{i}.attn.qkv_proj.weight", "blocks_{i}/attn/qkv_proj/kernel", LINEAR),
    ("blocks.{i}.attn.gk_proj.0.weight", "blocks_{i}/attn/gk_proj_down/kernel", LINEAR),
    ("blocks.{i}.attn.gk_proj.1.weight", "blocks_{i}/attn/gk_proj_up/kernel", LINEAR),
    ("blocks.{i}.attn.gk_proj.1.bias", "blocks_{i}/attn/gk_proj_up/bias", SAME),
    ("blocks.{i}.attn.g_proj.weight", "blocks_{i}/attn/g_proj/kernel", LINEAR),
    ("blocks.{i}.attn.g_proj.bias", "blocks_{i}/attn/g_proj/bias", SAME),
    ("blocks.{i}.attn.g_norm.weight", "blocks_{i}/attn/g_norm/scale", SAME),
    ("blocks.{i}.attn.l_norm.weight", "blocks_{i}/attn/l_norm/scale", SAME),
    ("blocks.{i}.attn.o_proj.weight", "blocks_{i}/attn/o_proj/kernel", LINEAR),
    ("blocks.{i}.mlp_norm.weight", "blocks_{i}/mlp_norm/scale", SAME),
    ("blocks.{i}.mlp.gate_proj.weight", "blocks_{i}/mlp/gate_proj/kernel", LINEAR),
    ("blocks.{i}.mlp.down_proj.weight", "blocks_{i}/mlp/down_proj/kernel", LINEAR),
    ("norm.weight", "norm/scale", SAME),
    ("head.weight", "head/kernel", LINEAR),
    ("head.bias", "head/bias", SAME),
)


def to_params(state_dict: Mapping[str, np.ndarray], model: nn.Module) -> Params:
    """Our parameter tree for `model` from an upstream state dict.

    Args:
        state_dict: upstream names to arrays, all of them.
        model: what `vig_jax.create_model` returned.

    Returns:
        The nested dictionary for `model.apply({"params": ...}, images)`; dtypes are kept.

    Raises:
        ValueError: lists the missing and unexpected names and the shapes that differ.
    """
    ours: dict[str, np.ndarray] = {}
    unexpected = []
    for key, value in state_dict.items():
        match = _translate(key, forward=True)
        if match is None:
            unexpected.append(key)
        else:
            path, layout = match
            ours[path] = layout.to_ours(np.asarray(value))
    wanted = _shapes(model)
    unexpected += [_translate(p, forward=False)[0] for p in ours if p not in wanted]  # type: ignore[index]
    missing = [_translate(p, forward=False)[0] for p in wanted if p not in ours]  # type: ignore[index]
    shapes = [
        f"{_translate(path, forward=False)[0]}: file {ours[path].shape}, model {shape}"  # type: ignore[index]
        for path, shape in wanted.items()
        if path in ours and ours[path].shape != shape
    ]
    problems = [
        f"{title} ({len(names)}): {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
        for title, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("shapes differ, in our layout", shapes),
        )
        if names
    ]
    if problems:
        raise ValueError(
            "the weights do not fit the model; check the model name, num_classes and img_size. "
            + "; ".join(problems)
        )
    return traverse_util.unflatten_dict(ours, sep="/")


def from_params(params: Params) -> dict[str, np.ndarray]:
    """The upstream state dict of our parameters: the inverse of `to_params`.

    Raises:
        ValueError: names the parameters that upstream does not have.
    """
    state_dict, unexpected = {}, []
    for path, value in traverse_util.flatten_dict(params, sep="/").items():
        match = _translate(path, forward=False)
        if match is None:
            unexpected.append(path)
        else:
            key, layout = match
            state_dict[key] = np.ascontiguousarray(layout.to_upstream(np.asarray(value)))
    if unexpected:
        raise ValueError(f"upstream has no name for {', '.join(unexpected)}")
    return state_dict


def _translate(name: str, *, forward: bool) -> tuple[str, Layout] | None:
    """The other side's name and the layout, or None if no rule takes `name`."""
    for upstream, ours, layout in RULES:
        source, target = (upstream, ours) if forward else (ours, upstream)
        pattern = re.escape(source).replace(r"\{i\}", r"(\d+)")
        if match := re.fullmatch(pattern, name):
            return target.format(i=match[1]) if match.groups() else target, layout
    return None


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    images = jax.ShapeDtypeStruct((1, model.img_size, model.img_size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    flat = traverse_util.flatten_dict(variables["params"], sep="/")
    return {path: leaf.shape for path, leaf in flat.items()}

"""Fits the first layers of a state dict to a model: its token grid and channels of images."""

import math

import jax.numpy as jnp
import numpy as np

from vig_jax.layers.pos_embed import resize_pos_embed
from vig_jax.models import Backbone, Detector, Segmenter

StateDict = dict[str, np.ndarray]

_STEMS = ("patch_embed.proj.0.weight", "patch_embed.0.weight")  # plain, hierarchical
_RGB = 3


def fit_inputs(
    tensors: StateDict, model: Backbone | Segmenter | Detector, prefix: str = ""
) -> list[str]:
    """Resizes the position embedding in `tensors`, and fits the first convolution to the channels.

    Weights for RGB become weights for one channel by their sum, so that a gray image has the
    features of the same image in RGB; and for n channels by repeating them and scaling with 3/n.
    Source: timm's `adapt_input_conv`.

    Args:
        tensors: of a file, under upstream's names; either array may be absent.
        model: its `pos_embed_grid` and `in_chans` count.
        prefix: of the backbone's names.

    Returns:
        A note about each change.
    """
    notes = []
    table, grid = tensors.get(f"{prefix}pos_embed"), model.pos_embed_grid
    if table is not None and grid is not None:
        tensors[f"{prefix}pos_embed"] = resized = _resized(table, grid)
        if table.shape != resized.shape:
            before = math.isqrt(table.shape[1])
            notes.append(f"position embedding resized from {before}x{before} to {grid}x{grid}")
    for key in (prefix + stem for stem in _STEMS):
        kernel = tensors.get(key)
        if kernel is None or kernel.shape[1:2] != (_RGB,) or model.in_chans == _RGB:
            continue
        tensors[key] = _for_channels(kernel, model.in_chans)
        how = "summed for one channel" if model.in_chans == 1 else f"repeated for {model.in_chans}"
        notes.append(f"the first convolution's weights for 3 channels are {how}")
    return notes


def _for_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Returns a kernel [O, 3, h, w] for other channels, [O, channels, h, w]."""
    wide = np.asarray(kernel, np.float32)
    if channels == 1:
        return wide.sum(axis=1, keepdims=True).astype(kernel.dtype)
    repeated = wide[:, np.arange(channels) % _RGB]
    return (repeated * (_RGB / channels)).astype(kernel.dtype)


def _resized(pos_embed: np.ndarray, side: int) -> np.ndarray:
    """Returns a position embedding [1, n * n, D] for a grid of `side` rows and columns."""
    if pos_embed.ndim != 3 or pos_embed.shape[:2] == (1, side * side):
        return pos_embed  # the grid is right, or the comparison of shapes will report it
    tokens = pos_embed.shape[1]
    if pos_embed.shape[0] != 1 or math.isqrt(tokens) ** 2 != tokens or tokens == 0:
        return pos_embed
    table = jnp.asarray(np.asarray(pos_embed, np.float32))
    resized = resize_pos_embed(table, (side, side)).reshape(1, side * side, -1)
    return np.asarray(resized).astype(pos_embed.dtype)

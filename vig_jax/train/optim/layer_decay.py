"""A smaller learning rate for every layer that is further from the head.

The convention of BEiT (Bao et al. 2022; microsoft/unilm `beit/optim_factory.py`) and timm: the stem
and the position embedding are layer 0, the blocks 1 to n from bottom to top, the last norm and the
head n + 1; a layer's rate is that of the head times decay ** (n + 1 - layer). The blocks of
hierarchical models are counted through all stages, and what leads from one stage to the next goes
with the first block after it.
"""

import re
from typing import Any

import jax
import optax

from vig_jax.errors import ConfigError
from vig_jax.train.optim.freeze import path_of

_STEM = ("patch_embed", "pos_embed")


def layer_ids(params: Any) -> tuple[Any, int]:
    """The layer of every parameter, and the number of the head's.

    Args:
        params: the parameter tree of a ViG or ViG-H; only its structure counts.

    Returns:
        A tree of ints, and n + 1 for n blocks.
    """
    paths = [path_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    blocks = sorted({block for path in paths if (block := _block(path))})
    number = {block: i for i, block in enumerate(blocks, start=1)}
    last = len(blocks) + 1

    def layer(path: tuple[Any, ...], _: Any) -> int:
        name = path_of(path)
        if block := _block(name):
            return number[block]
        if between := re.match(r"downsample_(\d+)/", name):
            return number[int(between[1]) + 1, 0]
        return 0 if name.partition("/")[0] in _STEM else last

    return jax.tree_util.tree_map_with_path(layer, params), last


def scale_by_layer(decay: float) -> optax.GradientTransformation:
    """Scales updates, weight decay included, by decay ** (n + 1 - layer).

    Raises:
        ConfigError: `decay` is not above 0 and at most 1.
    """
    if not 0 < decay <= 1:
        raise ConfigError(
            f"config.optimizer.layer_decay={decay} must be above 0 and at most 1 (1: one rate for "
            "all layers)"
        )

    def scale(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
        layers, last = layer_ids(updates)
        return jax.tree.map(lambda x, layer: x * decay ** (last - layer), updates, layers)

    return optax.stateless(scale)


def _block(path: str) -> tuple[int, int] | None:
    """Stage (0 in plain models) and number of the block that a parameter is of, if it is of one."""
    match = re.match(r"(?:stages_(\d+)/)?blocks_(\d+)/", path)
    return (int(match[1] or 0), int(match[2])) if match else None

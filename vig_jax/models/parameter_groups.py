"""The layer of each parameter of a ViG, by its path; see `ParameterGroups.layer_ids`.

The convention is that of BEiT (microsoft/unilm `beit/optim_factory.py`) and timm: the stem and the
position embedding are layer 0, the blocks are 1 to n from bottom to top, the last norm and the head
are n + 1. In hierarchical models the blocks are numbered through all stages, and the downsampling
between two stages belongs to the first block after it.
"""

import re
from typing import Any

import jax

HEAD_PREFIXES = ("head",)
_STEM = ("patch_embed", "pos_embed")


def layer_ids(params: Any) -> tuple[Any, int]:
    """Returns the layer number of every parameter, and the number of the head's layer.

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


def path_of(path: tuple[Any, ...]) -> str:
    """Returns a path in a parameter tree as text, e.g. "blocks_0/attn/qkv_proj/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _block(path: str) -> tuple[int, int] | None:
    """Returns the stage (0 in plain models) and the block of a parameter; None outside blocks."""
    match = re.match(r"(?:stages_(\d+)/)?blocks_(\d+)/", path)
    return (int(match[1] or 0), int(match[2])) if match else None

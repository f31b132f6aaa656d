"""Which parameters a run leaves as they are.

`config.optimizer.freeze` lists them with commas between: paths in the parameter tree, each with all
that is below it, or globs of such paths, for example `patch_embed,pos_embed,blocks_[0-5]`,
`stages_0,downsample_0` or `*/attn`. `backbone` is everything but the head.
"""

import fnmatch
from typing import Any

import jax

from vig_jax.errors import ConfigError

BACKBONE = "backbone"
_HEAD = "head"


def frozen_mask(freeze: str, params: Any) -> Any:
    """True where a parameter stays as it is.

    Args:
        freeze: as above; "" freezes nothing.
        params: the parameter tree; only its structure counts.

    Raises:
        ConfigError: a name that no parameter has, or nothing is left to train.
    """
    patterns = [name.strip() for name in freeze.split(",") if name.strip()]
    paths = [path_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for pattern in patterns:
        if not any(_matches(pattern, path) for path in paths):
            top = ", ".join(dict.fromkeys(path.partition("/")[0] for path in paths))
            raise ConfigError(
                f"config.optimizer.freeze: no parameter is called {pattern!r}; there are "
                f"{BACKBONE} (all but the head), {top} and what is below them, as in */attn"
            )
    mask = jax.tree_util.tree_map_with_path(
        lambda path, _: any(_matches(pattern, path_of(path)) for pattern in patterns), params
    )
    if patterns and all(jax.tree.leaves(mask)):
        raise ConfigError(
            f"config.optimizer.freeze={freeze!r} leaves nothing to train: name fewer parameters"
        )
    return mask


def path_of(path: tuple[Any, ...]) -> str:
    """A path in a parameter tree as text, e.g. "blocks_0/attn/qkv_proj/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _matches(pattern: str, path: str) -> bool:
    if pattern == BACKBONE:
        return path.partition("/")[0] != _HEAD
    return fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(path, f"{pattern}/*")

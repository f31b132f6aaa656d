"""Selects the parameters that a run does not train.

`config.optimizer.freeze` is a comma-separated list of paths in the parameter tree, each with
everything below it, or of globs of such paths, for example `patch_embed,pos_embed,blocks_[0-5]`,
`stages_0,downsample_0` or `*/attn`. `backbone` is everything but the head.
"""

import fnmatch
from collections.abc import Sequence
from typing import Any

import jax

from vig_jax.errors import ConfigError
from vig_jax.models.parameter_groups import path_of

BACKBONE = "backbone"


def frozen_mask(freeze: str, params: Any, head_prefixes: Sequence[str]) -> Any:
    """Returns a tree that is True where a parameter is not trained.

    Args:
        freeze: as above; "" freezes nothing.
        params: the parameter tree; only its structure counts.
        head_prefixes: first names of the paths that are the head.

    Raises:
        ConfigError: a name that no parameter has, or nothing is left to train.
    """
    patterns = [name.strip() for name in freeze.split(",") if name.strip()]
    paths = [path_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for pattern in patterns:
        if not any(_matches(pattern, path, head_prefixes) for path in paths):
            top = ", ".join(dict.fromkeys(path.partition("/")[0] for path in paths))
            raise ConfigError(
                f"config.optimizer.freeze: no parameter is called {pattern!r}; there are "
                f"{BACKBONE} (all but the head), {top} and what is below them, as in */attn"
            )

    def frozen(path: tuple[Any, ...], _: Any) -> bool:
        return any(_matches(pattern, path_of(path), head_prefixes) for pattern in patterns)

    mask = jax.tree_util.tree_map_with_path(frozen, params)
    if patterns and all(jax.tree.leaves(mask)):
        raise ConfigError(
            f"config.optimizer.freeze={freeze!r} leaves nothing to train: name fewer parameters"
        )
    return mask


def _matches(pattern: str, path: str, head_prefixes: Sequence[str]) -> bool:
    if pattern == BACKBONE:
        return path.partition("/")[0] not in head_prefixes
    return fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(path, f"{pattern}/*")

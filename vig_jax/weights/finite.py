"""A check for damaged weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vig_jax.errors import WeightsError
from vig_jax.text import preview_names


def check_finite(weights: Mapping[str, Any], where: str | Path = "") -> None:
    """Refuses weights that are NaN or infinite.

    Args:
        weights: a tree of arrays.
        where: names the file or run, for the message.

    Raises:
        WeightsError: names the arrays.
    """
    bad = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in jax.tree_util.tree_leaves_with_path(weights)
        if not np.isfinite(np.asarray(leaf, np.float32)).all()
    ]
    if bad:
        prefix = f"{where}: " if where else ""
        raise WeightsError(
            f"{prefix}{len(bad)} arrays have values that are NaN or infinite: "
            f"{preview_names(bad, 3)}. The training diverged, or the file is damaged: use "
            "an earlier checkpoint or another copy"
        )

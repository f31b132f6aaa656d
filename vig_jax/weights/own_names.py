"""State dicts under our names: for models that no other project has names for."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from vig_jax.errors import WeightsError
from vig_jax.text import preview_names

_PARAMS = "params/"


def has_own_names(names: Collection[str]) -> bool:
    """Returns whether a state dict has our names, such as "params/Conv_0/kernel"."""
    return any(name.startswith(_PARAMS) for name in names)


def own_state_dict(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns variables by the paths of their arrays, from the name of the collection on."""
    flat = traverse_util.flatten_dict(dict(variables), sep="/")
    return {path: np.asarray(array, order="C") for path, array in flat.items()}


def own_variables(state_dict: Mapping[str, np.ndarray], expected: Any) -> dict[str, Any]:
    """Returns the variables of `own_state_dict`.

    Args:
        state_dict: paths to arrays.
        expected: variables of the model, arrays or shapes.

    Raises:
        WeightsError: lists the missing and unexpected names and the shapes that differ.
    """
    shapes = {
        path: leaf.shape
        for path, leaf in traverse_util.flatten_dict(dict(expected), sep="/").items()
    }
    problems = {
        "missing": shapes.keys() - state_dict.keys(),
        "unexpected": state_dict.keys() - shapes.keys(),
        "shapes differ": {
            path for path in shapes if path in state_dict and state_dict[path].shape != shapes[path]
        },
    }
    found = [f"{key}: {preview_names(sorted(names))}" for key, names in problems.items() if names]
    if found:
        raise WeightsError(f"the weights do not fit the model: {'; '.join(found)}")
    return traverse_util.unflatten_dict(dict(state_dict), sep="/")

"""The weights that a run starts from."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from vig_jax.config import RunConfig
from vig_jax.errors import WeightsError
from vig_jax.weights.fit import fit_to_config
from vig_jax.weights.load import origin, read_weight_file
from vig_jax.weights.upstream import Params


def initial_params(
    config: RunConfig, metadata: Mapping[str, Any] | None = None
) -> tuple[Params, str]:
    """Reads the weights that `config.init_weights` names.

    A head for another number of classes is initialised with the run's seed.

    Args:
        config: resolved: the number of classes is known.
        metadata: of the training data; its `class_names` are matched to those of a run.

    Returns:
        The parameters in float32, and a line about them for the log.

    Raises:
        WeightsError: the file is missing, cannot be read or does not fit the model.
    """
    path = config.init_weights
    assert path is not None
    try:
        file = read_weight_file(path)
    except FileNotFoundError as error:
        raise WeightsError(f"config.init_weights={path}: {error}") from error
    class_names = (metadata or {}).get("class_names", ())
    weights = fit_to_config(file, path, config.model, seed=config.seed, class_names=class_names)
    return float32(weights.params), "; ".join(
        (f"starting from {origin(file, path)}", *weights.notes)
    )


def float32(params: Params) -> Params:
    """Returns the parameters in float32, the dtype of a run's parameters."""
    return jax.tree.map(lambda x: np.asarray(x, np.float32), params)

"""The weights that a run starts from."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from vig_jax.config import RunConfig
from vig_jax.errors import CheckpointError, WeightsError
from vig_jax.models import Detector, Segmenter
from vig_jax.weights import run_folder
from vig_jax.weights.dense import Variables
from vig_jax.weights.fit import WeightFile, fit_to_config
from vig_jax.weights.fit_dense import fit_dense
from vig_jax.weights.hub_folder import is_hub_folder, read_hub_config
from vig_jax.weights.load import origin, read_weight_file

_SIZES = ("patch_size", "embed_dim", "depth", "num_heads", "embed_dims", "depths")


def classifier_variables(
    config: RunConfig, model: nn.Module, metadata: Mapping[str, Any]
) -> tuple[Variables, str]:
    """Reads the weights that `config.init_weights` names, for the model of `config.model`.

    A head for another number of classes is initialised with the run's seed.

    Args:
        config: resolved: the number of classes is known.
        model: of the run.
        metadata: of the training data; its `class_names` are matched to those of a run.

    Returns:
        {"params": parameters in float32}, and a line about them for the log.

    Raises:
        WeightsError: the file is missing, cannot be read or does not fit the model.
    """
    del model  # that of the config
    file, path = _read_start(config)
    class_names = metadata.get("class_names", ())
    weights = fit_to_config(file, path, config.model, seed=config.seed, class_names=class_names)
    return {"params": float32(weights.params)}, _line(file, path, weights.notes)


def dense_variables(
    config: RunConfig, model: nn.Module, metadata: Mapping[str, Any]
) -> tuple[Variables, str]:
    """Reads the weights that `config.init_weights` names, for a segmenter or a detector.

    Those of a model for the same task are taken, with their running statistics; of a classifier
    only the backbone is taken. What the file does not have is left out.

    Args:
        config: of the run.
        model: a `vig_jax.models.Segmenter` or `vig_jax.models.Detector`.
        metadata: of the training data; its `class_names`, or `instance_names` for a detector, are
            matched to those of the file.

    Returns:
        Variables in float32, and a line about them for the log.

    Raises:
        WeightsError: the file is missing, cannot be read or does not fit the model.
    """
    assert isinstance(model, Segmenter | Detector)
    file, path = _read_start(config)
    names = metadata.get("instance_names" if isinstance(model, Detector) else "class_names", ())
    try:
        variables, notes = fit_dense(file, config.model.name, model, class_names=names)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    return float32(variables), _line(file, path, (*file.notes, *notes))


def _read_start(config: RunConfig) -> tuple[WeightFile, str]:
    """Returns the file that `config.init_weights` names, and its path."""
    assert config.init_weights is not None
    path = str(Path(config.init_weights).expanduser())
    try:
        return read_weight_file(path), path
    except FileNotFoundError as error:
        raise WeightsError(f"config.init_weights={path}: {error}") from error


def _line(file: WeightFile, path: str, notes: Sequence[str]) -> str:
    """Returns the line for the log."""
    return "; ".join((f"starting from {origin(file, path)}", *notes))


def with_sizes_of_start(config: RunConfig, workdir: Path) -> RunConfig:
    """Returns the config with the sizes of the run that `config.init_weights` names.

    Sizes that are set are kept. `img_size` is that of this run's images: the position embedding is
    resized. A resumed run takes the sizes from its own checkpoint, so it does not need that run.

    Args:
        config: as the user gives it.
        workdir: of this run.

    Raises:
        WeightsError: that run has no checkpoint, or its config is of another version.
    """
    if config.init_weights is None:
        return config
    start = Path(config.init_weights).expanduser().absolute()
    own = run_folder.finished(workdir.absolute() / run_folder.CHECKPOINTS)
    if not own and not start.is_dir():
        return config
    try:
        if not own and is_hub_folder(start):
            stored = read_hub_config(start)[0].model
        else:
            directory = own[-1] if own else run_folder.find_checkpoint(start)
            stored = run_folder.read_config(directory).model
    except CheckpointError as error:
        if own:  # restoring reports it, or takes an older checkpoint
            return config
        raise WeightsError(f"config.init_weights={start}: {error}") from error
    if stored.name != config.model.name:
        return config
    sizes = {name: getattr(stored, name) for name in _SIZES if getattr(config.model, name) is None}
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **sizes))


def float32(tree: dict[str, Any]) -> dict[str, Any]:
    """Returns the arrays of a tree in float32, the dtype of a run's variables."""
    widened: dict[str, Any] = jax.tree.map(lambda x: np.asarray(x, np.float32), tree)
    return widened

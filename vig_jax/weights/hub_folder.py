"""Folders that describe themselves, as the Hugging Face Hub holds them: a config and the weights.

`config.json` has the settings of the model and its task, the metadata of the training data and the
measured metrics. `model.safetensors` has the weights. Nothing in a folder is executed or imported.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vig_jax.config import RunConfig, parse, unknown_settings
from vig_jax.config.plugins import check_plugins
from vig_jax.errors import ConfigError, WeightsError
from vig_jax.files import read_regular_file

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
_FORMAT = "vig_jax"  # key of the number of the format
_NUMBER = 1
_LARGEST_CONFIG = 2**24  # bytes


def _is_metadata(value: Any) -> bool:
    """Returns whether a value is a mapping whose lists of names are such."""
    if not isinstance(value, dict):
        return False
    names = [value[key] for key in ("class_names", "instance_names") if key in value]
    return all(isinstance(n, list) and all(isinstance(x, str) for x in n) for n in names)


def _is_metrics(value: Any) -> bool:
    """Returns whether a value is a mapping of numbers."""
    return isinstance(value, dict) and all(type(x) in (int, float) for x in value.values())


_RULES: dict[str, Callable[[Any], bool]] = {
    "config": lambda value: isinstance(value, dict),
    "metadata": _is_metadata,
    "metrics": _is_metrics,
    "updates": lambda value: type(value) is int and value >= 0,
}


def is_hub_folder(path: Path) -> bool:
    """Returns whether a path is a folder with a config and weights."""
    return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


def config_file(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the contents of a config file with these values; `config` has those of the run."""
    return {_FORMAT: _NUMBER, **values}


def read_hub_config(folder: Path) -> tuple[RunConfig, dict[str, Any]]:
    """Returns the settings of a hub folder, and all values of its config file.

    Raises:
        WeightsError: the file is not one of this version.
        ConfigError: the model uses plugins that are not imported.
    """
    file = folder / CONFIG
    try:
        values = json.loads(read_regular_file(file, _LARGEST_CONFIG))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{file} cannot be read: {error}") from error
    if not isinstance(values, dict) or _FORMAT not in values:
        raise WeightsError(f"{file} was not written by vig_jax.save_pretrained")
    if values[_FORMAT] != _NUMBER:
        raise WeightsError(f"{file} was written by another version of vig_jax: use that version")
    if wrong := [key for key, holds in _RULES.items() if not holds(values.get(key))]:
        raise WeightsError(f"{file} is damaged: {', '.join(wrong)}: fetch or write it again")
    stored = values["config"]
    check_plugins(stored, folder)
    try:
        if unknown := unknown_settings(stored):
            raise ConfigError(f"it has unknown settings: {', '.join(unknown)}")
        return parse(stored), values
    except (ConfigError, TypeError, AttributeError) as error:
        raise WeightsError(f"{file} does not describe a model of this version: {error}") from error

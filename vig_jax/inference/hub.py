"""Models as folders that describe themselves, in the form of the Hugging Face Hub."""

import dataclasses
import importlib
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vig_jax.config import (
    DetectionConfig,
    ModelConfig,
    RunConfig,
    SegmentationConfig,
    to_dict,
)
from vig_jax.errors import ConfigError, WeightsError
from vig_jax.files import to_json, write_atomically
from vig_jax.inference.loaded_model import LoadedModel, load_for_inference, restore_weights
from vig_jax.inference.model_card import UNKNOWN_LICENCE, model_card
from vig_jax.models import (
    ViG,
    ViGH,
    create_model,
    is_published,
    list_models,
    model_settings,
)
from vig_jax.tasks.registry import is_built_in
from vig_jax.text import printable
from vig_jax.weights.hub_folder import CARD, CONFIG, WEIGHTS, config_file
from vig_jax.weights.load import foreign_state_dict, save_safetensors
from vig_jax.weights.published import published_config

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
# Fields of models that decide nothing about the weights or the outputs.
_NOT_STORED = {"parent", "name", "num_classes", "dtype", "param_dtype", "gla_implementation"}


def from_pretrained(
    source: str | Path,
    model_name: str | None = None,
    *,
    ema: bool | None = None,
    image_size: int | tuple[int, int] | None = None,
    settings: Mapping[str, Any] | None = None,
    revision: str | None = None,
) -> LoadedModel:
    """Reads a model with its weights, settings and metrics; nothing that is read is executed.

    Args:
        source: a folder of `save_pretrained`; a run; a weight file as for `load_weights`; or
            "owner/name" on the Hugging Face Hub, which needs the package huggingface_hub.
        model_name: of a weight file that does not name its model.
        ema: as for `load_weights`.
        image_size: side of the images in pixels, or height and width; None means that of training.
        settings: of a weight file: keys of config.model that differ from the published model. Of
            others: keys of config.task that decide how images are evaluated.
        revision: branch, tag or commit on the Hub.

    Returns:
        The module as `model`, its `variables`, and `config`, `metadata`, `metrics`; as in
        `loaded.model.apply(loaded.variables, images)`.

    Raises:
        FileNotFoundError: there is nothing at the path.
        ConfigError: arguments that do not fit together, or huggingface_hub is missing.
        WeightsError: the file or folder cannot be read, or its config and weights differ.
        CheckpointError: likewise for a run.
    """
    path = Path(source).expanduser()
    if not path.exists() and _HUB_NAME.fullmatch(str(source)):
        path = _fetch(str(source), revision)
    elif revision is not None:
        raise ConfigError(f"revision={revision!r} is for names on the Hub; {source} is none")
    if not path.is_dir():
        return restore_weights(path, model_name, ema=ema, image_size=image_size, settings=settings)
    loaded = load_for_inference(path, ema=ema, image_size=image_size, settings=settings)
    if model_name not in (None, loaded.config.model.name):
        raise ConfigError(
            f"{source} holds {loaded.config.model.name}, not {model_name}: leave model_name out"
        )
    return loaded


def _fetch(name: str, revision: str | None) -> Path:
    """Returns the local copy of a folder on the Hub; only its three files are fetched."""
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise ConfigError(
            f"there is no {name} here, and the Hugging Face Hub needs huggingface_hub: pip install "
            "huggingface_hub, or give the path of a folder"
        ) from error
    wanted = [CONFIG, WEIGHTS, CARD]
    try:
        return Path(hub.snapshot_download(name, revision=revision, allow_patterns=wanted))
    except (OSError, ValueError) as error:  # of the network, and names that do not exist
        reason = printable((str(error).strip().splitlines() or [type(error).__name__])[0])
        raise ConfigError(
            f"{name} cannot be fetched from the Hugging Face Hub: {reason}"
        ) from error


def save_pretrained(
    folder: str | Path,
    model: LoadedModel | ViG | ViGH,
    variables: Mapping[str, Any] | None = None,
    *,
    class_names: Sequence[str] = (),
    metrics: Mapping[str, float] | None = None,
    licence: str = UNKNOWN_LICENCE,
    overwrite: bool = False,
) -> None:
    """Writes a model as a folder for others: `config.json`, `model.safetensors` and a model card.

    Paths of this machine are left out of the config.

    Args:
        folder: it is written whole or not at all.
        model: from `from_pretrained`; or a module from `create_model`, with `variables`.
        variables: of the module.
        class_names: of the module's head, by label.
        metrics: of these weights by name, as measured; None means those of `model`, if it has any.
        licence: of the weights, an identifier of the Hub such as "apache-2.0".
        overwrite: replace a folder that holds only such files.

    Raises:
        ConfigError: arguments that do not go together, or a model that a config cannot describe.
        FileExistsError: the folder exists and may not be replaced.
    """
    if isinstance(model, LoadedModel):
        if variables is not None or class_names:
            raise ConfigError("variables and class_names are for a module: a loaded model has both")
        loaded = model
    elif variables is None:
        raise ConfigError("a module is given without variables: pass those to save")
    else:
        loaded = _from_module(model, variables, class_names)
    if metrics is not None:
        loaded = dataclasses.replace(loaded, metrics=dict(metrics))
    target = Path(folder).expanduser()
    check_target(target, overwrite)
    target.absolute().parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(target, concurrent=True) as draft:
        write_folder(draft, loaded, licence)


def check_target(target: Path, overwrite: bool) -> None:
    """Checks that a hub folder can be written.

    Raises:
        FileExistsError: the path exists and is not to be replaced, or holds something else.
    """
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise FileExistsError(f"{target} exists already: --force (overwrite=True) replaces it")
    foreign = not target.is_dir() or {entry.name for entry in target.iterdir()} - {
        *(CONFIG, WEIGHTS, CARD, ".gitattributes")
    }
    if foreign:
        raise FileExistsError(
            f"{target} has other contents than a hub folder, which are never replaced: give "
            "another name"
        )


def write_folder(folder: Path, loaded: LoadedModel, licence: str) -> None:
    """Writes the three files into a new folder.

    The weights have the names of others, or ours if the model is another than those of this
    package.

    Raises:
        ConfigError: a task that is not built in, and that no plugin of the config registers.
    """
    config = _portable(loaded.config)
    card = model_card(loaded, licence)
    folder.mkdir()
    save_safetensors(
        loaded.variables["params"],
        folder / WEIGHTS,
        model_name=config.model.name,
        averaged=loaded.ema,
        mutable={key: tree for key, tree in loaded.variables.items() if key != "params"},
        own_names=needs_own_names(loaded),
    )
    values = {
        "config": to_dict(config),
        "metadata": dict(loaded.metadata),
        "metrics": {name: x for name, x in loaded.metrics.items() if math.isfinite(x)},
        "updates": loaded.step,
        "license": licence,
    }
    (folder / CONFIG).write_text(to_json(config_file(values), indent=2), encoding="utf-8")
    (folder / CARD).write_text(card, encoding="utf-8")


def _portable(config: RunConfig) -> RunConfig:
    """Returns a config without what is true on this machine only."""
    built_in = is_built_in(config.task.name)
    if not built_in and not config.plugins:
        raise ConfigError(
            f"the task {config.task.name!r} is not built in, and config.plugins does not name the "
            "module that registers it, so others could not load the folder: set it for the run"
        )
    model = dataclasses.replace(
        config.model, num_classes=config.model.num_classes or None, gla_implementation=None
    )
    data = dataclasses.replace(config.data, path=None)
    train = dataclasses.replace(config.train, compilation_cache="", loggers=())
    config = dataclasses.replace(config, model=model, data=data, train=train, init_weights=None)
    if not (built_in and is_published(model.name)):
        return config
    # Its plugins have only served to train it.
    data = dataclasses.replace(data, augmentations=())
    return dataclasses.replace(config, data=data, plugins=())


def needs_own_names(loaded: LoadedModel) -> bool:
    """Returns whether no other project has names for the weights of a model."""
    if isinstance(loaded.config.task, SegmentationConfig | DetectionConfig):
        return False
    if not isinstance(loaded.model, ViG | ViGH):
        return True
    try:
        foreign_state_dict(loaded.variables)
    except WeightsError:  # it has more layers
        return True
    return False


def _from_module(
    module: ViG | ViGH, variables: Mapping[str, Any], class_names: Sequence[str]
) -> LoadedModel:
    """Returns a module of `create_model` with its variables as if it had been loaded.

    Raises:
        ConfigError: no config describes the module.
    """
    if not isinstance(module, ViG | ViGH):
        raise ConfigError(
            f"a {type(module).__name__} is given; save_pretrained takes a loaded model, or a "
            "module of create_model"
        )
    stored = {field.name for field in dataclasses.fields(ModelConfig)}
    for name in sorted(list_models(), key=lambda name: _distance(name, module)):
        base = create_model(name)
        if type(base) is not type(module):
            continue
        changed = {
            key: getattr(module, key)
            for key in model_settings(name)
            if key not in _NOT_STORED and getattr(module, key) != getattr(base, key)
        }
        if changed.keys() <= stored:
            break
    else:
        raise ConfigError(
            "no setting of config.model describes this module: use_act_in_conv, use_out_act, "
            "out_norms and in_chans must be those of a published model"
        )
    config = published_config(name, settings=changed)
    merge_scale = getattr(module, "merge_scale", None)
    model = dataclasses.replace(
        config.model, num_classes=module.num_classes, merge_scale=merge_scale
    )
    return LoadedModel(
        config=dataclasses.replace(config, model=model),
        variables=dict(variables),
        step=0,
        metadata={"class_names": tuple(class_names)},
        ema=None,
        description=f"a module of {name}",
    )


def _distance(name: str, module: ViG | ViGH) -> bool:
    """Returns False for the models with the widths and depths of the module, which come first."""
    return create_model(name).stage_sizes != module.stage_sizes

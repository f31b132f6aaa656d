"""Trained models for inference, from our own runs or from weight files."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
from flax import traverse_util

from vig_jax.config import (
    DetectionConfig,
    ModelConfig,
    RunConfig,
    SegmentationConfig,
    TaskConfig,
    parse,
    to_dict,
)
from vig_jax.data.datasets.imagenet import class_names
from vig_jax.data.datasets.scenes import ade20k_classes
from vig_jax.errors import ConfigError, WeightsError
from vig_jax.models.from_config import (
    detector_from_config,
    model_from_config,
    segmenter_from_config,
)
from vig_jax.tasks.protocol import Task, Variables
from vig_jax.tasks.registry import make_task
from vig_jax.text import did_you_mean, preview_names
from vig_jax.weights import mmseg, run_folder
from vig_jax.weights.detectors import is_detector
from vig_jax.weights.finite import check_finite
from vig_jax.weights.fit import WeightFile, chosen_model, fit_to_config
from vig_jax.weights.fit_dense import completed, fit_dense
from vig_jax.weights.hub_folder import CONFIG, WEIGHTS, is_hub_folder, read_hub_config
from vig_jax.weights.load import origin, read_weight_file
from vig_jax.weights.own_names import has_own_names, own_variables
from vig_jax.weights.published import detector_config, published_config, segmenter_config
from vig_jax.weights.upstream import variable_shapes

# Besides those whose names begin with "eval_".
_OF_EVALUATION = ("resize_scale", "buckets", "proposals", "score_threshold", "nms", "detections")


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A trained model: the model of `config.model` and its variables.

    Attributes:
        config: the resolved config of the run, or the one for published weights.
        variables: {"params": ...} and mutable collections, for `model.apply`.
        step: number of updates; 0 for weights from a file.
        metadata: of the training data, e.g. {"class_names": (...)}.
        ema: True for EMA weights, False for raw ones, None if unknown.
        description: names the weights, for messages.
        metrics: of these weights on the evaluation data of the run, by name; empty if unknown.
    """

    config: RunConfig
    variables: dict[str, Any]
    step: int
    metadata: Mapping[str, Any]
    ema: bool | None
    description: str
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def model(self) -> nn.Module:
        """The module for `variables`: a classifier, a segmenter, a detector, or the task's own."""
        task = self.config.task
        if isinstance(task, SegmentationConfig):
            return segmenter_from_config(self.config)
        if isinstance(task, DetectionConfig):
            return detector_from_config(self.config)
        if task.name == TaskConfig.name:
            classifier: Any = model_from_config(self.config.model)
            return classifier
        return make_task(self.config, self.metadata).task.model


def load_for_inference(
    path: str | Path,
    *,
    ema: bool | None = None,
    image_size: int | tuple[int, int] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> LoadedModel:
    """Reads a trained model from a run or a hub folder.

    Args:
        path: a workdir, the directory of one checkpoint, or a folder of `vig_jax.save_pretrained`.
            Of a workdir's checkpoints the best by evaluation of these weights is read, or else the
            newest.
        ema: True takes the EMA weights, False the raw ones; None takes the EMA weights if there are
            any.
        image_size: side of the evaluation images in pixels, or height and width; None means that
            of the run.
        settings: keys of config.task that decide how images are evaluated and differ from those of
            the run: those whose names begin with `eval_`, `resize_scale`, and for detection
            `buckets`, `proposals`, `score_threshold`, `nms` and `detections`.

    Raises:
        ConfigError: the run's task decides the size of its images, or a setting is wrong.
        CheckpointError: there is no checkpoint or no EMA weights, the stored config does not belong
            to this version, or the stored parameters do not fit the model of the config.
        WeightsError: the same for a hub folder.
    """
    if is_hub_folder(Path(path)):
        return _load_hub_folder(Path(path), ema, image_size, settings)
    directory = run_folder.find_checkpoint(Path(path).absolute(), ema)
    stored = run_folder.read_run(directory)
    config = run_folder.read_config(directory)
    if settings:
        config = _with_settings(config, settings)
    if image_size is not None:
        config = _with_eval_size(config, stored["metadata"], image_size)
    name = run_folder.choose_item(directory, ema=ema)
    task = make_task(config, stored["metadata"]).task
    mutable = dict(shapes_of(task))
    variables = {"params": run_folder.restore_tree(directory / name, mutable.pop("params"))}
    if mutable:
        variables |= run_folder.restore_tree(directory / run_folder.mutable_item(name), mutable)
    check_finite(variables, directory)
    kind = "EMA" if name == "ema_params" else "raw"
    trained = f"{kind} weights after {stored['data_position']} updates"
    return LoadedModel(
        config=config,
        variables=variables,
        step=stored["data_position"],
        metadata=stored["metadata"],
        ema=name == "ema_params",
        description=stored["origin"][name] if "origin" in stored else trained,
        metrics=run_folder.metrics_of(stored, name),
    )


def shapes_of(task: Task) -> Variables:
    """Returns the shapes and dtypes of the variables of a task's model."""
    return jax.eval_shape(task.init, jax.random.PRNGKey(0))


def _load_hub_folder(
    folder: Path,
    ema: bool | None,
    image_size: int | tuple[int, int] | None,
    settings: Mapping[str, Any] | None,
) -> LoadedModel:
    """Returns the model of a hub folder; its config and its weights must agree in everything."""
    config, facts = read_hub_config(folder)
    file = read_weight_file(folder, ema=ema)
    check_finite(file.state_dict, folder)
    metadata = facts["metadata"]
    if settings:
        config = _with_settings(config, settings)
    if image_size is not None:
        config = _with_eval_size(config, metadata, image_size)
    try:
        model, variables = _hub_variables(file, config, metadata)
    except WeightsError as error:
        raise WeightsError(f"{folder}: {CONFIG} and {WEIGHTS} differ: {error}") from error
    updates = f" after {facts['updates']} updates" if facts["updates"] else ""
    kind = {True: "EMA ", False: "raw ", None: ""}[file.averaged]
    return LoadedModel(
        config=dataclasses.replace(config, model=model),
        variables=variables,
        step=facts["updates"],
        metadata=metadata,
        ema=file.averaged,
        description="; ".join((f"{kind}weights{updates} from {folder}", *file.notes)),
        metrics=facts["metrics"],
    )


def _hub_variables(
    file: WeightFile, config: RunConfig, metadata: Mapping[str, Any]
) -> tuple[ModelConfig, dict[str, Any]]:
    """Returns the config of the model and its variables, without anything new or resized.

    Raises:
        WeightsError: the weights are not exactly those of the model of the config.
    """
    if has_own_names(file.state_dict):
        bundle = make_task(config, metadata)
        return bundle.config.model, own_variables(file.state_dict, shapes_of(bundle.task))
    if isinstance(config.task, SegmentationConfig | DetectionConfig):
        detector = isinstance(config.task, DetectionConfig)
        module = detector_from_config(config) if detector else segmenter_from_config(config)
        variables, notes = fit_dense(file, config.model.name, module)
        given = traverse_util.flatten_dict(variables, sep="/").keys()
        absent = [path for path in variable_shapes(module) if path not in given]
        notes += (f"the weights lack {preview_names(absent)}",) if absent else ()
        model = config.model
    else:
        weights = fit_to_config(file, WEIGHTS, config.model)
        notes, variables = weights.notes[len(file.notes) :], {"params": weights.params}
        model = dataclasses.replace(config.model, num_classes=weights.num_classes)
    if notes:
        raise WeightsError("; ".join(notes))
    return model, variables


def _with_settings(config: RunConfig, settings: Mapping[str, Any]) -> RunConfig:
    """Returns the config of a run with other settings of its evaluation."""
    values = to_dict(config)
    known = [k for k in values["task"] if k in _OF_EVALUATION or k.startswith("eval_")]
    for key in settings:
        if key not in known:
            rule = did_you_mean(key, known) if known else f"the task {config.task.name!r} has none"
            raise ConfigError(
                f"{key} is not a setting of the evaluation of a run, which stores its model; {rule}"
            )
    return parse({**values, "task": {**values["task"], **settings}})


def _with_eval_size(
    config: RunConfig, metadata: Mapping[str, Any], image_size: int | tuple[int, int]
) -> RunConfig:
    """Returns the config of a run with another size of the evaluation images."""
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, eval_size=size))
    spec = make_task(config, metadata).evaluation.batch_spec
    if all(array.shape[:2] != size for array in spec.values()):
        raise ConfigError(
            f"image size {size[0]}x{size[1]}: the settings of the task {config.task.name!r} decide "
            "the size of the evaluation images; leave --image-size out"
        )
    return config


def restore_weights(
    path: str | Path,
    model_name: str | None = None,
    *,
    ema: bool | None = None,
    image_size: int | tuple[int, int] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> LoadedModel:
    """Reads a weight file for inference: of a classifier, a segmenter or a detector.

    Classifiers get upstream's evaluation settings. The plain models among them get the
    `merge_scale` of upstream's evaluation, so that published numbers are reproduced to the last
    digit. Segmenters and detectors get the settings that the file has, or those of the recipe of
    ADE20K or COCO.

    Args:
        path: as for `vig_jax.load_weights`.
        model_name: as for `vig_jax.load_weights`.
        ema: as for `vig_jax.load_weights`.
        image_size: side of the images in pixels, or height and width; None means the size that the
            model is made for. Of a segmenter it is the side of the sliding windows; a detector has
            none.
        settings: keys of config.model that differ from the published model; for a segmenter and a
            detector also keys of config.task.

    Raises:
        FileNotFoundError: there is no such file.
        ConfigError: a setting is wrong, or the model is unknown.
        WeightsError: the file cannot be read or does not fit the model.
    """
    file = read_weight_file(path, ema=ema)
    return restore_file(file, path, model_name, image_size=image_size, settings=settings)


def restore_file(
    file: WeightFile,
    path: str | Path,
    model_name: str | None,
    *,
    image_size: int | tuple[int, int] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> LoadedModel:
    """Returns what `restore_weights` does, for a file that is already read."""
    model_name = chosen_model(file, path, model_name)
    if mmseg.is_segmenter(file.state_dict):
        return _restore_segmenter(file, path, model_name, settings, image_size)
    if is_detector(file.state_dict):
        if image_size is not None:
            raise ConfigError(
                f"the image size {image_size} is not used by a detector: it resizes images to fit "
                'into config.task.resize_scale, e.g. --set "resize_scale=(1333,800)"'
            )
        return _restore_detector(file, path, model_name, settings)
    config = published_config(model_name, settings=settings, image_size=image_size)
    weights = fit_to_config(file, path, config.model)
    model = dataclasses.replace(config.model, num_classes=weights.num_classes)
    names = class_names()
    return LoadedModel(
        config=dataclasses.replace(config, model=model),
        variables={"params": weights.params},
        step=0,
        metadata={"class_names": names if weights.num_classes == len(names) else ()},
        ema=file.averaged,
        description="; ".join((f"weights from {origin(file, path)}", *weights.notes)),
    )


def _restore_segmenter(
    file: WeightFile,
    path: str | Path,
    model_name: str,
    settings: Mapping[str, Any] | None,
    image_size: int | tuple[int, int] | None,
) -> LoadedModel:
    config = segmenter_config(file, model_name, settings=settings, image_size=image_size)
    try:
        model = segmenter_from_config(config)
        variables, notes = fit_dense(file, model_name, model)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    metadata, table = dict(file.metadata), ade20k_classes()
    if not metadata and config.model.num_classes == len(table.class_names):
        metadata = table.metadata()
    return LoadedModel(
        config=config,
        variables=completed(variables, model, seed=config.seed),
        step=0,
        metadata=metadata,
        ema=file.averaged,
        description="; ".join((f"weights from {origin(file, path)}", *file.notes, *notes)),
    )


def _restore_detector(
    file: WeightFile, path: str | Path, model_name: str, settings: Mapping[str, Any] | None
) -> LoadedModel:
    config = detector_config(file, model_name, settings=settings)
    try:
        model = detector_from_config(config)
        variables, notes = fit_dense(file, model_name, model)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    return LoadedModel(
        config=config,
        variables=completed(variables, model, seed=config.seed),
        step=0,
        metadata=dict(file.metadata),
        ema=file.averaged,
        description="; ".join((f"weights from {origin(file, path)}", *file.notes, *notes)),
    )

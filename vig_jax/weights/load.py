"""Reads weight files: PyTorch checkpoints, .safetensors files, hub folders and our own runs."""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import save

from vig_jax.errors import CheckpointError, WeightsError
from vig_jax.models import create_detector, create_segmenter
from vig_jax.weights import fit_detector, fit_segmenter, mmdet, mmseg, run_folder, upstream
from vig_jax.weights.detectors import is_detector
from vig_jax.weights.fit import WeightFile, check_model_name, chosen_model, fit
from vig_jax.weights.fit_dense import completed, fit_dense
from vig_jax.weights.hub_folder import CONFIG, WEIGHTS, is_hub_folder, read_hub_config
from vig_jax.weights.own_names import own_state_dict
from vig_jax.weights.sections import choose_section
from vig_jax.weights.torch_file import TorchFile
from vig_jax.weights.upstream_files import published_model

_log = logging.getLogger(__name__)

MAX_ARRAYS = 10_000
"""The largest number of arrays in a file; the largest published models have 392 parameters."""

# The metadata key of the .safetensors files that we write. Its value is JSON: safetensors writes
# several keys in an order that changes from run to run.
_METADATA = "vig_jax"


def load_weights(
    path: str | Path,
    model_name: str | None = None,
    *,
    ema: bool | None = None,
    num_classes: int | None = None,
    **overrides: Any,
) -> dict[str, Any]:
    """Reads a weight file for a model: a classifier or, if it holds one, a segmenter or detector.

    A new head, a resized position embedding or missing EMA weights are logged as warnings.

    Args:
        path: a `.pth` file as upstream (hustvl/ViG) writes it (a training checkpoint, a best_*
            file or a bare state dict), a `.pth` file of mmsegmentation, mmdetection or
            torchvision (Mask R-CNN), a `.safetensors` file with the names of one of them, the
            workdir or a checkpoint of one of our runs, or a folder of `save_pretrained`. Nothing in
            a `.pth` file is executed.
        model_name: one of `vig_jax.list_models()`; None if the file names its model, as runs, files
            that we write, and upstream's published files under their names do.
        ema: True takes the EMA weights (`model_ema`), or the only ones in the file; False takes
            `model`; None takes the EMA weights if there are any.
        num_classes: width of the head; None means that of the file, 0 means no head. If the width
            differs from the file's or the file has no head, the head is new: kernel normal with
            standard deviation 0.02 (drawn from key 0), bias 0. Of a segmenter, the layers
            `conv_seg` are then new, with standard deviation 0.01; of a detector, the last layers
            of its heads.
        **overrides: as for `vig_jax.create_model`, or `vig_jax.create_segmenter` for a segmenter
            and `vig_jax.create_detector` for a detector. If `img_size` differs from the file's, the
            position embedding is resized as upstream does (bicubic).

    Returns:
        Variables for `create_model(model_name, num_classes, **overrides).apply`, or those of
        `create_segmenter` or `create_detector`; leaves are NumPy arrays of the file's dtype.

    Raises:
        FileNotFoundError: there is no such file.
        ConfigError: neither `model_name` nor the file names the model. It is a ValueError.
        WeightsError: the file cannot be read, or names or shapes do not fit the model. It is a
            ValueError.
    """
    file = read_weight_file(path, ema=ema)
    model_name = chosen_model(file, path, model_name)
    try:
        check_model_name(file, model_name)
        if mmseg.is_segmenter(file.state_dict):
            classes = fit_segmenter.sizes_of(file.state_dict).get("num_classes", 1)
            classes = classes if num_classes is None else num_classes
            model = create_segmenter(model_name, classes, **overrides)
            variables, notes = fit_dense(file, model_name, model)
            variables = completed(variables, model, seed=0)
        elif is_detector(file.state_dict):
            variables, notes = _detector_weights(file, model_name, num_classes, overrides)
        else:
            weights = fit(file.state_dict, model_name, num_classes=num_classes, overrides=overrides)
            variables, notes = {"params": weights.params}, weights.notes
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    for note in file.notes + notes:
        _log.warning("%s: %s", path, note)
    return variables


def _detector_weights(
    file: WeightFile, model_name: str, num_classes: int | None, overrides: dict[str, Any]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Returns the variables of a file for a detector, and notes."""
    classes = int(fit_detector.sizes_of(file.state_dict).get("num_classes", 1))
    detector = create_detector(
        model_name, classes if num_classes is None else num_classes, **overrides
    )
    variables, notes = fit_dense(file, model_name, detector)
    return completed(variables, detector, seed=0), notes


def read_weight_file(path: str | Path, *, ema: bool | None = None) -> WeightFile:
    """Reads one set of weights from a `.pth` or `.safetensors` file or one of our runs.

    Args:
        path: of the file or folder.
        ema: as for `load_weights`.

    Raises:
        FileNotFoundError: there is no such file.
        WeightsError: the file cannot be read, has no state dict, or lacks the requested weights.
    """
    path = Path(path)
    if is_hub_folder(path):
        return _read_hub_folder(path, ema)
    if path.is_dir():
        return _read_run_folder(path, ema)
    if not path.exists():
        raise FileNotFoundError(f"no weight file at {path}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path, ema)
    with TorchFile(path) as file:
        section = choose_section(file.root, ema, path)
        _check_count(section.tensors, path)
        state_dict = {key: file.array(value) for key, value in section.tensors.items()}
    model_name, notes = published_model(path)
    return WeightFile(
        state_dict=state_dict,
        section=section.name,
        averaged=section.averaged,
        others=section.others,
        notes=section.notes + notes,
        model_name=model_name,
        class_names=section.metadata.get("class_names", ()),
        metadata=section.metadata,
    )


def origin(file: WeightFile, path: str | Path) -> str:
    """Returns a phrase for messages: the file, and the section that was read."""
    return f"{path}, {file.section}" if file.section else str(path)


def save_safetensors(
    params: Mapping[str, Any],
    path: Path,
    *,
    model_name: str,
    averaged: bool | None,
    mutable: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
    own_names: bool = False,
) -> None:
    """Writes weights under the names of others, with a checksum for reading.

    Args:
        params: parameters of one of our models.
        path: the file; it is incomplete while it is written.
        model_name: stored in the file's metadata.
        averaged: True for EMA weights, False for raw ones, None if unknown.
        mutable: the other collections of its variables.
        facts: JSON values for the file's metadata: `metadata` and `config`, see `WeightFile`.
        own_names: write our names instead; see `vig_jax.weights.own_names`.
    """
    names = own_state_dict if own_names else foreign_state_dict
    state_dict = names({"params": params, **(mutable or {})})
    facts = {
        "model": model_name,
        "averaged": averaged,
        "sha256": checksum(state_dict),
        **(facts or {}),
    }
    # `save_file` would make a file that other users cannot read.
    path.write_bytes(save(state_dict, {_METADATA: json.dumps(facts)}))


def foreign_state_dict(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns the state dict of a model under the names of others.

    They are those of mmsegmentation for a segmenter, of mmdetection for a detector, and else those
    of upstream.
    """
    if is_detector([f"{name}." for name in variables["params"]]):
        return mmdet.NAMES.from_variables(variables)
    if any(f"{name}." in mmseg.HEADS for name in variables["params"]):
        return mmseg.from_variables(variables)
    return upstream.from_params(variables["params"])


def checksum(state_dict: Mapping[str, np.ndarray]) -> str:
    """Returns the sha256 of the names, sorted, each followed by its array's little-endian bytes."""
    sha = hashlib.sha256()
    for key in sorted(state_dict):
        sha.update(key.encode())
        sha.update(np.ascontiguousarray(state_dict[key]).tobytes())
    return sha.hexdigest()


def _check_count(names: Collection[str], path: Path) -> None:
    if len(names) > MAX_ARRAYS:
        raise WeightsError(
            f"{path} has {len(names):,} arrays; at most {MAX_ARRAYS:,} are read. It is not a file "
            "of ViG weights"
        )


def _read_run_folder(path: Path, ema: bool | None) -> WeightFile:
    try:
        directory = run_folder.find_checkpoint(path.absolute(), ema=ema)
        item = run_folder.choose_item(directory, ema=ema)
    except CheckpointError as error:
        raise WeightsError(str(error)) from error
    variables = run_folder.read_variables(directory, item)
    stored = run_folder.read_run(directory)
    return WeightFile(
        foreign_state_dict(variables),
        section=item,
        averaged=item == "ema_params",
        class_names=tuple(stored["metadata"].get("class_names", ())),
        model_name=stored["config"]["model"]["name"],
        metadata=stored["metadata"],
        config=stored["config"],
    )


def _read_hub_folder(path: Path, ema: bool | None) -> WeightFile:
    config, values = read_hub_config(path)
    file = _read_safetensors(path / WEIGHTS, ema)
    try:
        check_model_name(file, config.model.name)
    except WeightsError as error:
        raise WeightsError(f"{path}: {CONFIG} and {WEIGHTS} differ: {error}") from error
    return dataclasses.replace(
        file,
        class_names=tuple(values["metadata"].get("class_names", ())),
        model_name=config.model.name,
        metadata=values["metadata"],
        config=values["config"],
    )


def _read_safetensors(path: Path, ema: bool | None) -> WeightFile:
    try:
        with safetensors.safe_open(path, framework="np") as file:
            facts = json.loads((file.metadata() or {}).get(_METADATA, "{}"))
            stored, averaged = facts.get("sha256"), facts.get("averaged")
            model_name = str(facts.get("model", ""))
            names = file.keys()
            _check_count(names, path)
            state_dict = {name: file.get_tensor(name) for name in names}
    except (OSError, WeightsError):
        raise
    except Exception as error:  # besides SafetensorError: dtypes that NumPy does not have
        raise WeightsError(f"{path} is not a readable .safetensors file: {error}") from error
    if stored is not None and stored != checksum(state_dict):
        raise WeightsError(f"{path} is damaged: its checksum differs. Fetch or convert it again")
    if averaged and ema is False:
        raise WeightsError(f"{path} has only EMA weights: use ema=True")
    notes = ("these are not EMA weights",) if averaged is False and ema else ()
    metadata = facts.get("metadata", {})
    return WeightFile(
        state_dict,
        averaged=averaged,
        notes=notes,
        model_name=model_name,
        class_names=tuple(metadata.get("class_names", ())),
        metadata=metadata,
        config=facts.get("config", {}),
    )

"""Reads weight files: PyTorch checkpoints, .safetensors files and our own runs."""

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
from vig_jax.weights import run_folder, upstream
from vig_jax.weights.fit import WeightFile, check_model_name, fit
from vig_jax.weights.pickles import Global, Opaque
from vig_jax.weights.torch_file import Tensor, TorchFile

_log = logging.getLogger(__name__)

MAX_ARRAYS = 10_000
"""The largest number of arrays in a file; the largest published models have 392 parameters."""

# The metadata key of the .safetensors files that we write. Its value is JSON: safetensors writes
# several keys in an order that changes from run to run.
_METADATA = "vig_jax"


def load_weights(
    path: str | Path,
    model_name: str,
    *,
    ema: bool | None = None,
    num_classes: int | None = None,
    **overrides: Any,
) -> dict[str, Any]:
    """Reads a weight file for a model.

    A new head, a resized position embedding or missing EMA weights are logged as warnings.

    Args:
        path: a `.pth` file as upstream (hustvl/ViG) writes it (a training checkpoint, a best_*
            file or a bare state dict), a `.safetensors` file with upstream's names, or the workdir
            or a checkpoint of one of our runs. Nothing in a `.pth` file is executed.
        model_name: one of `vig_jax.list_models()`.
        ema: True takes the EMA weights (`model_ema`), or the only ones in the file; False takes
            `model`; None takes the EMA weights if there are any.
        num_classes: width of the head; None means that of the file, 0 means no head. If the width
            differs from the file's or the file has no head, the head is new: kernel normal with
            standard deviation 0.02 (drawn from key 0), bias 0.
        **overrides: as for `vig_jax.create_model`. If `img_size` differs from the file's, the
            position embedding is resized as upstream does (bicubic).

    Returns:
        Variables for `create_model(model_name, num_classes, **overrides).apply`; leaves are NumPy
        arrays of the file's dtype.

    Raises:
        FileNotFoundError: there is no such file.
        WeightsError: the file cannot be read, or names or shapes do not fit the model. It is a
            ValueError.
    """
    file = read_weight_file(path, ema=ema)
    try:
        check_model_name(file, model_name)
        weights = fit(file.state_dict, model_name, num_classes=num_classes, overrides=overrides)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    for note in file.notes + weights.notes:
        _log.warning("%s: %s", path, note)
    return {"params": weights.params}


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
    if path.is_dir():
        return _read_run_folder(path, ema)
    if not path.exists():
        raise FileNotFoundError(f"no weight file at {path}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path, ema)
    with TorchFile(path) as file:
        section, tensors, notes = _choose(file.root, ema, path)
        _check_count(tensors, path)
        state_dict = {key: file.array(value) for key, value in tensors.items()}
        others = [str(k) for k, v in file.root.items() if k != section and v not in (None, {})]
        others = others if section else []
    # In a training checkpoint `model` holds the raw weights; elsewhere it may hold either kind.
    in_training = {"model", "model_ema", "optimizer"} & set(others)
    averaged = section == "model_ema" if section == "model_ema" or in_training else None
    return WeightFile(
        state_dict=state_dict,
        section=section,
        averaged=averaged,
        others=tuple(others),
        notes=notes,
    )


def origin(file: WeightFile, path: str | Path) -> str:
    """Returns a phrase for messages: the file, and the section that was read."""
    return f"{path}, {file.section}" if file.section else str(path)


def save_safetensors(
    params: Mapping[str, Any], path: Path, *, model_name: str, averaged: bool | None
) -> None:
    """Writes parameters under upstream's names, with a checksum that is verified on reading.

    Args:
        params: parameters of one of our models.
        path: the file; it is incomplete while it is written.
        model_name: stored in the file's metadata.
        averaged: True for EMA weights, False for raw ones, None if unknown.
    """
    state_dict = upstream.from_params(dict(params))
    facts = {"model": model_name, "averaged": averaged, "sha256": checksum(state_dict)}
    # `save_file` would make a file that other users cannot read.
    path.write_bytes(save(state_dict, {_METADATA: json.dumps(facts)}))


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
    params = run_folder.read_params(directory, item)
    stored = run_folder.read_run(directory)
    return WeightFile(
        upstream.from_params(params),
        section=item,
        averaged=item == "ema_params",
        class_names=tuple(stored["metadata"].get("class_names", ())),
        model_name=stored["config"]["model"]["name"],
    )


def _read_safetensors(path: Path, ema: bool | None) -> WeightFile:
    try:
        with safetensors.safe_open(path, framework="np") as file:
            facts = json.loads((file.metadata() or {}).get(_METADATA, "{}"))
            stored, averaged = facts.get("sha256"), facts.get("averaged")
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
    return WeightFile(state_dict, averaged=averaged, notes=notes)


def _choose(
    root: Any, ema: bool | None, path: Path
) -> tuple[str, dict[str, Tensor], tuple[str, ...]]:
    """Returns the requested section of a PyTorch checkpoint: its key, its tensors, notes."""
    if not isinstance(root, dict):
        raise WeightsError(f"{path} holds {_kind(root)}, not a state dict. {_HOW}")
    if root and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in root.items()):
        return "", root, ()
    sections = [key for key in ("model", "model_ema") if root.get(key)]  # None or {}: none saved
    if not sections:
        for key in ("model", "model_ema"):
            if root.get(key) is not None:
                kind = _kind(root[key])
                raise WeightsError(f"{path}: {key!r} is {kind}, not a state dict. {_HOW}")
        keys = ", ".join(map(str, list(root)[:8])) or "nothing"
        raise WeightsError(f"{path} has neither 'model' nor 'model_ema'; it has {keys}. {_HOW}")
    notes: tuple[str, ...] = ()
    if ema is False and "model" not in sections:
        raise WeightsError(f"{path} has only EMA weights (model_ema): use ema=True")
    if ema and "model_ema" not in sections:
        notes = ("has no 'model_ema': these are the weights under 'model'",)
    section = "model" if ema is False else sections[-1]
    tensors = root[section]
    if not isinstance(tensors, dict) or not tensors:
        raise WeightsError(f"{path}: {section!r} is {_kind(tensors)}, not a state dict. {_HOW}")
    for key, value in tensors.items():
        if not (isinstance(key, str) and isinstance(value, Tensor)):
            raise WeightsError(f"{path}: {section}[{key!r}] is {_kind(value)}, not a tensor")
    return section, tensors, notes


_HOW = "Save the weights alone: torch.save(model.state_dict(), NEW)"


def _kind(value: Any) -> str:
    if isinstance(value, Opaque):
        return f"an object of {value.kind}"
    return str(value) if isinstance(value, Global) else f"a {type(value).__name__}"

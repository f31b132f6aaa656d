"""`load_weights`: published or converted weight files to variables."""

import dataclasses
import hashlib
import json
import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors.numpy import save

from vig_jax.errors import CheckpointError, WeightsError
from vig_jax.layers.linear import normal_002
from vig_jax.layers.pos_embed import resize_pos_embed
from vig_jax.models import create_model, list_models
from vig_jax.weights import run_folder, upstream
from vig_jax.weights.pickles import Global, Opaque
from vig_jax.weights.torch_file import Tensor, TorchFile

_log = logging.getLogger(__name__)

StateDict = dict[str, np.ndarray]

# Names of the hierarchical models' parameters in files of earlier upstream code, as the beginning
# of a key; vig_h.py `_load_from_state_dict` renames them too.
_OLD_NAMES = (
    (r"patch_embed\.proj\.", "patch_embed.0."),
    (r"patch_embed\.norm\.", "patch_embed.2."),
    (r"(layers\.\d+\.blocks\.\d+)\.ln_1\.", r"\1.norm."),
    (r"(layers\.\d+\.blocks\.\d+)\.self_attention\.", r"\1.op."),
    (r"norm\.", "classifier.norm."),
    (r"head\.", "classifier.head."),
)
_HEADS = (("head.weight", "head.bias"), ("classifier.head.weight", "classifier.head.bias"))
# Where the .safetensors files that we write keep their checksum and more, as JSON: safetensors
# writes several keys of metadata in an order that changes from run to run.
_METADATA = "vig_jax"


@dataclasses.dataclass(frozen=True)
class WeightFile:
    """One set of weights of a file, under upstream's names.

    Attributes:
        state_dict: name to array; the arrays may be views.
        section: the file's own name for them, "" if it has none.
        averaged: whether they are known to be an average (EMA); None: the file does not say.
        others: what else the file has, and the classes of objects that were left alone.
        notes: what the reader should know.
    """

    state_dict: StateDict
    section: str = ""
    averaged: bool | None = None
    others: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights that fit a model.

    Attributes:
        params: nested dictionary of numpy arrays.
        num_classes: width of the head.
        notes: how they differ from those of the file.
    """

    params: dict[str, Any]
    num_classes: int
    notes: tuple[str, ...] = ()


def load_weights(
    path: str | Path,
    model_name: str,
    *,
    ema: bool | None = None,
    num_classes: int | None = None,
    **overrides: Any,
) -> dict[str, Any]:
    """Reads a weight file for a model.

    What differs from the file (a new head, a resized position embedding, no averaged weights) is
    logged as a warning.

    Args:
        path: a `.pth` file as upstream (hustvl/ViG) writes it (a training checkpoint, a best_*
            file or a bare state dict), a `.safetensors` file with upstream's names, or the workdir
            or a checkpoint of a run of ours. Nothing in a `.pth` file is executed.
        model_name: one of `vig_jax.list_models()`.
        ema: True takes the averaged weights (`model_ema`), or the only ones there are; False takes
            `model`; None takes the averaged ones if there are any.
        num_classes: width of the head. None: as in the file. Another width than the file's gives
            a new head: kernel normal with standard deviation 0.02 (drawn from key 0), bias 0.
        **overrides: as for `vig_jax.create_model`. With another `img_size` than the file's, the
            position embedding is resized as upstream does (bicubic).

    Returns:
        Variables for `create_model(model_name, num_classes, **overrides).apply`; leaves are numpy
        arrays of the file's dtype.

    Raises:
        FileNotFoundError: there is no such file.
        WeightsError: a ValueError; the file cannot be read, or names or shapes do not fit the
            model.
    """
    file = read_weight_file(path, ema=ema)
    try:
        weights = fit(file.state_dict, model_name, num_classes=num_classes, overrides=overrides)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    for note in file.notes + weights.notes:
        _log.warning("%s: %s", path, note)
    return {"params": weights.params}


def read_weight_file(path: str | Path, *, ema: bool | None = None) -> WeightFile:
    """Reads one set of weights from a `.pth` or `.safetensors` file or a run of ours.

    Args:
        path: of the file or folder.
        ema: as for `load_weights`.

    Raises:
        FileNotFoundError: there is no such file.
        WeightsError: the file cannot be read, holds no state dict or not the weights asked for.
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
        state_dict = {key: file.array(value) for key, value in tensors.items()}
        others = [str(key) for key in file.root if key != section] if section else []
    in_training = {"model", "model_ema", "optimizer"} & set(others)  # else "model" may be either
    averaged = section == "model_ema" if section == "model_ema" or in_training else None
    return WeightFile(
        state_dict=state_dict,
        section=section,
        averaged=averaged,
        others=tuple(others),
        notes=notes,
    )


def fit(
    state_dict: Mapping[str, np.ndarray],
    model_name: str,
    *,
    num_classes: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Weights:
    """Parameters of a model from a state dict, with a new head or another grid where needed.

    Args:
        state_dict: upstream names, today's or earlier ones; 1x1 convolutions may have two or four
            dimensions.
        model_name: one of `vig_jax.list_models()`.
        num_classes: width of the head; None: that of the state dict.
        overrides: for `create_model`.
        seed: of a new head.

    Raises:
        WeightsError: lists the missing and unexpected names and the shapes that differ.
    """
    tensors = _today(state_dict)
    for key, value in tensors.items():
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise WeightsError(f"{key} is {value.dtype}; floating-point weights are wanted")
    notes = []
    head = _head(tensors)
    in_file = tensors[head[1]].size if head else None
    model = create_model(
        model_name, **_given(num_classes=num_classes or in_file), **(overrides or {})
    )
    if head and in_file != model.num_classes:
        kernel, bias = head
        shape = (*tensors[kernel].shape[1:], model.num_classes)
        new = normal_002(jax.random.key(seed), shape, jnp.float32)
        tensors[kernel] = np.asarray(new).T.astype(tensors[kernel].dtype)
        tensors[bias] = np.zeros(model.num_classes, tensors[bias].dtype)
        notes.append(
            f"a new head for {model.num_classes} classes, as the file's is for {in_file}: it "
            "must be trained"
        )
    if "pos_embed" in tensors and hasattr(model, "img_size"):
        old, side = tensors["pos_embed"], model.img_size // model.patch_size
        tensors["pos_embed"] = _resized(old, side)
        if old.shape != tensors["pos_embed"].shape:
            before = math.isqrt(old.shape[1])
            notes.append(f"position embedding resized from {before}x{before} to {side}x{side}")
    try:
        params = upstream.to_params(tensors, model)
    except WeightsError as error:
        name = _name_of(tensors)
        hint = f". Their sizes are those of {name}" if name not in (None, model_name) else ""
        raise WeightsError(f"{error}{hint}") from error
    own = jax.tree.map(lambda x: np.array(x, order="C"), params)  # no views of the whole file
    return Weights(own, model.num_classes, tuple(notes))


def _head(tensors: Mapping[str, np.ndarray]) -> tuple[str, str] | None:
    """The names of the head's weight [classes, D] and bias [classes], if they are that."""
    for kernel, bias in _HEADS:
        if kernel in tensors and bias in tensors:
            shape = tensors[kernel].shape
            if len(shape) == 2 and shape[:1] == tensors[bias].shape:
                return kernel, bias
    return None


def _name_of(tensors: Mapping[str, np.ndarray]) -> str | None:
    """The published model whose widths and numbers of blocks these are, if any."""
    depths: dict[str, int] = {}
    widths: dict[str, int] = {}
    for key, value in tensors.items():
        if match := re.fullmatch(r"(layers\.\d+\.)?blocks\.\d+\.(attn_norm|norm)\.weight", key):
            stage = match[1] or ""
            depths[stage] = depths.get(stage, 0) + 1
            widths[stage] = value.size
    for name in list_models():
        model = create_model(name)
        of_model = (
            tuple(getattr(model, "embed_dims", None) or [model.embed_dim]),
            tuple(getattr(model, "depths", None) or [model.depth]),
        )
        if of_model == (tuple(widths.values()), tuple(depths.values())):
            return name
    return None


def save_safetensors(
    params: Mapping[str, Any], path: Path, *, model_name: str, averaged: bool | None
) -> None:
    """Writes parameters under upstream's names, with a checksum that reading holds them to.

    Args:
        params: of a model of ours.
        path: written as it goes: give a name that nobody reads yet.
        model_name: for people.
        averaged: whether these are averaged weights; None: unknown.
    """
    state_dict = upstream.from_params(dict(params))
    facts = {"model": model_name, "averaged": averaged, "sha256": checksum(state_dict)}
    # `save_file` would make a file that nobody else may read.
    path.write_bytes(save(state_dict, {_METADATA: json.dumps(facts)}))


def checksum(state_dict: Mapping[str, np.ndarray]) -> str:
    """sha256 of the names, sorted, each followed by its array's little-endian bytes."""
    sha = hashlib.sha256()
    for key in sorted(state_dict):
        sha.update(key.encode())
        sha.update(np.ascontiguousarray(state_dict[key]).tobytes())
    return sha.hexdigest()


def _read_run_folder(path: Path, ema: bool | None) -> WeightFile:
    try:
        directory = run_folder.find_checkpoint(path.absolute(), ema=ema)
        item = run_folder.choose_item(directory, ema=ema)
    except CheckpointError as error:
        raise WeightsError(str(error)) from error
    params = run_folder.read_params(directory, item)
    return WeightFile(upstream.from_params(params), section=item, averaged=item == "ema_params")


def _read_safetensors(path: Path, ema: bool | None) -> WeightFile:
    try:
        with safetensors.safe_open(path, framework="np") as file:
            facts = json.loads((file.metadata() or {}).get(_METADATA, "{}"))
            wanted, averaged = facts.get("sha256"), facts.get("averaged")
            state_dict = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except OSError:
        raise
    except Exception as error:  # besides SafetensorError: dtypes that NumPy does not have
        raise WeightsError(f"{path} is not a readable .safetensors file: {error}") from error
    if wanted is not None and wanted != checksum(state_dict):
        raise WeightsError(f"{path} is damaged: its checksum differs. Fetch or convert it again")
    if averaged and ema is False:
        raise WeightsError(f"{path} has averaged weights alone: ask for ema=True")
    notes = ("these are no averaged weights",) if averaged is False and ema else ()
    return WeightFile(state_dict, averaged=averaged, notes=notes)


def _choose(
    root: Any, ema: bool | None, path: Path
) -> tuple[str, dict[str, Tensor], tuple[str, ...]]:
    """The section of a PyTorch checkpoint to take: its key, its tensors, notes."""
    if not isinstance(root, dict):
        raise WeightsError(f"{path} holds {_kind(root)}, not a state dict. {_HOW}")
    if root and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in root.items()):
        return "", root, ()
    sections = [key for key in ("model", "model_ema") if key in root]
    if not sections:
        keys = ", ".join(map(str, list(root)[:8])) or "nothing"
        raise WeightsError(f"{path} has neither 'model' nor 'model_ema'; it has {keys}. {_HOW}")
    notes: tuple[str, ...] = ()
    if ema is False and "model" not in sections:
        raise WeightsError(f"{path} has averaged weights alone (model_ema): ask for ema=True")
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


def _today(state_dict: Mapping[str, np.ndarray]) -> StateDict:
    """The state dict under today's names, 1x1 convolutions as matrices.

    Raises:
        WeightsError: two names mean the same parameter.
    """
    hierarchical = any(key.startswith("layers.") for key in state_dict)
    result: StateDict = {}
    for key, value in state_dict.items():
        new = key
        for old_name, name in _OLD_NAMES if hierarchical else ():
            new = re.sub(f"^{old_name}", name, new)
        if new in result:
            raise WeightsError(f"{key} and another key both mean {new}")
        result[new] = value[:, :, 0, 0] if value.ndim == 4 and value.shape[2:] == (1, 1) else value
    return result


def _resized(pos_embed: np.ndarray, side: int) -> np.ndarray:
    """A position embedding [1, n * n, D] for a grid of `side` rows and columns."""
    if pos_embed.ndim != 3 or pos_embed.shape[:2] == (1, side * side):
        return pos_embed  # nothing to do, or nothing that could be resized: the shapes will differ
    tokens = pos_embed.shape[1]
    if pos_embed.shape[0] != 1 or math.isqrt(tokens) ** 2 != tokens or tokens == 0:
        return pos_embed
    table = jnp.asarray(np.asarray(pos_embed, np.float32))
    resized = resize_pos_embed(table, (side, side)).reshape(1, side * side, -1)
    return np.asarray(resized).astype(pos_embed.dtype)


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}

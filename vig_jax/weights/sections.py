"""Chooses one set of weights among the parts of a PyTorch checkpoint.

hustvl/ViG writes `model` and `model_ema`. mmsegmentation writes `state_dict`. With mmengine's
`EMAHook` these are the EMA weights, and the raw ones are under `ema_state_dict`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vig_jax.errors import WeightsError
from vig_jax.weights.pickles import Global, Opaque
from vig_jax.weights.torch_file import Tensor

_HOW = "Save the weights alone: torch.save(model.state_dict(), NEW)"
_UPSTREAM = ("model", "model_ema")
_MMENGINE, _MMENGINE_RAW = "state_dict", "ema_state_dict"
_WRAPPER = "module."  # of torch's DistributedDataParallel and mmengine's averaged models
_OLD_COPIES = "ema_"  # buffers of mmcv's EMAHook: the other set of weights, under other names


@dataclasses.dataclass(frozen=True)
class Section:
    """One set of weights of a checkpoint.

    Attributes:
        name: its key in the file; "" if the file is a bare state dict.
        tensors: by name.
        averaged: True for EMA weights, False for raw ones, None if the file does not say.
        others: the other keys of the file.
        notes: warnings for the user.
        metadata: `class_names` and `palette` of the training data, if mmengine has stored them.
    """

    name: str
    tensors: dict[str, Tensor]
    averaged: bool | None = None
    others: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def choose_section(root: Any, ema: bool | None, path: Path) -> Section:
    """Returns the requested weights of a PyTorch checkpoint.

    Args:
        root: the object in the file.
        ema: as for `vig_jax.load_weights`.
        path: of the file, for messages.

    Raises:
        WeightsError: there is no state dict, or not the requested one.
    """
    if not isinstance(root, dict):
        raise WeightsError(f"{path} holds {_kind(root)}, not a state dict. {_HOW}")
    if root and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in root.items()):
        return Section("", _unwrapped(root))
    if not any(root.get(key) for key in _UPSTREAM) and root.get(_MMENGINE):
        return _of_mmengine(root, ema, path)
    return _of_upstream(root, ema, path)


def _of_upstream(root: Mapping[Any, Any], ema: bool | None, path: Path) -> Section:
    sections = [key for key in _UPSTREAM if root.get(key)]  # None or {}: none saved
    if not sections:
        for key in _UPSTREAM:
            if root.get(key) is not None:
                kind = _kind(root[key])
                raise WeightsError(f"{path}: {key!r} is {kind}, not a state dict. {_HOW}")
        keys = ", ".join(map(str, list(root)[:8])) or "nothing"
        raise WeightsError(
            f"{path} has neither 'model' nor 'model_ema' nor 'state_dict'; it has {keys}. {_HOW}"
        )
    notes: tuple[str, ...] = ()
    if ema is False and "model" not in sections:
        raise WeightsError(f"{path} has only EMA weights (model_ema): use ema=True")
    if ema and "model_ema" not in sections:
        notes = ("has no 'model_ema': these are the weights under 'model'",)
    name = "model" if ema is False else sections[-1]
    tensors, others = _tensors(root, name, path), _others(root, name)
    # In a training checkpoint `model` holds the raw weights; elsewhere it may hold either kind.
    in_training = {*_UPSTREAM, "optimizer"} & set(others)
    averaged = name == "model_ema" if name == "model_ema" or in_training else None
    return Section(name, _unwrapped(tensors), averaged, others, notes)


def _of_mmengine(root: Mapping[Any, Any], ema: bool | None, path: Path) -> Section:
    has_both = bool(root.get(_MMENGINE_RAW))
    name = _MMENGINE_RAW if ema is False and has_both else _MMENGINE
    tensors = _unwrapped(_tensors(root, name, path, but=("steps",)))
    kept = {key: value for key, value in tensors.items() if not key.startswith(_OLD_COPIES)}
    notes = []
    if ema and not has_both:
        notes.append("has no 'ema_state_dict': these are the weights under 'state_dict'")
    if len(kept) < len(tensors):
        notes.append(f"{len(tensors) - len(kept)} arrays called {_OLD_COPIES}* are not used")
    averaged = name == _MMENGINE if has_both else None
    return Section(name, kept, averaged, _others(root, name), tuple(notes), _metadata(root))


def _tensors(
    root: Mapping[Any, Any], name: str, path: Path, but: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Returns a state dict of a checkpoint without some keys, checked."""
    tensors = root[name]
    if not isinstance(tensors, dict) or not tensors:
        raise WeightsError(f"{path}: {name!r} is {_kind(tensors)}, not a state dict. {_HOW}")
    tensors = {key: value for key, value in tensors.items() if key not in but}
    for key, value in tensors.items():
        if not (isinstance(key, str) and isinstance(value, Tensor)):
            raise WeightsError(f"{path}: {name}[{key!r}] is {_kind(value)}, not a tensor")
    return tensors


def _unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors without the prefix `module.`, if all have it."""
    wrapped = all(key.startswith(_WRAPPER) for key in tensors)
    return {key.removeprefix(_WRAPPER) if wrapped else key: v for key, v in tensors.items()}


def _others(root: Mapping[Any, Any], name: str) -> tuple[str, ...]:
    return tuple(str(k) for k, v in root.items() if k != name and v not in (None, {}))


def _metadata(root: Mapping[Any, Any]) -> dict[str, Any]:
    """Returns names and colours of the classes: mmengine's `dataset_meta`, or mmcv's `CLASSES`."""
    meta = root.get("meta")
    if not isinstance(meta, dict):
        return {}
    stored = meta.get("dataset_meta")
    found = stored if isinstance(stored, dict) else {}
    names = found.get("classes") or meta.get("CLASSES")
    colours = found.get("palette") or meta.get("PALETTE")
    result: dict[str, Any] = {}
    if isinstance(names, list | tuple) and names and all(isinstance(n, str) for n in names):
        result["class_names"] = tuple(names)
        if isinstance(colours, list | tuple) and len(colours) == len(names):
            palette = tuple(tuple(c) for c in colours if _is_colour(c))
            result |= {"palette": palette} if len(palette) == len(names) else {}
    return result


def _is_colour(value: Any) -> bool:
    """Returns whether a value is red, green and blue from 0 to 255."""
    is_triple = isinstance(value, list | tuple) and len(value) == 3
    return is_triple and all(type(level) is int and 0 <= level <= 255 for level in value)


def _kind(value: Any) -> str:
    if isinstance(value, Opaque):
        return f"an object of {value.kind}"
    return str(value) if isinstance(value, Global) else f"a {type(value).__name__}"

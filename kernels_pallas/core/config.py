"""Configurations of kernels: block sizes, warps and so on.

Each backend of an operator has a `Config`, a frozen dataclass. It is either flat, or it has one
dataclass for each kernel: the field `forward` for calls that are not differentiated, other fields
for those that are. A call takes its config from the first of these sources:

1. the argument `config=` of the operator,
2. the measured winner that is stored for the call on this model of GPU,
3. the backend's `heuristic(spec, device)`.

Measured winners are data: `autotune/data/<device>/<operator>.<backend>.json` is a list of
`{"call": key, "config": fields}`.
"""

import dataclasses
import functools
import json
import pathlib
import typing
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

import numpy as np

from .device import Device
from .launch import target_device

C = TypeVar("C")

TUNING_DATA = pathlib.Path(__file__).parents[1] / "autotune" / "data"
"""Folder of the measured winners."""


def choose(
    tuned_as: str, config_type: Any, heuristic: Callable[[Any, Device | None], C], spec: Any
) -> C:
    """Returns the stored winner for a call on the local GPU, else the heuristic's choice.

    Args:
        tuned_as: Name of the backend's stored winners, "<operator>.<backend>".
        config_type: The backend's Config.
        heuristic: The backend's heuristic.
        spec: The call.
    """
    device = target_device()
    if device is not None:
        winner = stored(tuned_as, config_type, device.name).get(tuning_key(spec))
        if winner is not None:
            return winner
    return heuristic(spec, device)


def tuning_key(spec: Any) -> tuple[Hashable, ...]:
    """Returns what identifies a call among the stored winners.

    That is the spec's property `tuning_key`, or else all of its fields.
    """
    key = getattr(spec, "tuning_key", None)
    if key is None:
        values = (getattr(spec, field.name) for field in dataclasses.fields(spec))
        key = tuple(value.name if isinstance(value, np.dtype) else value for value in values)
    return key


@functools.cache
def stored(tuned_as: str, config_type: Any, device: str) -> Mapping[tuple[Hashable, ...], Any]:
    """Reads the winners that are stored for a model of GPU, by `tuning_key`."""
    path = winners_path(tuned_as, device)
    entries = json.loads(path.read_text()) if path.exists() else []
    return {tuple(entry["call"]): from_dict(config_type, entry["config"]) for entry in entries}


def winners_path(tuned_as: str, device: str) -> pathlib.Path:
    """Returns the file that stores a backend's winners on a model of GPU."""
    return TUNING_DATA / device / f"{tuned_as}.json"


def store(tuned_as: str, device: str, spec: Any, config: Any) -> pathlib.Path:
    """Stores the winner for a call, in place of an earlier one, and returns the file.

    Calls of this process that were traced before keep the config that they have.
    """
    path = winners_path(tuned_as, device)
    entries = json.loads(path.read_text()) if path.exists() else []
    entry = {"call": list(tuning_key(spec)), "config": dataclasses.asdict(config)}
    entries = [other for other in entries if other["call"] != entry["call"]] + [entry]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(entries, indent=1) + "\n")
    stored.cache_clear()
    return path


def from_dict(config_type: type[C], values: Mapping[str, Any]) -> C:
    """Makes a config of the fields that `dataclasses.asdict` returned.

    Raises:
        TypeError: A field is unknown, or one without default is missing.
    """
    types = typing.get_type_hints(config_type)
    return config_type(
        **{
            name: from_dict(types[name], value) if isinstance(value, Mapping) else value
            for name, value in values.items()
        }
    )

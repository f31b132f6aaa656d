"""Writes files as `torch.save` does, without PyTorch.

The stand-ins here pickle under the names of PyTorch's classes and functions. Modules of those names
exist only while a pickle is being written.
"""

import dataclasses
import functools
import io
import pickle
import sys
import types
import zipfile
from pathlib import Path
from unittest import mock

import numpy as np

STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}
_MODULES: dict[str, types.ModuleType] = {}


@functools.cache
def named(module: str, name: str, base: type = object) -> type:
    """A class that pickles as `module.name`."""
    made = type(name, (base,), {"__module__": module})
    _MODULES.setdefault(module.partition(".")[0], types.ModuleType(module))
    setattr(_MODULES.setdefault(module, types.ModuleType(module)), name, made)
    return made


@dataclasses.dataclass(eq=False)
class Storage:
    """Values, 1-D, that tensors may share."""

    values: np.ndarray


@dataclasses.dataclass
class Tensor:
    """A view of a storage; offset and strides in elements."""

    storage: Storage
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0
    rebuild: str = "_rebuild_tensor_v2"


@dataclasses.dataclass
class Call:
    """Pickles to a call."""

    function: object
    arguments: tuple[object, ...] = ()

    def __reduce__(self):
        return self.function, self.arguments


def tensor(array: np.ndarray, rebuild: str = "_rebuild_tensor_v2") -> Tensor:
    """A tensor with the values, the shape and the strides of a dense array."""
    array = np.asarray(array)
    order = sorted(range(array.ndim), key=lambda axis: -array.strides[axis])
    strides = tuple(stride // array.itemsize for stride in array.strides)
    flat = array.transpose(order).reshape(-1)
    return Tensor(Storage(flat), array.shape, strides, rebuild=rebuild)


def state_dict(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {key: tensor(value) for key, value in arrays.items()}


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, protocol: int):
        super().__init__(file, protocol)
        self.storages: dict[int, tuple[str, Storage]] = {}

    def persistent_id(self, obj):
        if not isinstance(obj, Storage):
            return None
        key, _ = self.storages.setdefault(id(obj), (str(len(self.storages)), obj))
        kind = named("torch", STORAGES[obj.values.dtype.name])
        return ("storage", kind, key, "cuda:0", obj.values.size)

    def reducer_override(self, obj):
        if not isinstance(obj, Tensor):
            return NotImplemented
        function = named("torch._utils", obj.rebuild)
        if obj.rebuild == "_rebuild_parameter":
            return function, (dataclasses.replace(obj, rebuild="_rebuild_tensor_v2"), True, {})
        arguments = (obj.storage, obj.offset, obj.shape, obj.strides, False, {})
        if obj.rebuild == "_rebuild_tensor_v3":
            arguments += (named("torch", obj.storage.values.dtype.name),)
        return function, arguments


def dumps(obj: object, protocol: int = 2) -> tuple[bytes, dict[str, np.ndarray]]:
    """The pickle of an object, and the values of its storages by key."""
    for name in STORAGES:
        named("torch", STORAGES[name]), named("torch", name)
    for name in ("_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter"):
        named("torch._utils", name)
    file = io.BytesIO()
    pickler = _Pickler(file, protocol)
    with mock.patch.dict(sys.modules, _MODULES):
        pickler.dump(obj)
    return file.getvalue(), {key: one.values for key, one in pickler.storages.values()}


def save(obj: object, path: Path, *, protocol: int = 2, byteorder: str | None = "little") -> None:
    """Writes `obj` as `torch.save` does."""
    data, storages = dumps(obj, protocol)
    records = {"data.pkl": data, "version": b"3\n"}
    if byteorder:
        records["byteorder"] = byteorder.encode()
    for key, values in storages.items():
        swapped = values.byteswap() if byteorder == "big" else values
        records[f"data/{key}"] = swapped.tobytes()
    write_records(path, records)


def write_records(
    path: Path, records: dict[str, bytes], *, compression: int = zipfile.ZIP_STORED
) -> None:
    """A zip archive of records under the folder `archive`."""
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in records.items():
            file.writestr(f"archive/{name}", data)

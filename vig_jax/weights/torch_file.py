"""Reads files of `torch.save` without PyTorch.

Since version 1.6 PyTorch writes a zip archive of uncompressed records: `<name>/data.pkl`, a pickle
in which tensors refer to storages, `<name>/data/<key>`, the bytes of each storage, and
`<name>/byteorder`. The archive has a checksum of every record, which is verified on reading.
Source of the format: torch/serialization.py and torch/_utils.py.
"""

import contextlib
import dataclasses
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import jax.numpy as jnp
import numpy as np

from vig_jax.errors import WeightsError
from vig_jax.weights import pickles
from vig_jax.weights.pickles import Global

_DTYPES: dict[str, np.dtype] = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(jnp.bfloat16),
    "int64": np.dtype(np.int64),
    "int32": np.dtype(np.int32),
    "int16": np.dtype(np.int16),
    "int8": np.dtype(np.int8),
    "uint8": np.dtype(np.uint8),
    "bool": np.dtype(np.bool_),
}
_STORAGES: dict[str, np.dtype] = {
    "DoubleStorage": _DTYPES["float64"],
    "FloatStorage": _DTYPES["float32"],
    "HalfStorage": _DTYPES["float16"],
    "BFloat16Storage": _DTYPES["bfloat16"],
    "LongStorage": _DTYPES["int64"],
    "IntStorage": _DTYPES["int32"],
    "ShortStorage": _DTYPES["int16"],
    "CharStorage": _DTYPES["int8"],
    "ByteStorage": _DTYPES["uint8"],
    "UntypedStorage": _DTYPES["uint8"],
    "BoolStorage": _DTYPES["bool"],
}
_LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # a number, pickled
_MAX_RANK = 16
_MAX_REPEATED = 2**24


@dataclasses.dataclass(frozen=True)
class Storage:
    """A record of bytes: its key, dtype and size according to the pickle."""

    key: str
    dtype: np.dtype
    size: int  # elements of dtype


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A strided view of a storage that is neither read nor checked yet."""

    storage: Storage
    dtype: np.dtype
    offset: Any  # elements
    shape: Any
    strides: Any  # elements


class TorchFile:
    """The object in a file of `torch.save`. Use as a context manager: leaving closes the file.

    Attributes:
        root: the object, made of plain values, containers, `Tensor`s, `Global`s and `Opaque`s.
    """

    def __init__(self, path: Path) -> None:
        """Opens a file and reads its pickle.

        Raises:
            WeightsError: not a zip file of torch.save, a damaged one, or one that asks to run code.
        """
        self._path = path
        self._storages: dict[tuple[str, int], bytes] = {}
        with self._damage():
            try:
                self._zip = zipfile.ZipFile(path)
            except zipfile.BadZipFile as error:
                raise WeightsError(f"{path} {_what_it_is(path)}") from error
        try:
            with self._damage():
                self._records = {info.filename: info for info in self._zip.infolist()}
                self._folder = self._find_folder()
                self._check_archive()
                self._big_endian = self._byteorder() == b"big"
                self.root = pickles.loads(
                    self._read("data.pkl", limit=pickles.MAX_BYTES),
                    functions={
                        "torch._utils._rebuild_tensor": _rebuild_tensor,
                        "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
                        "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
                        "torch._utils._rebuild_parameter": _rebuild_parameter,
                        "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
                        "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
                    },
                    persistent=_storage,
                )
        except BaseException:
            self._zip.close()
            raise

    def __enter__(self) -> "TorchFile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._zip.close()

    def array(self, tensor: Tensor) -> np.ndarray:
        """Returns the values of a tensor, as a read-only view of its storage's bytes.

        Raises:
            WeightsError: the storage is missing or damaged, or the tensor does not lie within it.
        """
        with self._damage():
            if not len(tensor.shape) == len(tensor.strides) <= _MAX_RANK:
                raise ValueError("a tensor's sizes and strides do not match")
            numbers = (tensor.offset, *tensor.shape, *tensor.strides)
            if not all(type(n) is int and 0 <= n < 2**62 for n in numbers):
                raise ValueError("a tensor's offset, sizes or strides are not valid numbers")
            itemsize, buffer = tensor.dtype.itemsize, self._bytes(tensor.storage)
            elements = math.prod(tensor.shape)
            if elements == 0:
                return np.zeros(tensor.shape, tensor.dtype)
            if elements > max(tensor.storage.size, _MAX_REPEATED):  # with strides of 0
                raise ValueError(f"a tensor repeats its storage to {elements:,} elements")
            # NumPy checks that the view lies within the buffer.
            return np.ndarray(
                tensor.shape,
                tensor.dtype,
                buffer=buffer,
                offset=tensor.offset * itemsize,
                strides=tuple(stride * itemsize for stride in tensor.strides),
            )

    def _bytes(self, storage: Storage) -> bytes:
        """Returns the bytes of a storage in this machine's order; each storage is read once."""
        itemsize = storage.dtype.itemsize
        name, size = (storage.key, itemsize), storage.size * itemsize
        if name not in self._storages:
            data = self._read(f"data/{storage.key}", limit=size)
            if self._big_endian:
                data = np.frombuffer(data, np.dtype(f"u{itemsize}")).byteswap().tobytes()
            self._storages[name] = data
        data = self._storages[name]
        if len(data) != size:
            raise ValueError(f"storage {storage.key!r} has {len(data)} bytes, not {size}")
        return data

    def _check_archive(self) -> None:
        """Refuses archives that claim more bytes than the file has."""
        on_disk = self._path.stat().st_size
        if len(self._records) != len(self._zip.infolist()):
            raise ValueError("two records have the same name")
        for name, info in self._records.items():
            if info.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"record {name!r} is compressed, which torch.save does not do")
            if not info.compress_size == info.file_size <= on_disk:
                raise ValueError(f"record {name!r} claims to have {info.file_size:,} bytes")

    def _find_folder(self) -> str:
        found = [n for n in self._records if n.endswith("/data.pkl") and n.count("/") == 1]
        if len(found) != 1:
            raise WeightsError(
                f"{self._path} is a zip file, but not one of torch.save: it has {len(found)} "
                "records <name>/data.pkl instead of one. If it contains the checkpoint, unpack it"
            )
        folder = found[0].partition("/")[0]
        if f"{folder}/constants.pkl" in self._records:
            raise WeightsError(
                f"{self._path} is a TorchScript program: save only its weights, with "
                "torch.save(torch.jit.load(FILE).state_dict(), NEW)"
            )
        return folder

    def _byteorder(self) -> bytes:
        if f"{self._folder}/byteorder" not in self._records:
            return b"little"  # before torch 2.1
        order = self._read("byteorder", limit=16)
        if order not in (b"little", b"big"):
            raise ValueError(f"its byte order is {order!r}")
        return order

    def _read(self, name: str, *, limit: int) -> bytes:
        info = self._records.get(f"{self._folder}/{name}")
        if info is None:
            raise ValueError(f"record {name!r} is missing")
        if info.file_size > limit:
            raise ValueError(f"record {name!r} has {info.file_size:,} bytes, more than {limit:,}")
        return self._zip.read(info)  # checks the CRC

    @contextlib.contextmanager
    def _damage(self) -> Iterator[None]:
        """Reports any failure of the body as damage of the file."""
        try:
            yield
        except WeightsError as error:
            message = str(error)
            if str(self._path) in message:
                raise
            raise WeightsError(f"{self._path}: {message}") from error
        except (FileNotFoundError, PermissionError, IsADirectoryError):
            raise
        except Exception as error:  # zipfile and NumPy have many ways to fail on damaged bytes
            raise WeightsError(
                f"{self._path} is damaged; fetch or copy it again ({error})"
            ) from error


def _storage(identifier: Any) -> Storage:
    """Returns the storage that a persistent identifier names."""
    kind, storage_type, key, _, size = identifier
    if kind != "storage" or not isinstance(storage_type, Global):
        raise ValueError("a persistent identifier is not a storage")
    if not (isinstance(key, str) and type(size) is int and size >= 0):
        raise ValueError("a storage has no key or size")
    if storage_type.name not in _STORAGES or storage_type.module not in ("torch", "torch.storage"):
        raise WeightsError(f"it holds {storage_type}, which ViG weights never are")
    return Storage(key, _STORAGES[storage_type.name], size)


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    if not isinstance(storage, Storage):
        raise TypeError("a tensor without storage")
    return Tensor(storage, storage.dtype, offset, shape, strides)


def _rebuild_tensor_v3(
    storage: Any, offset: Any, shape: Any, strides: Any, _: Any, hooks: Any, dtype: Any, *__: Any
) -> Tensor:
    tensor = _rebuild_tensor(storage, offset, shape, strides)
    if not isinstance(dtype, Global):
        raise TypeError("a tensor without dtype")
    if dtype.module != "torch" or dtype.name not in _DTYPES:
        raise WeightsError(f"it holds tensors of {dtype}, which ViG weights never are")
    return dataclasses.replace(tensor, dtype=_DTYPES[dtype.name])


def _rebuild_parameter(data: Any, *_: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise TypeError("a parameter without tensor")
    return data


def _rebuild_from_type(function: Any, _: Any, arguments: Any, state: Any) -> Tensor:
    known = {"_rebuild_tensor_v2": _rebuild_tensor, "_rebuild_tensor_v3": _rebuild_tensor_v3}
    if not isinstance(function, Global):
        raise TypeError("a tensor without a type")
    if function.module != "torch._utils" or function.name not in known:
        raise pickles.refusal(str(function))
    return known[function.name](*arguments)


def _what_it_is(path: Path) -> str:
    """Returns what a file that is not a zip file looks like, and the cure, for a message."""
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        return "is empty: fetch it again"
    if head.startswith(b"PK\x03\x04"):
        return (
            f"begins like a file of torch.save, but its end is missing ({path.stat().st_size:,} "
            "bytes are here): fetch it again"
        )
    if head.startswith(_LEGACY):
        return (
            "is in the format that torch.save wrote before PyTorch 1.6, which has no checksums: "
            f"{pickles.RESAVE}"
        )
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer: fetch the file itself with `git lfs pull`"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page: the download link led to a page instead of the file"
    if head[8:9] == b"{":
        return "looks like a safetensors file: give it the ending .safetensors"
    return "is not a zip file as torch.save writes; .pth and .safetensors files are read"

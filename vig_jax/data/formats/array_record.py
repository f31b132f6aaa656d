"""ArrayRecord files: few files, and the fastest to shuffle.

A record is a msgpack map {image: bytes of an image file, label: int, key: str, h, w: pixels}.
Reading needs only `image` and `label`. If `raw` is true, `image` is decoded: h x w x 3 bytes of
red, green and blue. The files are PATH/train-00000-of-00256.arrayrecord, ...; see
`vig_jax.data.formats.shards`.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from array_record.python import array_record_data_source
from jaxtyping import Int

from vig_jax.data.dataset import (
    ClassificationBase,
    ClassificationDataset,
    Example,
    Part,
    check_classes_filled,
)
from vig_jax.data.formats import shards
from vig_jax.errors import DataSetError, UnreadableRecordError
from vig_jax.files import check_utf8
from vig_jax.text import printable

SUFFIX = ".arrayrecord"

_LAYOUT_SAMPLE = 10  # records, of which one must be readable


def pack(image: bytes, label: int, key: str, size: tuple[int, int], raw: bool = False) -> bytes:
    """Returns a record.

    Args:
        image: contents of an image file, or its pixels.
        label: of its class.
        key: its origin, for messages.
        size: width, height in pixels.
        raw: `image` is pixels.
    """
    width, height = size
    record = {"image": image, "label": label, "key": key, "h": height, "w": width}
    return msgpack.packb(record | ({"raw": True} if raw else {}), use_bin_type=True)


class ArrayRecordDataset(ClassificationBase):
    """The records of some ArrayRecord files, in order.

    Args:
        files: the shards.
        class_names: by label.
        info: content of `info.json`, if there is one.

    Raises:
        DataSetError: a file is truncated or not an ArrayRecord file.
    """

    def __init__(
        self, files: Sequence[Path], class_names: tuple[str, ...], info: dict[str, Any] | None
    ):
        super().__init__(str(files[0].parent), class_names)
        for file in files:
            check_utf8(file, "ArrayRecord")
        self._files = tuple(files)
        digest = shards.shards_digest("array_record", files, class_names, info)
        paths = [str(file) for file in files]
        try:
            self._records = array_record_data_source.ArrayRecordDataSource(paths)
        except Exception as error:  # the library raises its own kinds, from C++
            raise DataSetError(_first_unreadable(files, error)) from error
        digest.update(str(len(self._records)).encode())
        self._fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        record = self._record(index)
        label = record["label"]
        if not 0 <= label < len(self.class_names):
            raise DataSetError(
                f"record {index} of {self._files[0].parent} has label {label}, but there are "
                f"{len(self.class_names)} class names (labels count from 0)"
            )
        image = record["image"]
        return {"image": _pixels(record, index) if record.get("raw") else image, "label": label}

    def labels(self) -> Int[np.ndarray, "n"]:
        """Returns the label of every record, int32; -1 for a record that cannot be read.

        Reads all records.
        """
        labels = np.full(len(self), -1, np.int32)
        for index in range(len(self)):
            with contextlib.suppress(OSError):
                labels[index] = self[index]["label"]
        return labels

    def name_of(self, index: int) -> str:
        """Returns the record's key, or its number if the record cannot be read."""
        try:
            key = self._record(index).get("key")
        except OSError:
            key = None
        return printable(str(key)) if key else f"{self._files[0].name}, record {index} of the split"

    def digest(self) -> str:
        """Hashes the files' names and sizes, the checksums in `info.json`, and the count."""
        return self._fingerprint

    def _record(self, index: int) -> dict[str, Any]:
        self.check_index(index)
        try:
            data = self._records[index]
        except Exception as error:  # the library raises its own kinds, from C++
            raise UnreadableRecordError(
                f"record {index} of {self._files[0].parent} is damaged: {error}"
            ) from error
        return _unpack(data, index)


def _pixels(record: dict[str, Any], index: int) -> np.ndarray:
    """Returns the image of a raw record, uint8 [h, w, 3]."""
    height, width = record.get("h"), record.get("w")
    try:
        if not (isinstance(height, int) and isinstance(width, int) and height > 0 < width):
            raise ValueError("both must be at least 1")
        return np.frombuffer(record["image"], np.uint8).reshape((height, width, 3))  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise UnreadableRecordError(
            f"record {index} is raw, but its {len(record['image'])} bytes are not h x w x 3 of "
            f"h={height}, w={width}, which must be at least 1"
        ) from error


def _unpack(data: bytes, index: int) -> dict[str, Any]:
    try:
        record = msgpack.unpackb(data)
    except (ValueError, msgpack.UnpackException) as error:
        raise UnreadableRecordError(f"record {index} is not msgpack: {error}") from error
    if not isinstance(record, dict) or not (
        isinstance(record.get("image"), bytes) and isinstance(record.get("label"), int)
    ):
        raise UnreadableRecordError(
            f"record {index} is not a msgpack map with image (bytes) and label (int)"
        )
    return record


def _first_unreadable(files: Sequence[Path], error: Exception) -> str:
    for file in files:
        try:
            array_record_data_source.ArrayRecordDataSource([str(file)])
        except Exception as cause:
            return (
                f"{file} is truncated or not an ArrayRecord file "
                f"({str(cause).splitlines()[0] if str(cause) else type(cause).__name__}): copy it "
                "again, or convert the data set again"
            )
    return str(error)


def _layout_error(source: ArrayRecordDataset) -> UnreadableRecordError | None:
    """Returns the error of the first record if none of the first records can be read."""
    first = None
    for index in range(min(_LAYOUT_SAMPLE, len(source))):
        try:
            source[index]
        except UnreadableRecordError as error:
            first = first or error
        else:
            return None
    return first


def open_array_record(path: str | None, part: Part) -> ClassificationDataset:
    """Opens the ArrayRecord files of a split.

    Args:
        path: where, see `vig_jax.data.formats.shards`.
        part: the split.

    Raises:
        DataSetError: files are missing, truncated or of another layout, class names are missing, or
            classes are empty.
    """
    files = shards.find_shards(path, part, SUFFIX)
    home = shards.home_of(files, path)
    info = shards.read_info(home)
    shards.check_sizes(files, info)
    class_names = shards.class_names_beside(home)
    if class_names is None:
        raise shards.no_class_names(home)
    source = ArrayRecordDataset(files, class_names, info)
    if len(source) == 0:
        raise DataSetError(f"the ArrayRecord files of {home} have no records")
    if error := _layout_error(source):
        raise DataSetError(
            f"{files[0]} has an unknown layout: {error}. Records of other layouts (TFDS writes "
            "tf.train.Example) must be converted by the program that wrote them"
        ) from error
    if part == "train" and info is not None and "train" in info["splits"]:
        counts = np.array(info["splits"]["train"]["class_counts"])
        check_classes_filled(counts, class_names, home)
    return source

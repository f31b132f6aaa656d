"""Parquet files as Hugging Face writes them: columns image {bytes, path} and label.

PATH/train-00000-of-00008.parquet, ... or PATH/data/...; see `vig_jax.data.formats.shards`. The
class names are those of the `ClassLabel` in the file's metadata, or those beside the files.

To read one image, its whole row group is read. So shuffled training needs groups of a few
megabytes, as `vig data convert` writes them, or ArrayRecord files. Needs pyarrow, which is
optional.
"""

import collections
import contextlib
import json
import logging
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vig_jax.data.dataset import (
    ClassificationBase,
    ClassificationDataset,
    Example,
    Part,
    check_classes_filled,
    check_labels,
)
from vig_jax.data.formats import shards
from vig_jax.errors import DataSetError, UnreadableRecordError
from vig_jax.files import check_utf8
from vig_jax.text import printable

logger = logging.getLogger(__name__)

SUFFIX = ".parquet"
_LARGE_GROUP = 16 * 2**20  # bytes
_GROUPS_KEPT = 4  # per process: reading in order returns to them


def import_pyarrow() -> Any:
    """Imports pyarrow with its parquet module.

    Raises:
        DataSetError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataSetError(
            f"parquet files need pyarrow, which is not installed ({error}): pip install pyarrow"
        ) from error
    return pyarrow


class ParquetDataset(ClassificationBase):
    """The rows of some files, in order.

    Args:
        files: the shards.
        class_names: by label; None: from the metadata of the files.
        info: content of `info.json`, if there is one.

    Raises:
        DataSetError: files are truncated or of another layout, class names are missing, or labels
            are out of range.
    """

    def __init__(
        self,
        files: Sequence[Path],
        class_names: tuple[str, ...] | None,
        info: dict[str, Any] | None,
    ):
        self._files = tuple(str(file) for file in files)
        opened = [_open(file) for file in files]
        label = {_label_column(file, f) for file, f in zip(files, opened, strict=True)}
        if len(label) > 1:
            raise DataSetError(f"the files of {files[0].parent} differ in their columns")
        names = class_names or _names_in_metadata(opened[0], next(iter(label)))
        if names is None:
            raise shards.no_class_names(files[0].parent)
        super().__init__(str(files[0].parent), names)
        labels = np.concatenate(
            [
                _read_labels(file, f, next(iter(label)))
                for file, f in zip(files, opened, strict=True)
            ]
        )
        check_labels(labels, self.class_names, files[0].parent)
        self._labels = labels.astype(np.int32)
        groups = [
            (number, group, f.metadata.row_group(group).num_rows)
            for number, f in enumerate(opened)
            for group in range(f.num_row_groups)
        ]
        self._groups = np.array([group[:2] for group in groups], np.int64).reshape(-1, 2)
        self._first = np.cumsum([0, *(rows for _, _, rows in groups)])
        largest = max((_largest_group(f) for f in opened), default=0)
        if largest > _LARGE_GROUP:
            logger.warning(
                "%s has row groups of up to %.0f MB, and reading one image reads a group: for "
                "training, `vig data convert %s DST` makes ArrayRecord files",
                files[0].parent,
                largest / 1e6,
                files[0].parent,
            )
        digest = shards.shards_digest("parquet", files, self.class_names, info)
        digest.update(self._labels.astype("<i4").tobytes() + self._first.astype("<i8").tobytes())
        self._fingerprint = digest.hexdigest()
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[int, Any] = {}
        self._cache: collections.OrderedDict[int, list[dict[str, Any]]] = collections.OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: value
            for name, value in self.__dict__.items()
            if name not in ("_lock", "_open", "_cache")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def __getitem__(self, index: int) -> Example:
        image = self._row(index) or {}
        contents = image.get("bytes")
        if contents is None and (path := image.get("path")):
            raise UnreadableRecordError(
                f"row {index} holds a path, {printable(path)}, but no bytes: write the images into "
                "the files (in Hugging Face's datasets, embed_external_files)"
            )
        return {"image": contents or b"", "label": int(self._labels[index])}

    def name_of(self, index: int) -> str:
        """Returns the path in the row, or the file and the number of the row."""
        try:
            path = (self._row(index) or {}).get("path")
        except OSError:
            path = None
        group = self._group_of(index)
        file = Path(self._files[self._groups[group][0]]).name
        return (
            printable(path or "")
            or f"{file}, row {index - self._first[group]} of row group {group}"
        )

    def digest(self) -> str:
        """Hashes names and sizes of the files, the row groups and all labels."""
        return self._fingerprint

    def _group_of(self, index: int) -> int:
        self.check_index(index)
        return int(np.searchsorted(self._first, index, side="right")) - 1

    def _row(self, index: int) -> dict[str, Any]:
        group = self._group_of(index)
        with self._lock:
            rows = self._cache.pop(group, None)
            if rows is None:
                rows = self._read_group(group)
            self._cache[group] = rows
            while len(self._cache) > _GROUPS_KEPT:
                self._cache.popitem(last=False)
        return rows[index - int(self._first[group])]

    def _read_group(self, group: int) -> list[dict[str, Any]]:
        number, within = self._groups[group].tolist()
        try:
            if number not in self._open:
                self._open[number] = _open(Path(self._files[number]))
            table = self._open[number].read_row_group(within, columns=["image"], use_threads=False)
            return table.column("image").to_pylist()
        except Exception as error:  # pyarrow's errors are of many kinds
            raise UnreadableRecordError(
                f"row group {within} of {self._files[number]} cannot be read: {error}"
            ) from error


def _open(file: Path) -> Any:
    pyarrow = import_pyarrow()
    check_utf8(file, "PyArrow")
    with _arrow_errors(file):
        return pyarrow.parquet.ParquetFile(file)


@contextlib.contextmanager
def _arrow_errors(file: str | Path) -> Iterator[None]:
    """Translates pyarrow's errors, which are of many kinds, while a file is opened."""
    try:
        yield
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataSetError(
            f"{file} is truncated or not a parquet file ({reason}): copy it again"
        ) from error


def _largest_group(opened: Any) -> int:
    metadata = opened.metadata
    groups = range(metadata.num_row_groups)
    return max((metadata.row_group(group).total_byte_size for group in groups), default=0)


def _label_column(file: Path, opened: Any) -> str:
    """Returns the name of the label column, and checks the layout."""
    pyarrow = import_pyarrow()
    schema = opened.schema_arrow
    kinds = {field.name: field.type for field in schema}
    image = kinds.get("image")
    has_bytes = (
        image is not None and pyarrow.types.is_struct(image) and image.get_field_index("bytes") >= 0
    )
    labels = [
        name
        for name in ("label", "labels")
        if name in kinds and pyarrow.types.is_integer(kinds[name])
    ]
    if not has_bytes or not labels:
        columns = ", ".join(f"{name}: {kind}" for name, kind in kinds.items())
        raise DataSetError(
            f"{file} has an unknown layout, with columns {columns[:300]}; required are "
            "image: struct<bytes: binary, path: string> and label: int64"
        )
    return labels[0]


def _read_labels(file: Path, opened: Any, column: str) -> np.ndarray:
    """Returns the labels as int64; -1, which Hugging Face uses for "no label", where there is none.

    They are narrowed only after they have been checked.
    """
    with _arrow_errors(file):
        values = opened.read(columns=[column], use_threads=False).column(column)
    absent = values.is_null().to_numpy()
    labels = values.fill_null(0).to_numpy()
    if labels.dtype == np.uint64:
        labels = np.minimum(labels, np.uint64(np.iinfo(np.int64).max))
    labels = labels.astype(np.int64)
    labels[absent] = -1
    return labels


def _names_in_metadata(opened: Any, column: str) -> tuple[str, ...] | None:
    stored = (opened.schema_arrow.metadata or {}).get(b"huggingface", b"")
    try:
        names = json.loads(stored)["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    valid = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return tuple(names) if valid else None


def open_parquet(path: str | None, part: Part) -> ClassificationDataset:
    """Opens the parquet files of a split.

    Args:
        path: where, see `vig_jax.data.formats.shards`.
        part: the split.

    Raises:
        DataSetError: pyarrow or files are missing, files are truncated or of another layout, class
            names are missing, labels are out of range, or classes are empty.
    """
    import_pyarrow()
    files = shards.find_shards(path, part, SUFFIX)
    home = shards.home_of(files, path)
    info = shards.read_info(home)
    shards.check_sizes(files, info)
    source = ParquetDataset(files, shards.class_names_beside(home), info)
    if len(source) == 0:
        raise DataSetError(f"the parquet files of {home} have no rows")
    if part == "train":
        counts = np.bincount(source.labels(), minlength=source.num_classes)
        check_classes_filled(counts, source.class_names, home)
    return source

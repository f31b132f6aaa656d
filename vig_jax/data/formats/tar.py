"""Tar files with random access, by an index of the offsets of the images.

There are two layouts: that of WebDataset, `00000012.jpg` beside `00000012.cls` (a number), and
class folders, `cat/001.jpg` or `cat/day/001.jpg`. The files are PATH/train-00000-of-00008.tar, ...;
see `vig_jax.data.formats.shards`.

All headers are read whenever a tar is opened. Nothing is stored: an index beside the tar could
belong to another tar.
"""

import os
from collections.abc import Sequence
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
from vig_jax.data.formats.tar_index import TarIndex, build_index, folders_of
from vig_jax.errors import DataSetError, UnreadableRecordError
from vig_jax.files import LARGEST_IMAGE_FILE
from vig_jax.text import preview_names, printable

SUFFIX = ".tar"

# The folders above the class folders that are stripped without being named in classes.txt.
_SPLIT_FOLDERS = frozenset({"train", "val", "validation", "test"})


class TarDataset(ClassificationBase):
    """The images of some tars, in order.

    Args:
        files: the shards.
        indexes: one per file.
        class_names: by label; names of the folders in the tars if there is no .cls.
        depth: number of folders above the class folders.
        info: content of `info.json`, if there is one.

    Raises:
        DataSetError: labels do not fit the class names.
    """

    def __init__(
        self,
        files: Sequence[Path],
        indexes: Sequence[TarIndex],
        class_names: tuple[str, ...],
        info: dict[str, Any] | None,
        depth: int = 0,
    ):
        super().__init__(str(files[0].parent), class_names)
        self._files = tuple(str(file) for file in files)
        self._versions = tuple((index.size, index.mtime) for index in indexes)
        self._first = np.cumsum([0, *(len(index.names) for index in indexes)])
        self._offsets = np.concatenate([index.offsets for index in indexes])
        self._lengths = np.concatenate([index.lengths for index in indexes])
        self._labels = np.concatenate([_numbers(index, class_names, depth) for index in indexes])
        check_labels(self._labels, class_names, files[0].parent)
        names = [os.fsencode(name) for index in indexes for name in index.names]
        self._names = b"".join(names)
        self._ends = np.cumsum([len(name) for name in names], dtype=np.int64)
        digest = shards.shards_digest("tar", files, class_names, info)
        for array in (self._offsets, self._lengths, self._labels.astype("<i4"), self._ends):
            digest.update(array.tobytes())
        digest.update(self._names)
        self._fingerprint = digest.hexdigest()

    def __getitem__(self, index: int) -> Example:
        self.check_index(index)
        shard = self._shard_of(index)
        # Opened for each image, which costs microseconds: a thousand shards would need a thousand
        # handles.
        handle = os.open(self._files[shard], os.O_RDONLY)
        try:
            stat = os.fstat(handle)
            if (stat.st_size, stat.st_mtime_ns) != self._versions[shard]:
                raise DataSetError(
                    f"{self._files[shard]} has changed since its index was read: open the data set "
                    "again"
                )
            length = int(self._lengths[index])
            if length < 0:
                raise UnreadableRecordError(
                    f"{self.name_of(index)} is a link to a file that is not in the tar, or a "
                    "sparse file: pack the image itself (tar --dereference)"
                )
            if length > LARGEST_IMAGE_FILE:
                raise UnreadableRecordError(
                    f"{length} bytes are more than an image may have, {LARGEST_IMAGE_FILE}"
                )
            image = os.pread(handle, length, int(self._offsets[index]))
        finally:
            os.close(handle)
        return {"image": image, "label": int(self._labels[index])}

    def name_of(self, index: int) -> str:
        """Returns the tar and the member, e.g. "train-00000-of-00008.tar/00000012.jpg"."""
        start = self._ends[index - 1] if index else 0
        member = os.fsdecode(self._names[start : self._ends[index]])
        return printable(f"{Path(self._files[self._shard_of(index)]).name}/{member}")

    def digest(self) -> str:
        """Hashes names and sizes of the tars, and names, offsets and labels of the images."""
        return self._fingerprint

    def _shard_of(self, index: int) -> int:
        return int(np.searchsorted(self._first, index, side="right")) - 1


def _numbers(index: TarIndex, class_names: Sequence[str], depth: int) -> np.ndarray:
    """Returns the labels, by .cls or by folder."""
    if not index.by_folder:
        return index.labels
    by_name = {name: label for label, name in enumerate(class_names)}
    folders = [folders_of(name)[depth] for name in index.names]
    if unknown := sorted(set(folders) - set(by_name)):
        raise DataSetError(
            f"{len(unknown)} class folders in the tar are not among the {len(by_name)} classes: "
            f"{preview_names(unknown)}"
        )
    return np.array([by_name[folder] for folder in folders], np.int32)


def open_tar(path: str | None, part: Part) -> ClassificationDataset:
    """Opens the tars of a split.

    Args:
        path: where, see `vig_jax.data.formats.shards`.
        part: the split.

    Raises:
        DataSetError: files are missing, truncated or of another layout, class names are missing,
            labels are out of range, or classes are empty.
    """
    files = shards.find_shards(path, part, SUFFIX)
    home = shards.home_of(files, path)
    info = shards.read_info(home)
    shards.check_sizes(files, info)
    indexes = [build_index(file) for file in files]
    by_folder = {index.by_folder for index in indexes}
    if len(by_folder) > 1:
        raise DataSetError(f"some tars of {home} have .cls files and some class folders")
    class_names, depth = shards.class_names_beside(home), 0
    if class_names is None:
        if by_folder == {False}:
            raise shards.no_class_names(home)
        class_names = _class_folders(path, part, indexes)
    if by_folder == {True}:
        depth = _depth(indexes, class_names)
    source = TarDataset(files, indexes, class_names, info, depth)
    if part == "train":
        counts = np.bincount(source.labels(), minlength=len(class_names))
        check_classes_filled(counts, class_names, home)
    return source


def _class_folders(path: str | None, part: Part, indexes: Sequence[TarIndex]) -> tuple[str, ...]:
    """Returns the class folders of the training images, or, without any, of these."""
    if part == "eval" and shards.has_shards(path or "", "train", SUFFIX):
        files = shards.find_shards(path, "train", SUFFIX)
        indexes = [build_index(file) for file in files]
    depth = _depth(indexes, None)
    return tuple(sorted(set(_folders_at(indexes, depth))))


def _folders_at(indexes: Sequence[TarIndex], depth: int) -> list[str]:
    """Returns the folder of every image at a depth; "" where there are fewer folders."""
    return [
        folders[depth] if depth < len(folders) else ""
        for index in indexes
        for folders in map(folders_of, index.names)
    ]


def _depth(indexes: Sequence[TarIndex], class_names: Sequence[str] | None) -> int:
    """Returns the number of folders above the class folders.

    The outermost folders are the classes, as in a folder of images. Folders that all images share
    do not count if they are named like a split, or if the folders below them are known classes.

    Raises:
        DataSetError: all images share a folder that may be the only class or not.
    """
    depth, names = 0, set(_folders_at(indexes, 0))
    while len(names) == 1 and not names.issubset(class_names or ()):
        (name,) = names
        below = set(_folders_at(indexes, depth + 1))
        if "" in below:  # the classes have no folders
            break
        if class_names is None and name.lower() not in _SPLIT_FOLDERS:
            raise DataSetError(
                f"all images of the tars are in the folder {printable(name)}, which has the "
                f"folders {preview_names(sorted(below))}: name the classes in classes.txt beside "
                f"the tars, one per line, or pack the class folders themselves (tar -C "
                f"{printable(name)} ...)"
            )
        depth, names = depth + 1, below
    return depth

"""Tar files with random access, by an index of the offsets of the images.

There are two layouts: that of WebDataset, `00000012.jpg` beside `00000012.cls` (a number), and
class folders, `cat/001.jpg`. The files are PATH/train-00000-of-00008.tar, ...; see
`vig_jax.data.formats.shards`.

The index is made by reading all headers once. It is stored beside the tar as NAME.tar.index.npz or,
if that folder cannot be written, in the user's cache. It is made again when the tar's size or time
of modification has changed.
"""

import collections
import dataclasses
import hashlib
import logging
import os
import tarfile
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
from vig_jax.data.formats.image_folder import is_image
from vig_jax.errors import DataSetError
from vig_jax.files import write_atomically
from vig_jax.text import preview_names

logger = logging.getLogger(__name__)

SUFFIX = ".tar"
INDEX_SUFFIX = ".index.npz"
_VERSION = 1
_BLOCK = 512  # bytes; a tar ends with zeros of at least this length


@dataclasses.dataclass(frozen=True)
class TarIndex:
    """An index of the images of one tar. The arrays have one entry per image, in its order."""

    size: int  # of the tar, bytes
    mtime: int  # of the tar, nanoseconds
    offsets: np.ndarray  # int64
    lengths: np.ndarray  # int64
    labels: np.ndarray  # int32; -1 if the folder's name is the class
    names: tuple[str, ...]  # of the members

    @property
    def folders(self) -> tuple[str, ...]:
        """The innermost folder of each member."""
        return tuple(name.rpartition("/")[0].rpartition("/")[2] for name in self.names)


def build_index(file: Path) -> TarIndex:
    """Reads all headers of a tar, and the .cls members.

    Raises:
        DataSetError: the file is not a tar, is compressed or truncated, or has neither layout.
    """
    stat = file.stat()
    images: list[tuple[str, int, int]] = []
    classes: dict[str, int] = {}
    try:
        with tarfile.open(file, "r:") as archive:
            for member in archive:
                if not member.isfile() or member.name.rpartition("/")[2].startswith("."):
                    continue
                key = _key(member.name)
                if member.name == f"{key}.cls":
                    contents = archive.extractfile(member)
                    classes[key] = int(contents.read() if contents else b"")
                elif is_image(member.name):
                    images.append((member.name, member.offset_data, member.size))
            end = archive.offset
    except ValueError as error:
        raise DataSetError(
            f"{file} has an unknown layout: {member.name} is not one number"
        ) from error
    except (tarfile.TarError, EOFError) as error:
        raise DataSetError(
            f"{file} is truncated or not a plain tar file ({error}). A compressed tar must be "
            "unpacked first: it has no random access"
        ) from error
    if not _ends_with_zeros(file, end):
        raise DataSetError(
            f"{file} is truncated: the zeros that end a tar are missing. Copy it again"
        )
    return TarIndex(
        size=stat.st_size,
        mtime=stat.st_mtime_ns,
        offsets=np.array([offset for _, offset, _ in images], np.int64),
        lengths=np.array([length for _, _, length in images], np.int64),
        labels=_labels(file, [name for name, _, _ in images], classes),
        names=tuple(name for name, _, _ in images),
    )


def _key(name: str) -> str:
    """Returns the key of a WebDataset sample: the name up to the first dot."""
    folder, slash, base = name.rpartition("/")
    return f"{folder}{slash}{base.partition('.')[0]}"


def _labels(file: Path, names: Sequence[str], classes: dict[str, int]) -> np.ndarray:
    layout = "NUMBER.jpg with NUMBER.cls (WebDataset), or CLASS/NAME.jpg"
    if not names:
        raise DataSetError(f"{file} has no images; the layout must be {layout}")
    if not classes:
        if loose := [name for name in names if not name.rpartition("/")[0]]:
            raise DataSetError(
                f"{file} has an unknown layout: {loose[0]} has no class; it must be {layout}"
            )
        return np.full(len(names), -1, np.int32)
    keys = [_key(name) for name in names]
    twice = [key for key, count in collections.Counter(keys).items() if count > 1]
    lacking = [key for key in keys if key not in classes]
    if twice or lacking:
        problem = f"{twice[0]} has two images" if twice else f"{lacking[0]} has no .cls"
        raise DataSetError(f"{file} has an unknown layout: {problem}; it must be {layout}")
    return np.array([classes[key] for key in keys], np.int32)


def _ends_with_zeros(file: Path, end: int) -> bool:
    with file.open("rb") as contents:
        contents.seek(end - _BLOCK if end >= _BLOCK else 0)
        tail = contents.read(2 * _BLOCK)
    return len(tail) >= _BLOCK and not any(tail[-_BLOCK:])


def load_index(file: Path) -> TarIndex:
    """Returns the index of a tar; makes and stores it if required.

    Raises:
        DataSetError: the tar cannot be indexed.
    """
    stat = file.stat()
    places = (_beside(file), _in_cache(file))
    for place in places:
        index = _read(place)
        if index is None:
            continue
        if (index.size, index.mtime) == (stat.st_size, stat.st_mtime_ns):
            return index
        logger.info("%s belongs to another version of the tar: reading %s again", place, file)
    index = build_index(file)
    for place in places:
        try:
            _write(index, place)
        except OSError:
            continue
        return index
    logger.warning("the index of %s can be stored neither in %s nor in %s", file, *places)
    return index


def _beside(file: Path) -> Path:
    return file.with_name(file.name + INDEX_SUFFIX)


def _in_cache(file: Path) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    place = hashlib.sha256(os.fsencode(file.absolute())).hexdigest()[:16]
    return cache / "vig_jax" / f"{place}-{file.name}{INDEX_SUFFIX}"


def _read(place: Path) -> TarIndex | None:
    try:
        with np.load(place, allow_pickle=False) as stored:
            if int(stored["version"]) != _VERSION:
                return None
            names = stored["names"].tobytes().decode(errors="surrogateescape")
            return TarIndex(
                size=int(stored["size"]),
                mtime=int(stored["mtime"]),
                offsets=stored["offsets"],
                lengths=stored["lengths"],
                labels=stored["labels"],
                names=tuple(names.split("\0")),
            )
    # Absent, damaged or of another program: the index is made again.
    except Exception:
        return None


def _write(index: TarIndex, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    fields = {
        "version": np.array(_VERSION),
        "size": np.array(index.size),
        "mtime": np.array(index.mtime),
        "offsets": index.offsets,
        "lengths": index.lengths,
        "labels": index.labels,
        "names": np.frombuffer("\0".join(index.names).encode(errors="surrogateescape"), np.uint8),
    }
    with write_atomically(place, concurrent=True) as draft:
        np.savez(draft, allow_pickle=False, **fields)


class TarDataset(ClassificationBase):
    """The images of some tars, in order.

    Args:
        files: the shards.
        indexes: one per file.
        class_names: by label; names of the folders in the tars if there is no .cls.
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
    ):
        super().__init__(str(files[0].parent), class_names)
        self._files = tuple(str(file) for file in files)
        self._versions = tuple((index.size, index.mtime) for index in indexes)
        self._first = np.cumsum([0, *(len(index.names) for index in indexes)])
        self._offsets = np.concatenate([index.offsets for index in indexes])
        self._lengths = np.concatenate([index.lengths for index in indexes])
        self._labels = np.concatenate([_numbers(index, class_names) for index in indexes])
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
            image = os.pread(handle, int(self._lengths[index]), int(self._offsets[index]))
        finally:
            os.close(handle)
        return {"image": image, "label": int(self._labels[index])}

    def name_of(self, index: int) -> str:
        """Returns the tar and the member, e.g. "train-00000-of-00008.tar/00000012.jpg"."""
        start = self._ends[index - 1] if index else 0
        member = os.fsdecode(self._names[start : self._ends[index]])
        return f"{Path(self._files[self._shard_of(index)]).name}/{member}"

    def digest(self) -> str:
        """Hashes names and sizes of the tars, and names, offsets and labels of the images."""
        return self._fingerprint

    def _shard_of(self, index: int) -> int:
        return int(np.searchsorted(self._first, index, side="right")) - 1


def _numbers(index: TarIndex, class_names: Sequence[str]) -> np.ndarray:
    """Returns the labels, by .cls or by folder."""
    if not (index.labels == -1).all():
        return index.labels
    by_name = {name: label for label, name in enumerate(class_names)}
    if unknown := sorted(set(index.folders) - set(by_name)):
        raise DataSetError(
            f"{len(unknown)} class folders in the tar are not among the {len(by_name)} classes: "
            f"{preview_names(unknown)}"
        )
    return np.array([by_name[folder] for folder in index.folders], np.int32)


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
    indexes = [load_index(file) for file in files]
    by_folder = {bool((index.labels == -1).all()) for index in indexes}
    if len(by_folder) > 1:
        raise DataSetError(f"some tars of {home} have .cls files and some class folders")
    class_names = shards.class_names_beside(home)
    if class_names is None:
        if by_folder == {False}:
            raise shards.no_class_names(home)
        class_names = _class_folders(path, part, indexes)
    source = TarDataset(files, indexes, class_names, info)
    if part == "train":
        counts = np.bincount(source.labels(), minlength=len(class_names))
        check_classes_filled(counts, class_names, home)
    return source


def _class_folders(path: str | None, part: Part, indexes: Sequence[TarIndex]) -> tuple[str, ...]:
    """Returns the class folders of the training images, or, without any, of these."""
    if part == "eval":
        try:
            indexes = [load_index(file) for file in shards.find_shards(path, "train", SUFFIX)]
        except DataSetError:
            logger.info("no training tars: the classes are those of the evaluation tars")
    return tuple(sorted({folder for index in indexes for folder in index.folders}))
